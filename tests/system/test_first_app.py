"""What a user does first: an app, a Service, and the everyday commands of kubectl."""

import os
import re
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from node import Node, pod, wait_for  # noqa: E402

NODE = None


def setUpModule():
    global NODE
    NODE = Node()
    try:
        NODE.start()
    except BaseException:
        print(NODE.last_log())
        NODE.remove()
        raise


def tearDownModule():
    problems = NODE.remove()
    assert not problems, problems


class FirstApp(unittest.TestCase):
    def test_a_deployment_behind_a_service(self):
        k = NODE.kubectl
        k("create", "deployment", "web", "--image=mussel.test/web:1", "--replicas=3")
        k("expose", "deployment", "web", "--port=80")
        k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
        pods = NODE.get("pods", "-l", "app=web")["items"]
        self.assertEqual(len(pods), 3)
        for item in pods:
            self.assertRegex(item["status"]["podIP"], r"^10\.42\.0\.\d+$")
        address = NODE.get("service", "web")["spec"]["clusterIP"]
        self.assertRegex(address, r"^10\.43\.")
        names = {item["metadata"]["name"] for item in pods}

        def ask():
            return NODE.inside("curl", "-s", "-m", "5", f"http://{address}/").stdout.strip()
        wait_for("service answers", lambda: ask() in names)
        self.assertEqual({ask() for _ in range(60)}, names, "the load is spread over all pods")
        inside = pods[0]["metadata"]["name"]
        for url in [address, "web", "web.default.svc.cluster.local"]:
            self.assertIn(k("exec", inside, "--", "wget", "-qO-", f"http://{url}/").strip(), names)

        k("scale", "deployment", "web", "--replicas=1")
        wait_for("one pod", lambda: len(NODE.get("pods", "-l", "app=web")["items"]) == 1)
        k("set", "image", "deployment/web", "web=mussel.test/web:2")
        k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
        wait_for("new version answers", lambda: ask() == "v2")
        k("rollout", "undo", "deployment/web")
        k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
        wait_for("old version answers", lambda: ask().startswith("web-"))
        k("rollout", "restart", "deployment/web")
        k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
        self.assertIn("REVISION", k("rollout", "history", "deployment/web"))

        k("patch", "service", "web", "-p", '{"spec":{"type":"NodePort"}}')
        port = NODE.get("service", "web")["spec"]["ports"][0]["nodePort"]
        wait_for("node port", lambda: NODE.inside("curl", "-s", "-m", "5", f"http://192.0.2.10:{port}/", check=False)
                 .stdout.startswith("web-"))
        k("delete", "deployment,service", "web")
        wait_for("pods gone", lambda: not NODE.get("pods", "-l", "app=web")["items"])

    def test_everyday_commands(self):
        k = NODE.kubectl
        NODE.apply(pod("daily", "echo started; trap 'exit 0' TERM; while :; do sleep 0.1; done", labels={"app": "daily"}))
        NODE.wait_pod("daily")
        self.assertEqual(k("exec", "daily", "--", "hostname").strip(), "daily")
        self.assertEqual(k("exec", "-i", "daily", "--", "cat", stdin="through\n"), "through\n")
        self.assertEqual(k("exec", "daily", "--", "sh", "-c", "exit 7", check=False).returncode, 7)
        self.assertEqual(k("logs", "daily"), "started\n")
        self.assertIn("Started", k("describe", "pod", "daily"))
        for output in ["wide", "yaml", "json", "name"]:
            self.assertIn("daily", k("get", "pod", "daily", "-o", output))
        self.assertIn("daily", k("get", "pods", "-A", "-l", "app=daily", "--field-selector", "status.phase=Running"))
        k("label", "pod", "daily", "tier=front")
        k("annotate", "pod", "daily", "note=x")
        self.assertIn("daily", k("get", "pods", "-l", "tier=front", "-o", "name"))
        with open(f"{NODE.dir}/up", "w") as file:
            file.write("up and down")
        k("cp", f"{NODE.dir}/up", "daily:/tmp/up")
        k("cp", "daily:/tmp/up", f"{NODE.dir}/down")
        with open(f"{NODE.dir}/down") as file:
            self.assertEqual(file.read(), "up and down")
        k("wait", "--for=condition=Ready", "pod/daily", "--timeout=30s")
        self.assertIn("livenessProbe", k("explain", "pod.spec.containers.livenessProbe"))
        self.assertIn("deployments", k("api-resources"))
        self.assertIn("Scheduled", k("get", "events"))
        k("cordon", NODE.name)
        self.assertIn("SchedulingDisabled", k("get", "nodes"))
        k("uncordon", NODE.name)
        self.assertRegex(k("get", "nodes"), r"Ready\s+control-plane\s+\S+\s+v1\.36\.\d+\+mussel\.1")
        answer = k("run", "once", "--image=mussel.test/busybox:1", "--rm", "-i", "--restart=Never", "--", "echo", "done")
        self.assertIn("done", answer)
        k("delete", "pod", "daily")
        self.assertEqual(k("get", "pod", "daily", check=False).returncode, 1)

    def test_port_forward(self):
        NODE.apply(pod("forwarded", image="mussel.test/web:1"))
        NODE.wait_pod("forwarded")
        command = ["nsenter", f"--net=/run/netns/{NODE.netns}", "kubectl", "--kubeconfig", NODE.kubeconfig,
                   "port-forward", "pod/forwarded", "18080:80"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as forward:
            try:
                wait_for("forwarded port", lambda: NODE.inside(
                    "curl", "-s", "-m", "5", "http://127.0.0.1:18080/", check=False).stdout.strip() == "forwarded")
            finally:
                forward.kill()

    def test_server_side_apply_and_diff(self):
        def config(value):
            return f'{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"owned"}},"data":{{"key":"{value}"}}}}'
        k = NODE.kubectl
        k("apply", "--server-side", "--field-manager=one", "-f", "-", stdin=config("a"))
        conflict = k("apply", "--server-side", "--field-manager=two", "-f", "-", stdin=config("b"), check=False)
        self.assertIn('conflict with "one"', conflict.stderr)
        self.assertIn(".data.key", conflict.stderr)
        difference = k("diff", "--server-side", "--field-manager=one", "-f", "-", stdin=config("c"), check=False)
        self.assertEqual(difference.returncode, 1)
        self.assertIn("+  key: c", difference.stdout)
        k("apply", "--server-side", "--field-manager=two", "--force-conflicts", "-f", "-", stdin=config("b"))
        self.assertEqual(NODE.get("configmap", "owned")["data"], {"key": "b"})

    def test_health_and_version(self):
        raw = lambda path: NODE.kubectl("get", "--raw", path)  # noqa: E731
        for path in ["/livez", "/readyz", "/healthz"]:
            self.assertEqual(raw(path), "ok")
        self.assertIn("[+]ping ok", raw("/readyz?verbose"))
        self.assertIn('"gitVersion"', raw("/version"))
        self.assertIn("apiserver_request_total", raw("/metrics"))
        self.assertEqual(os.stat(NODE.kubeconfig).st_mode & 0o777, 0o600)


class Input(unittest.TestCase):
    """Bad input gets upstream's error, and nothing is stored."""

    def refused(self, *texts, manifest, arguments=()):
        done = NODE.kubectl("create", *arguments, "-f", "-", stdin=manifest, check=False)
        self.assertNotEqual(done.returncode, 0, done.stdout)
        for text in texts:
            self.assertIn(text, done.stderr)

    def test_invalid_pods(self):
        template = '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%s"},"spec":{"containers":[%s]%s}}'
        self.refused("spec.containers[0].ports[0].containerPort: Invalid value: -1: must be between 1 and 65535, inclusive",
                     manifest=template % ("bad", '{"name":"a","image":"x","ports":[{"containerPort":-1}]}', ""))
        self.refused('spec.containers[1].name: Duplicate value: "a"',
                     manifest=template % ("bad", '{"name":"a","image":"x"},{"name":"a","image":"x"}', ""))
        self.refused("spec.containers[0].image: Required value",
                     manifest=template % ("bad", '{"name":"a"}', ""))
        self.refused("metadata.name: Invalid value", "must be no more than 253",
                     manifest=template % ("n" * 300, '{"name":"a","image":"x"}', ""))
        self.refused('unknown field "spec.nope"', arguments=["--validate=strict"],
                     manifest=template % ("bad", '{"name":"a","image":"x"}', ',"nope":1'))
        self.assertEqual(NODE.kubectl("get", "pod", "bad", check=False).returncode, 1)

    def test_a_bad_image_name_is_the_pods_to_tell(self):
        NODE.apply(pod("misnamed", image="UPPER/Case"))
        wait_for("InvalidImageName", lambda: "InvalidImageName" in NODE.kubectl("get", "pod", "misnamed"))
        NODE.kubectl("delete", "pod", "misnamed")

    def test_raw_requests(self):
        token = NODE.kubectl("config", "view", "--raw", "-o", "jsonpath={.users[0].user.client-certificate-data}")
        self.assertTrue(token)

        def post(body, kind="application/json"):
            with open(f"{NODE.dir}/body", "wb") as file:
                file.write(body)
            view = lambda field: NODE.kubectl("config", "view", "--raw", "-o", f"jsonpath={{.users[0].user.{field}}}")  # noqa: E731
            import base64
            for field, name in [("client-certificate-data", "crt"), ("client-key-data", "key")]:
                with open(f"{NODE.dir}/{name}", "wb") as file:
                    file.write(base64.b64decode(view(field)))
            return NODE.inside("curl", "-sk", "-m", "20", "--cert", f"{NODE.dir}/crt", "--key", f"{NODE.dir}/key", "-w", "\n%{http_code}",
                               "-H", f"Content-Type: {kind}", "--data-binary", f"@{NODE.dir}/body",
                               "https://127.0.0.1:6443/api/v1/namespaces/default/configmaps").stdout
        self.assertTrue(post(b'{"kind":').endswith("400"))
        self.assertTrue(post(b"a: [", "application/yaml").endswith("400"))
        self.assertTrue(post(b"x" * (10 << 20)).endswith("413"))
        self.assertTrue(post(b"{}", "text/plain").endswith("415"))

    def test_a_stale_resource_version_conflicts(self):
        NODE.kubectl("create", "configmap", "contested", "--from-literal=a=1")
        NODE.kubectl("label", "configmap", "contested", "x=y")
        stale = '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"contested","resourceVersion":"1"}}'
        done = NODE.kubectl("replace", "-f", "-", stdin=stale, check=False)
        self.assertIn("the object has been modified", done.stderr)
        self.assertEqual(NODE.get("configmap", "contested")["data"], {"a": "1"})


if __name__ == "__main__":
    unittest.main()
