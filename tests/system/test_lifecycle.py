"""How containers end and come back, and what is left of all when mussel is taken away."""

import os

import lab
from lab import wait_for


class Ends(lab.Case):
    def first(self, name):
        return (self.m.pod(name)["status"].get("containerStatuses") or [{}])[0]

    def test_delete_is_graceful(self):
        self.m.sh(f"mkdir -p {self.m.dir}/notes")
        self.m.run_pod("polite", "trap 'echo bye > /notes/polite; exit 0' TERM; while :; do sleep 0.1; done", spec={
            "terminationGracePeriodSeconds": 20, "volumes": [{"name": "n", "hostPath": {"path": self.m.dir + "/notes"}}]},
            container={"volumeMounts": [{"name": "n", "mountPath": "/notes"}]})
        self.m.kubectl("delete", "pod", "polite", "--timeout=10s", timeout=15)
        self.assertEqual(self.m.sh(f"cat {self.m.dir}/notes/polite").strip(), "bye")
        self.assertIn("NotFound", self.m.kubectl("get", "pod", "polite", check=False).err)

    def test_who_does_not_listen_is_killed_after_its_grace(self):
        self.m.run_pod("deaf", "trap '' TERM; while :; do sleep 0.1; done", spec={"terminationGracePeriodSeconds": 2})
        self.m.kubectl("delete", "pod", "deaf", "--wait=false")
        self.assertIn("deletionTimestamp", self.m.pod("deaf")["metadata"])
        wait_for("its end", lambda: "NotFound" in self.m.kubectl("get", "pod", "deaf", check=False).err, 10)

    def test_a_crash_backs_off_with_reason_and_code(self):
        self.m.run_pod("crash", "echo attempt; exit 3", wait=False)
        def backs_off():
            status = self.first("crash")
            return status.get("state", {}).get("waiting", {}).get("reason") == "CrashLoopBackOff" and status
        status = wait_for("back-off", backs_off, 30)
        ended = status["lastState"]["terminated"]
        self.assertEqual((ended["exitCode"], ended["reason"]), (3, "Error"))
        wait_for("a restart", lambda: self.first("crash").get("restartCount", 0) >= 1, 30)
        self.assertEqual(self.m.out("logs", "--previous", "crash"), "attempt")
        self.assertIn("BackOff", self.m.out("get", "events", "--field-selector", "involvedObject.name=crash"))

    def test_restart_policies(self):
        self.m.run_pod("never", "exit 5", wait=False, spec={"restartPolicy": "Never"})
        self.m.run_pod("on-failure", "exit 0", wait=False, spec={"restartPolicy": "OnFailure"})
        self.assertEqual(self.m.finished("never")[0], "Failed")
        self.assertEqual(self.m.finished("on-failure")[0], "Succeeded")
        self.assertEqual(self.first("never")["state"]["terminated"]["exitCode"], 5)
        self.assertEqual(self.first("never")["restartCount"], 0)

    def test_a_missing_image_is_told(self):
        self.m.run_pod("absent", wait=False, container={"image": "mussel.test/none:1", "imagePullPolicy": "Never"})
        wait_for("the reason", lambda: self.first("absent").get("state", {}).get("waiting", {}).get("reason")
                 == "ErrImageNeverPull")

    def test_hooks(self):
        self.m.run_pod("hooked", "sleep 100000", container={"lifecycle": {
            "postStart": {"exec": {"command": ["touch", "/tmp/started"]}}}})
        self.assertEqual(self.m.out("exec", "hooked", "--", "ls", "/tmp"), "started")


class Outlives(lab.Case):
    """What happens to pods when mussel itself ends, by asking or by force."""

    shared = False

    def test_restart_and_kill9(self):
        self.m = self.machine().start()
        self.m.deploy("web", 2)
        self.m.kubectl("expose", "deployment", "web", "--port=80")
        self.m.run_pod("old", "echo hello; sleep 7777777")
        ip = self.m.out("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
        wait_for("an answer", lambda: self.m.get_url(f"http://{ip}/"), 10)
        def pids():
            return self.m.container_pids("httpd -f -v -p 80 -h /tmp/www"), self.m.container_pids("sleep 7777777")
        def state():
            pods = self.m.json("get", "pods")["items"]
            return sorted((p["metadata"]["uid"], p["status"]["podIP"], p["status"]["containerStatuses"][0]["containerID"],
                           p["status"]["containerStatuses"][0]["restartCount"]) for p in pods)
        before, known = pids(), state()
        self.assertEqual([len(each) for each in before], [2, 1])
        for end in (self.m.stop, self.m.kill9):
            end()
            self.assertEqual(pids(), before)
            self.assertTrue(self.m.get_url(f"http://{ip}/").startswith("web-"))
            self.m.start()
            self.assertEqual(pids(), before)
            self.assertEqual(state(), known)
            self.assertTrue(self.m.get_url(f"http://{ip}/").startswith("web-"))
            self.assertEqual(self.m.out("logs", "old"), "hello")
            wait_for("exec", lambda: self.m.out("exec", "old", "--", "echo", "there") == "there", 10)
        self.m.deploy("later", 1)

    def test_an_acknowledged_write_survives_kill9(self):
        self.m = lab.Machine(archives=[], flags=["--disable-agent"])
        self.m.start(ready=False)
        def up():
            return os.path.exists(self.m.kubeconfig) and self.m.kubectl("get", "namespace", "default")
        wait_for("the API", up)
        for number in range(3):
            self.m.kubectl("create", "configmap", f"kept-{number}", "--from-literal=a=b")
            self.m.kill9()
            self.m.start(ready=False)
            wait_for("the API", up)
            for each in range(number + 1):
                self.m.kubectl("get", "configmap", f"kept-{each}")

    def test_killall_leaves_nothing(self):
        self.m = self.machine()
        self.m.start()
        self.m.deploy("web", 2)
        self.m.kubectl("expose", "deployment", "web", "--port=80", "--type=NodePort")
        self.m.run_pod("mounts", spec={"volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}]},
                       container={"volumeMounts": [{"name": "m", "mountPath": "/m"}]})
        self.assertNotEqual(self.m.killall().code, 0, "refuses while the server runs")
        self.assertTrue(self.m.running())
        self.m.stop()
        done = self.m.killall()
        self.assertEqual(done.code, 0, done)
        self.assertEqual(self.m.leftovers(), [])
        self.assertTrue(os.path.isdir(self.m.data + "/server/db"), "data stays")
