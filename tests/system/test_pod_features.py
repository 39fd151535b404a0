"""What a Pod may ask for, seen from inside its containers."""

import glob
import json

import lab
from lab import BUSYBOX, WEB, wait_for


class PodFeatures(lab.Case):
    def test_env_from_all_sources(self):
        self.m.kubectl("create", "configmap", "settings", "--from-literal=color=blue", "--from-literal=size=9")
        self.m.kubectl("create", "secret", "generic", "keys", "--from-literal=password=s3cret")
        self.m.run_pod("env", 'echo "$PLAIN $JOINED $color $PASSWORD $POD $IP $CPU"', wait=False, container={
            "resources": {"limits": {"cpu": "2", "memory": "64Mi"}},
            "env": [
                {"name": "PLAIN", "value": "one"}, {"name": "JOINED", "value": "$(PLAIN)+two"},
                {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
            "envFrom": [{"configMapRef": {"name": "settings"}}]}, spec={"restartPolicy": "Never"})
        phase, out = self.m.finished("env")
        ip = self.m.pod("env")["status"]["podIP"]
        self.assertEqual((phase, out), ("Succeeded", f"one one+two blue s3cret env {ip} 2"))

    def test_service_environment(self):
        self.m.run_pod("svc-env", "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT", wait=False,
                       spec={"restartPolicy": "Never"})
        self.assertEqual(self.m.finished("svc-env")[1], "10.43.0.1:443")

    def test_volumes(self):
        self.m.kubectl("create", "configmap", "files", "--from-literal=a.txt=hello")
        self.m.kubectl("create", "secret", "generic", "hidden", "--from-literal=b.txt=secret")
        host = self.m.dir + "/shared"
        self.m.sh(f"mkdir -p {host} && echo from-host > {host}/file")
        self.m.run_pod("volumes", spec={"volumes": [
            {"name": "config", "configMap": {"name": "files"}},
            {"name": "secret", "secret": {"secretName": "hidden", "defaultMode": 0o400}},
            {"name": "empty", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "host", "hostPath": {"path": host, "type": "Directory"}}]},
            container={"volumeMounts": [
                {"name": "config", "mountPath": "/config"}, {"name": "secret", "mountPath": "/secret", "readOnly": True},
                {"name": "empty", "mountPath": "/empty"}, {"name": "memory", "mountPath": "/memory"},
                {"name": "host", "mountPath": "/host"}]})
        def inside(script):
            return self.m.out("exec", "volumes", "--", "sh", "-c", script)
        self.assertEqual(inside("cat /config/a.txt /secret/b.txt"), "hellosecret")
        self.assertEqual(inside("stat -L -c %a /secret/b.txt"), "400")
        self.assertEqual(inside("echo x > /empty/f && cat /empty/f"), "x")
        self.assertIn("tmpfs", inside("grep ' /memory ' /proc/mounts"))
        self.assertEqual(inside("cat /host/file; echo from-pod > /host/back"), "from-host")
        self.assertEqual(self.m.sh(f"cat {host}/back").strip(), "from-pod")
        # A changed ConfigMap reaches the volume of a running pod.
        self.m.kubectl("patch", "configmap", "files", "-p", '{"data":{"a.txt":"changed"}}')
        wait_for("the new content", lambda: inside("cat /config/a.txt") == "changed", 90, 0.5)

    def test_service_account_token_reaches_the_api(self):
        self.m.run_pod("token")
        script = ("cd /var/run/secrets/kubernetes.io/serviceaccount; ls -A ca.crt namespace token; cat namespace; "
                  "echo; cut -d. -f2 token")
        out = self.m.out("exec", "token", "--", "sh", "-c", script)
        self.assertIn("\ndefault\n", out)
        token = self.m.out("exec", "token", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
        self.assertEqual(len(token.split(".")), 3)
        def ask(path):
            return json.loads(self.m.exec("curl", "-sk", "-m", "5", "-H", "Authorization: Bearer " + token,
                                          "https://10.43.0.1" + path).out)
        self.assertIn("system:serviceaccount:default:default", ask("/api/v1/secrets")["message"])
        self.assertEqual(ask("/version")["minor"], "36")

    def test_init_containers_run_first_and_in_order(self):
        def init(name, script):
            return {"name": name, "image": BUSYBOX, "command": ["sh", "-c", script],
                    "volumeMounts": [{"name": "work", "mountPath": "/steps"}]}
        self.m.run_pod("inits", "cat /steps/log", wait=False, container={
            "volumeMounts": [{"name": "work", "mountPath": "/steps"}]}, spec={
            "restartPolicy": "Never", "volumes": [{"name": "work", "emptyDir": {}}],
            "initContainers": [init("one", "echo 1 >> /steps/log"), init("two", "echo 2 >> /steps/log")]})
        self.assertEqual(self.m.finished("inits"), ("Succeeded", "1\n2"))

    def test_a_failing_init_container_holds_the_pod_back(self):
        self.m.run_pod("held", wait=False, spec={"restartPolicy": "Never", "initContainers": [
            {"name": "bad", "image": BUSYBOX, "command": ["sh", "-c", "exit 4"]}]})
        wait_for("the pod to fail", lambda: self.m.pod("held")["status"]["phase"] == "Failed")
        status = self.m.pod("held")["status"]
        self.assertEqual(status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 4)
        self.assertIn("waiting", status["containerStatuses"][0]["state"])

    def test_command_and_args(self):
        self.m.run_pod("args", wait=False, spec={"restartPolicy": "Never"}, container={
            "command": ["echo", "$(WORD)"], "args": ["and", "$$(WORD)"], "env": [{"name": "WORD", "value": "first"}],
            "workingDir": "/tmp"})
        self.assertEqual(self.m.finished("args"), ("Succeeded", "first and $(WORD)"))

    def test_limits_are_seen_in_the_cgroup(self):
        self.m.run_pod("limited", container={"resources": {
            "requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"cpu": "250m", "memory": "32Mi"}}})
        pod = self.m.pod("limited")
        self.assertEqual(pod["status"]["qosClass"], "Burstable")
        uid = pod["metadata"]["uid"]
        container = pod["status"]["containerStatuses"][0]["containerID"].split("//")[1]
        def read(name):
            found = glob.glob(f"{lab.CGROUPS}/*{self.m.cgroup_root}/kubepods/burstable/pod{uid}/{container}/{name}")
            found += glob.glob(f"{lab.CGROUPS}{self.m.cgroup_root}/kubepods/burstable/pod{uid}/{container}/{name}")
            return open(found[0]).read().split() if found else None
        memory = read("memory.limit_in_bytes") or read("memory.max")
        self.assertEqual(memory, [str(32 << 20)])
        quota = read("cpu.cfs_quota_us") or read("cpu.max")[:1]
        self.assertEqual(quota, ["25000"])

    def test_a_container_over_its_memory_is_killed(self):
        self.m.run_pod("greedy", "x=a; while :; do x=$x$x; done", wait=False, spec={"restartPolicy": "Never"},
                       container={"resources": {"limits": {"memory": "24Mi"}}})
        wait_for("the pod to fail", lambda: self.m.pod("greedy")["status"]["phase"] == "Failed")
        ended = self.m.pod("greedy")["status"]["containerStatuses"][0]["state"]["terminated"]
        self.assertEqual((ended["reason"], ended["exitCode"]), ("OOMKilled", 137))

    def test_host_network(self):
        self.m.run_pod("onhost", spec={"hostNetwork": True})
        self.assertEqual(self.m.pod("onhost")["status"]["podIP"], "192.168.77.2")
        self.assertIn("eth0", self.m.out("exec", "onhost", "--", "ip", "-4", "addr"))
        self.assertIn("192.168.77.2", self.m.out("exec", "onhost", "--", "ip", "-4", "addr"))

    def test_host_name_and_resolv_conf(self):
        self.m.run_pod("named")
        self.assertEqual(self.m.out("exec", "named", "--", "hostname"), "named")
        text = self.m.out("exec", "named", "--", "cat", "/etc/resolv.conf")
        self.assertIn("nameserver 10.43.0.10", text)
        self.assertIn("search default.svc.cluster.local svc.cluster.local cluster.local", text)
        self.assertIn(self.m.pod("named")["status"]["podIP"], self.m.out("exec", "named", "--", "cat", "/etc/hosts"))

    def test_host_port(self):
        self.m.run_pod("ported", container={"image": WEB, "command": ["/web"],
                                            "ports": [{"containerPort": 80, "hostPort": 8088}]})
        wait_for("an answer", lambda: self.m.get_url("http://192.168.77.2:8088/") == "ported", 10)


class Security(lab.Case):
    def inside(self, name, script):
        return self.m.out("exec", name, "--", "sh", "-c", script)

    def test_user_and_groups(self):
        self.m.run_pod("user", spec={
            "securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000, "supplementalGroups": [4000]},
            "volumes": [{"name": "v", "emptyDir": {}}]},
            container={"volumeMounts": [{"name": "v", "mountPath": "/v"}]})
        self.assertEqual(self.inside("user", "id -u; id -g").split(), ["1000", "3000"])
        self.assertTrue({"2000", "3000", "4000"} <= set(self.inside("user", "id -G").split()))
        self.assertEqual(self.inside("user", "touch /v/f && stat -c %g /v/f"), "2000")
        token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
        self.assertEqual(self.inside("user", f"stat -L -c '%a %u %g' {token}"), "640 1000 2000")

    def test_run_as_non_root_refuses_root(self):
        self.m.run_pod("nonroot", wait=False, spec={"securityContext": {"runAsNonRoot": True}})
        def reason():
            states = self.m.pod("nonroot")["status"].get("containerStatuses", [])
            return states and states[0]["state"].get("waiting", {}).get("reason") == "CreateContainerConfigError"
        wait_for("the refusal", reason)

    def test_capabilities(self):
        self.m.run_pod("plain")
        self.m.run_pod("capable", container={"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}})
        self.m.run_pod("bare", container={"securityContext": {"capabilities": {"drop": ["ALL"]}}})
        change = "ip link set lo down && ip link set lo up && echo done || echo refused"
        self.assertIn("refused", self.inside("plain", change))
        self.assertIn("done", self.inside("capable", change))
        self.assertIn("CapEff:\t0000000000000000", self.inside("bare", "cat /proc/self/status"))

    def test_privileged(self):
        self.m.run_pod("mighty", container={"securityContext": {"privileged": True}})
        self.assertEqual(self.inside("mighty", "mount -t tmpfs x /tmp && echo mounted"), "mounted")
        self.assertTrue(int(self.inside("mighty", "ls /dev | wc -l")) > 20)

    def test_read_only_root(self):
        self.m.run_pod("frozen", container={"securityContext": {"readOnlyRootFilesystem": True}})
        self.assertEqual(self.inside("frozen", "touch /f 2>/dev/null || echo refused"), "refused")

    def test_masked_paths_and_no_new_privileges(self):
        self.m.run_pod("masked", container={"securityContext": {"allowPrivilegeEscalation": False}})
        self.assertIn("NoNewPrivs:\t1", self.inside("masked", "cat /proc/self/status"))
        self.assertEqual(self.inside("masked", "ls /sys/firmware | wc -l"), "0")
        self.assertEqual(self.inside("masked", "echo 1 2>&1 > /proc/sys/kernel/panic || echo refused")[-7:], "refused")


class Probes(lab.Case):
    def probed(self, name, script, **container):
        self.m.run_pod(name, script, container=container, wait=False)

    def ready(self, name):
        return any(c["type"] == "Ready" and c["status"] == "True"
                   for c in self.m.pod(name)["status"].get("conditions", []))

    def restarts(self, name):
        return self.m.pod(name)["status"].get("containerStatuses", [{}])[0].get("restartCount", 0)

    def test_readiness_by_exec_goes_both_ways(self):
        self.probed("ready", "sleep 100000", readinessProbe={
            "exec": {"command": ["test", "-e", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 1})
        wait_for("it to run", lambda: self.m.pod("ready")["status"]["phase"] == "Running")
        self.assertFalse(self.ready("ready"))
        self.m.kubectl("exec", "ready", "--", "touch", "/tmp/ok")
        wait_for("readiness", lambda: self.ready("ready"), 10)
        self.m.kubectl("exec", "ready", "--", "rm", "/tmp/ok")
        wait_for("no readiness", lambda: not self.ready("ready"), 10)
        self.assertEqual(self.restarts("ready"), 0)

    def test_readiness_by_http_and_tcp(self):
        probe = {"periodSeconds": 1}
        for name, how in [("http", {"httpGet": {"path": "/index.html", "port": 80}}), ("tcp", {"tcpSocket": {"port": 80}})]:
            self.probed("by-" + name, "sleep 1; exec /web", image=WEB, readinessProbe={**probe, **how})
        for name in ("by-http", "by-tcp"):
            wait_for("readiness", lambda: self.ready(name), 20)
        self.probed("wrong", "exec /web", image=WEB, readinessProbe={"httpGet": {"path": "/none", "port": 80}, **probe})
        wait_for("the event", lambda: "404" in self.m.out(
            "get", "events", "--field-selector", "involvedObject.name=wrong,reason=Unhealthy"), 20)
        self.assertFalse(self.ready("wrong"))

    def test_liveness_restarts(self):
        self.probed("dying", "sleep 100000", livenessProbe={
            "exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1})
        wait_for("a restart", lambda: self.restarts("dying") >= 1, 30)
        events = self.m.out("get", "events", "--field-selector", "involvedObject.name=dying")
        self.assertIn("Unhealthy", events)
        self.assertIn("Killing", events)

    def test_startup_holds_liveness_back(self):
        self.probed("slow", "sleep 3; touch /tmp/up; sleep 100000",
                    startupProbe={"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 20},
                    livenessProbe={"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 1})
        wait_for("readiness", lambda: self.ready("slow"), 20)
        self.assertEqual(self.restarts("slow"), 0)


class Seccomp(lab.Case):
    """Profiles hold for the first process and for every exec, and leave no capability behind."""

    status = "sed -n 's/^Seccomp:[[:space:]]*//p; s/^CapEff:[[:space:]]*//p' /proc/self/status"

    def seen(self, pod):
        """(seccomp mode, capabilities) of the first process and of an exec."""
        def words(text):
            found = text.split()
            return found[1], found[0]
        return words(self.m.out("logs", pod)), words(self.m.out("exec", pod, "--", "sh", "-c", self.status))

    def run_with(self, name, **context):
        self.m.run_pod(name, f"{self.status}; sleep 100000", container={"securityContext": context})
        wait_for("its log", lambda: len(self.m.out("logs", name).split()) == 2)
        return self.seen(name)

    def test_runtime_default(self):
        plain = self.run_with("no-profile")
        self.assertEqual([mode for mode, _ in plain], ["0", "0"])
        default = {"seccompProfile": {"type": "RuntimeDefault"}}
        filtered = self.run_with("default", **default)
        self.assertEqual([mode for mode, _ in filtered], ["2", "2"])
        self.assertEqual([caps for _, caps in filtered], [caps for _, caps in plain], "capabilities are the same")
        user = self.run_with("default-user", runAsUser=1000, **default)
        self.assertEqual(user, (("2", "0" * 16), ("2", "0" * 16)))
        locked = self.run_with("default-locked", allowPrivilegeEscalation=False, **default)
        self.assertEqual([mode for mode, _ in locked], ["2", "2"])
        self.assertEqual(self.run_with("privileged", privileged=True, seccompProfile={"type": "Unconfined"})[0][0], "0")
        # Not even the right capability opens a call that nobody needs; others it does open.
        keys = "exec 2>&1; unshare -m true && echo unshared; true"
        self.m.run_pod("unshares", container={"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}, **default}})
        self.assertIn("unshared", self.m.out("exec", "unshares", "--", "sh", "-c", keys))
        self.assertIn("ermitted", self.m.out("exec", "default", "--", "sh", "-c", keys))

    def test_a_profile_of_the_node(self):
        folder = self.m.data + "/agent/kubelet/seccomp"
        self.m.sh(f"mkdir -p {folder}/team")
        with open(folder + "/team/no-mkdir.json", "w") as file:
            json.dump({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}, file)
        local = {"type": "Localhost", "localhostProfile": "team/no-mkdir.json"}
        self.assertEqual([mode for mode, _ in self.run_with("local", seccompProfile=local)], ["2", "2"])
        done = self.m.kubectl("exec", "local", "--", "sh", "-c", "touch /tmp/a && mkdir /tmp/b", check=False)
        self.assertIn("No space left on device", done.err)
        self.m.run_pod("lost", wait=False, container={"securityContext": {
            "seccompProfile": {"type": "Localhost", "localhostProfile": "nowhere.json"}}})
        def waiting():
            statuses = self.m.pod("lost")["status"].get("containerStatuses") or [{}]
            state = statuses[0].get("state", {}).get("waiting", {})
            return state.get("reason") == "CreateContainerError" and state["message"]
        self.assertIn("nowhere.json", wait_for("the reason", waiting))

    def test_kernel_settings_are_the_pods_own(self):
        own = [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "7"}]
        self.m.run_pod("own-setting", spec={"securityContext": {"sysctls": own}})
        read = ["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]
        self.assertEqual(self.m.out("exec", "own-setting", "--", *read), "7")
        self.assertNotEqual(self.m.exec(*read).out.strip(), "7")
        for name, setting in [("machines", "kernel.core_pattern"), ("unsafe", "net.core.somaxconn")]:
            value = self.m.sh("cat /proc/sys/" + setting.replace(".", "/")).strip()
            self.m.run_pod(name, wait=False, spec={"securityContext": {"sysctls": [{"name": setting, "value": value}]}})
            status = wait_for("the refusal", lambda: self.m.pod(name)["status"].get("reason") and self.m.pod(name)["status"])
            self.assertEqual((status["phase"], status["reason"]), ("Failed", "SysctlForbidden"))
            self.assertIn(f'forbidden sysctl: "{setting}" not allowlisted', status["message"])
