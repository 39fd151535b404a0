"""kubectl's everyday commands."""

import json
import subprocess

import lab
from lab import BUSYBOX, WEB, wait_for


class Verbs(lab.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.m.run_pod("daily", "echo started; sleep 100000", labels={"app": "daily", "tier": "one"})
        cls.m.deploy("web")

    def test_get_in_all_forms(self):
        for form in ("wide", "yaml", "json", "name", "jsonpath={.metadata.name}", "custom-columns=N:.metadata.name"):
            self.assertIn("daily", self.m.out("get", "pod", "daily", "-o", form))
        self.assertIn("daily", self.m.out("get", "pods", "-A", "-l", "app in (daily),tier!=two"))
        self.assertIn("daily", self.m.out("get", "pods", "--field-selector", "spec.nodeName=node,status.phase=Running"))
        self.assertEqual(self.m.out("get", "pods", "-l", "app=none", "-o", "name"), "")

    def test_watch(self):
        watch = self.m.spawn(lab.KUBECTL, "get", "configmap", "-w", "-o", "name", stdout=subprocess.PIPE)
        self.m.kubectl("create", "configmap", "watched")
        for line in watch.stdout:
            if line.strip() == "configmap/watched":
                break
        watch.kill()

    def test_describe_and_events(self):
        text = self.m.out("describe", "pod", "daily")
        for word in ("Started", "Scheduled", BUSYBOX, "kube-api-access"):
            self.assertIn(word, text)
        self.assertIn("Allocated resources", self.m.out("describe", "node", "node"))
        self.assertIn("web", self.m.out("describe", "deployment", "web"))
        self.assertIn("Scheduled", self.m.out("get", "events"))

    def test_apply_edit_label_annotate_patch_delete(self):
        self.m.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1", "b": "2"}})
        self.m.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "three"}})
        self.assertEqual(self.m.json("get", "configmap", "c")["data"], {"a": "three"})
        edited = self.m.exec(lab.KUBECTL, "edit", "configmap", "c", env={"KUBE_EDITOR": "sed -i s/three/four/"})
        self.assertIn("edited", edited.out)
        self.m.kubectl("label", "configmap", "c", "x=y")
        self.m.kubectl("annotate", "configmap", "c", "note=hm")
        self.m.kubectl("patch", "configmap", "c", "--type=json", "-p", '[{"op":"add","path":"/data/z","value":"9"}]')
        made = self.m.json("get", "configmap", "c")
        self.assertEqual((made["data"], made["metadata"]["labels"]), ({"a": "four", "z": "9"}, {"x": "y"}))
        self.m.kubectl("delete", "configmap", "c")
        self.assertIn("NotFound", self.m.kubectl("get", "configmap", "c", check=False).err)

    def test_server_side_apply_and_diff(self):
        def owned(value):
            return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned"}, "data": {"key": value}}
        self.m.apply(owned("a"), "--server-side", "--field-manager=one")
        clash = self.m.apply(owned("b"), "--server-side", "--field-manager=two", check=False)
        self.assertIn('conflict with "one"', clash.err)
        self.m.apply(owned("b"), "--server-side", "--field-manager=two", "--force-conflicts")
        changed = self.m.kubectl("diff", "-f", "-", input=json.dumps(owned("c")), check=False)
        self.assertEqual(changed.code, 1, changed)
        self.assertIn("+  key: c", changed.out)

    def test_logs(self):
        self.assertEqual(self.m.out("logs", "daily"), "started")
        self.m.run_pod("talker", "echo one; sleep 1; echo two; sleep 100000")
        follow = self.m.spawn(lab.KUBECTL, "logs", "-f", "talker", stdout=subprocess.PIPE)
        self.assertEqual([follow.stdout.readline() for _ in range(2)], ["one\n", "two\n"])
        follow.kill()

    def test_run_and_remove(self):
        done = self.m.kubectl("run", "once", "--image=" + BUSYBOX, "--rm", "-i", "--restart=Never", "--", "echo", "done",
                              timeout=60)
        self.assertIn("done", done.out)
        self.assertIn("NotFound", self.m.kubectl("get", "pod", "once", check=False).err)

    def test_explain_and_discovery(self):
        self.assertIn("livenessProbe", self.m.out("explain", "pod.spec.containers.livenessProbe"))
        for resource in ("deployments", "endpointslices", "clusterroles", "leases", "storageclasses"):
            self.assertIn(resource, self.m.out("api-resources"))
        self.assertIn("apps/v1", self.m.out("api-versions"))

    def test_create_token_and_can_i(self):
        self.assertEqual(len(self.m.out("create", "token", "default").split(".")), 3)
        self.assertEqual(self.m.out("auth", "can-i", "delete", "pods"), "yes")
        self.assertEqual(self.m.kubectl("auth", "can-i", "delete", "pods", "--as=nobody", check=False).out.strip(), "no")


class Streams(lab.Case):
    """exec, attach, cp and port-forward over WebSocket, which is what kubectl tries first."""

    protocol = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "true", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "true"}
    upgrade = "websocket"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.m.run_pod("daily", "echo started; sleep 100000")
        cls.m.deploy("web")

    def kubectl(self, *args, **options):
        return self.m.exec(lab.KUBECTL, *args, env=self.protocol, **options)

    def test_the_protocol_is_the_one_meant(self):
        asked = self.kubectl("exec", "-v=8", "daily", "--", "true").err
        self.assertRegex(asked.lower(), f"upgrade: {self.upgrade}")

    def test_exec(self):
        self.assertEqual(self.kubectl("exec", "-i", "daily", "--", "cat", input="through").out, "through")
        done = self.kubectl("exec", "daily", "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
        self.assertEqual((done.code, done.out), (7, "out\n"))
        self.assertIn("err\n", done.err)
        # More than any window or pipe on the way holds, in both directions at once.
        much = "0123456789abcde\n" * 200000
        self.assertEqual(self.kubectl("exec", "-i", "daily", "--", "cat", input=much, timeout=60).out, much)
        self.assertIn("executable file not found", self.kubectl("exec", "daily", "--", "nope", check=False).err)

    def test_exec_with_a_terminal(self):
        done = self.m.exec("script", "-qec", f"{lab.KUBECTL} exec -it daily -- tty", "/dev/null", env=self.protocol)
        self.assertIn("/dev/pts/", done.out)

    def test_attach(self):
        self.m.run_pod("listener", "read line; echo got $line; sleep 100000", container={"stdin": True})
        attached = self.m.spawn("env", *[f"{name}={value}" for name, value in self.protocol.items()],
                                lab.KUBECTL, "attach", "-i", "listener", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL)
        attached.stdin.write("this\n")
        attached.stdin.flush()
        self.assertEqual(attached.stdout.readline(), "got this\n")
        attached.kill()

    def test_cp(self):
        with open(self.m.dir + "/up", "w") as file:
            file.write("up and down")
        self.kubectl("cp", self.m.dir + "/up", "daily:/tmp/up")
        self.kubectl("cp", "daily:/tmp/up", self.m.dir + "/down")
        self.assertEqual(open(self.m.dir + "/down").read(), "up and down")

    def test_port_forward(self):
        self.m.spawn("env", *[f"{name}={value}" for name, value in self.protocol.items()], lab.KUBECTL, "port-forward",
                     "deployment/web", "18080:80", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(2):
            wait_for("an answer", lambda: self.m.get_url("http://127.0.0.1:18080/").startswith("web-"), 15)


class StreamsBySpdy(Streams):
    """The same over SPDY, which older clients speak and newer ones fall back to."""

    protocol = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
    upgrade = "spdy/3.1"


class Drain(lab.Case):
    def test_cordon_drain_uncordon(self):
        self.m.deploy("web", 2)
        self.m.kubectl("cordon", "node")
        self.assertIn("SchedulingDisabled", self.m.out("get", "nodes"))
        before = set(self.m.out("get", "pods", "-o", "name").split())
        self.m.kubectl("drain", "node", "--ignore-daemonsets", "--timeout=40s", timeout=45)
        now = set(self.m.out("get", "pods", "-o", "name").split())
        self.assertFalse(before & now)
        self.m.kubectl("uncordon", "node")
        self.m.rolled_out("deployment/web")
