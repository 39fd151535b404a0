"""What outlives what: restarts, kill -9, wrong starts, archives, manifests, and leaving no trace."""

import os
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from node import BINARY, Node, build_images, pod, run, wait_for  # noqa: E402

FOREVER = "echo hello; trap 'exit 0' TERM; while :; do sleep 0.1; done"


class OneNode(unittest.TestCase):
    """A node of its own for each test."""

    def setUp(self):
        self.node = Node("m1")
        self.addCleanup(self.take_away)

    def take_away(self):
        log = self.node.last_log(60)
        problems = self.node.remove()
        if problems or (self._outcome and not self._outcome.success):
            print(log)
        self.assertFalse(problems)

    def test_pods_outlive_mussel(self):
        node = self.node
        node.start()
        node.apply(pod("steady", FOREVER), pod("web", image="mussel.test/web:1", labels={"app": "web"}))
        node.kubectl("expose", "pod", "web", "--port=80")
        node.wait_pod("steady")
        node.wait_pod("web")
        address = node.get("service", "web")["spec"]["clusterIP"]
        answers = lambda: node.inside("curl", "-s", "-m", "5", f"http://{address}/", check=False).stdout == "web\n"  # noqa: E731
        wait_for("service", answers)
        pids = [node.container_pid(name) for name in ["steady", "web"]]
        for end in [node.stop, node.kill9]:
            before = node.get("pod", "steady")["status"]["containerStatuses"]
            end()
            self.assertTrue(answers(), "the Service answers without mussel")
            node.start()
            self.assertEqual([node.container_pid(name) for name in ["steady", "web"]], pids, "the same processes")
            self.assertEqual(node.kubectl("exec", "steady", "--", "hostname"), "steady\n")
            self.assertEqual(node.kubectl("logs", "steady"), "hello\n")
            self.assertEqual(node.get("pod", "steady")["status"]["containerStatuses"], before, "the same state")
            self.assertTrue(answers())

    def test_archives_and_manifests(self):
        node = self.node
        images = f"{node.data}/agent/images"
        shutil.move(f"{images}/web.tar.gz", f"{node.dir}/web.tar.gz")
        with open(f"{images}/busybox.tar", "rb") as file:
            whole = file.read()
        with open(f"{images}/broken.tar", "wb") as file:
            file.write(whole[:len(whole) // 2])
        manifests = f"{node.data}/server/manifests"
        os.makedirs(manifests)
        with open(f"{manifests}/early.yaml", "w") as file:
            file.write("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: early, namespace: default}\n"
                       "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra, namespace: default}\n")
        node.start()

        def ctr(*arguments, **options):
            return run(BINARY, "ctr", "--run-dir", node.run_dir, "images", *arguments, **options).stdout
        listed = ctr("ls")
        self.assertIn("mussel.test/busybox:1", listed)
        self.assertNotIn("mussel.test/web:1", listed)
        wait_for("an event about the broken archive", lambda: "broken.tar" in node.kubectl("get", "events", "-A"))
        self.assertIn("broken.tar", node.last_log(200))
        shutil.copy(f"{node.dir}/web.tar.gz", images)
        wait_for("the late archive", lambda: "mussel.test/web:1" in ctr("ls"))
        ctr("rm", "mussel.test/web:2")
        self.assertNotIn("mussel.test/web:2", ctr("ls"))
        again = [name for name in os.listdir(build_images()) if name.startswith("web2")][0]
        ctr("import", os.path.join(build_images(), again))
        self.assertIn("mussel.test/web:2", ctr("ls", "-q"))

        there = lambda name: node.kubectl("get", "configmap", name, check=False).returncode == 0  # noqa: E731
        wait_for("manifest", lambda: there("early") and there("extra"))
        with open(f"{manifests}/early.yaml", "w") as file:
            file.write("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: early, namespace: default}\ndata: {new: yes}\n")
        wait_for("changed manifest", lambda: node.get("configmap", "early").get("data") == {"new": "yes"})
        wait_for("what is no longer in it is deleted", lambda: not there("extra"))

    def test_registry(self):
        registry = shutil.which("docker-registry")
        self.assertTrue(registry, "docker-registry is installed by tests/run.sh")
        node = self.node
        config = f"{node.dir}/registry.yml"
        with open(config, "w") as file:
            file.write(f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {node.dir}/registry}}}}\n"
                       "http: {addr: '127.0.0.1:5000'}\n")
        with open(f"{node.dir}/registries.yaml", "w") as file:
            file.write("mirrors:\n  apps.example:\n    endpoint: ['http://127.0.0.1:5000']\n")
        command = ["nsenter", f"--net=/run/netns/{node.netns}", registry, "serve", config]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                build = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "images/build.py")
                wait_for("registry", lambda: node.inside("curl", "-s", "http://127.0.0.1:5000/v2/", check=False).returncode == 0)
                digest = node.inside(sys.executable, build, build_images(), "--push", "127.0.0.1:5000").stdout.strip()
                node.start("--private-registry", f"{node.dir}/registries.yaml")
                node.apply(pod("tagged", FOREVER, image="apps.example/busybox:pulled"),
                           pod("exact", FOREVER, image=f"127.0.0.1:5000/busybox@{digest}"),
                           pod("absent", FOREVER, image="apps.example/nothing:1"))
                node.wait_pod("tagged")
                node.wait_pod("exact")
                self.assertIn(digest, node.get("pod", "tagged")["status"]["containerStatuses"][0]["imageID"])
                wait_for("back-off", lambda: "ImagePullBackOff" in node.kubectl("get", "pod", "absent"))
            finally:
                process.kill()


class WrongStarts(unittest.TestCase):
    """One clear line, exit code 1 or 2, nothing started and nothing overwritten."""

    def setUp(self):
        self.node = Node("w1", images=False)
        self.addCleanup(lambda: self.assertFalse(self.node.remove()))

    def refused(self, *flags, text, code=1, command=None):
        done = run(*(command or self.node.command(*flags)), check=False, timeout=30)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertIn(text, done.stderr)

    def test_flags(self):
        self.refused("--no-such-flag", text="--no-such-flag", code=2)
        self.refused("--cluster-cidr=nonsense", text="cluster-cidr", code=2)
        self.refused("--node-name=Not_A_Name", text="--node-name")
        self.assertFalse(os.path.exists(self.node.data))
        with open(f"{self.node.dir}/config.yaml", "w") as file:
            file.write("node-name: [")
        self.refused(text="config.yaml")

    def test_places(self):
        with open(f"{self.node.dir}/file", "w") as file:
            file.write("in the way")
        self.refused("--data-dir", f"{self.node.dir}/file/data", text="not writable")
        done = run("setpriv", "--reuid=65534", BINARY, "server", check=False)
        self.assertEqual((done.returncode, "root" in done.stderr), (1, True), done.stderr)

    def test_a_second_server_and_a_corrupt_store(self):
        node = self.node
        node.start()
        self.refused(text="port 6443")
        self.refused("--https-listen-port=7443", text="in use by")
        node.stop()
        store = f"{node.data}/server/db"
        files = [os.path.join(place, name) for place, _, names in os.walk(store) for name in names]
        largest = max(files, key=os.path.getsize)
        with open(largest, "r+b") as file:
            file.write(os.urandom(4096))
        with open(largest, "rb") as file:
            before = file.read()
        self.refused(text=store)
        with open(largest, "rb") as file:
            self.assertEqual(file.read(), before, "nothing is overwritten")


if __name__ == "__main__":
    unittest.main()
