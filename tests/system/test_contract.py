"""Flags, environment and config file: what other things rely on. And the starts that must be refused."""

import os
import subprocess

import lab
from lab import wait_for


class Settings(lab.Case):
    shared = False

    def test_config_file_environment_and_flags(self):
        self.m = lab.Machine(archives=[], env={"MUSSEL_NODE_LABEL": "from=env", "MUSSEL_SERVICE_CIDR": "10.99.0.0/16"})
        with open(self.m.dir + "/config.yaml", "w") as file:
            file.write("node-name: from-file\nwrite-kubeconfig-mode: '0640'\ncluster-domain: example.org\n"
                       "tls-san: [lab.example]\nnode-taint: ['lab=yes:PreferNoSchedule']\n")
        self.m.start("--config", self.m.dir + "/config.yaml", "--node-name", "from-flag")
        node = self.m.json("get", "nodes")["items"][0]
        self.assertEqual(node["metadata"]["name"], "from-flag")
        self.assertEqual(node["metadata"]["labels"]["from"], "env")
        self.assertIn({"key": "lab", "value": "yes", "effect": "PreferNoSchedule"}, node["spec"]["taints"])
        self.assertEqual(self.m.out("get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"), "10.99.0.1")
        self.assertEqual(self.m.sh(f"stat -c %a {self.m.kubeconfig}").strip(), "640")
        self.m.exec("curl", "-sS", "-m", "5", "--resolve", "lab.example:6443:127.0.0.1", "--cacert",
                    self.m.data + "/server/tls/server-ca.crt", "https://lab.example:6443/livez")

    def test_arguments_for_components(self):
        self.m = lab.Machine()
        folder = self.m.data + "/agent/etc/kubelet.conf.d"
        os.makedirs(folder)
        with open(folder + "/10-own.conf", "w") as file:
            file.write("kind: KubeletConfiguration\nmaxPods: 11\nsystemReserved: {cpu: 250m}\n")
        with open(self.m.dir + "/config.yaml", "w") as file:
            file.write("kubelet-arg: ['max-pods=37', 'kube-reserved=cpu=250m,memory=256Mi']\n"
                       "kube-controller-arg: node-cidr-mask-size=26\n")
        self.m.start("--config", self.m.dir + "/config.yaml",
                     "--kube-apiserver-arg", "default-not-ready-toleration-seconds=33",
                     "--kube-apiserver-arg=service-node-port-range=20000-20010", "--kube-apiserver-arg=anonymous-auth=false",
                     "--etcd-arg", "heartbeat-interval=500", "--kube-scheduler-arg=v=2", "--pause-image", "any/pause:1",
                     "--disable-network-policy", "--write-kubeconfig-name", "edge", "--write-kubeconfig-group", "adm",
                     "--write-kubeconfig-mode", "640")
        node = self.m.json("get", "nodes")["items"][0]
        capacity, allocatable = node["status"]["capacity"], node["status"]["allocatable"]
        self.assertEqual((capacity["pods"], allocatable["pods"]), ("37", "37"))
        self.assertEqual(allocatable["cpu"], f"{int(capacity['cpu']) * 1000 - 500}m")
        less = int(capacity["memory"].removesuffix("Ki")) - int(allocatable["memory"].removesuffix("Ki"))
        self.assertGreaterEqual(less, 256 << 10)
        self.assertTrue(node["spec"]["podCIDR"].endswith("/26"), node["spec"])
        self.assertEqual(node["metadata"]["labels"]["node.kubernetes.io/instance-type"], "mussel")
        self.m.run_pod("one", "sleep 1000000")
        self.assertRegex(self.m.sh(f"cd {self.m.data}/agent/log/containers && ls && head -c0 *.log").strip(),
                         r"^one_default_[a-z]+-[0-9a-f]{64}\.log$")
        tolerated = {t["key"]: t["tolerationSeconds"] for t in self.m.pod("one")["spec"]["tolerations"]}
        self.assertEqual(tolerated, {"node.kubernetes.io/not-ready": 33, "node.kubernetes.io/unreachable": 300})
        self.m.kubectl("create", "service", "nodeport", "web", "--tcp=80")
        port = self.m.json("get", "service", "web")["spec"]["ports"][0]["nodePort"]
        self.assertTrue(20000 <= port <= 20010, port)
        code = self.m.exec("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "https://127.0.0.1:6443/livez").out
        self.assertEqual(code, "401")
        self.assertEqual(self.m.sh(f"stat -c '%a %G' {self.m.kubeconfig}").strip(), "640 adm")
        self.assertEqual(self.m.out("config", "current-context"), "edge")
        tool = self.m.exec(lab.BINARY, "kubectl", "get", "nodes", "-o", "name", env={"KUBECONFIG": self.m.kubeconfig})
        self.assertEqual(tool.out.strip(), f"node/{node['metadata']['name']}")
        self.assertIn("/mussel.sock", self.m.sh(f"cat {self.m.data}/agent/etc/crictl.yaml"))
        for line in ["--kube-scheduler-arg v=2 has no effect here", "--pause-image has no effect: there is no pause image"]:
            self.assertIn(line, self.m.log())
        self.assertNotIn("max-pods", self.m.log())
        # Services are left to somebody else, and what was made for them goes.
        self.assertIn("KUBE-SERVICES", self.m.sh("iptables-save"))
        self.m.stop()
        self.m.start("--disable-kube-proxy")
        self.assertNotIn("KUBE-", self.m.sh("iptables-save"))

    def test_another_port_and_no_agent(self):
        self.m = lab.Machine(archives=[], flags=["--disable-agent", "--https-listen-port", "7443", "--advertise-port", "8443"])
        self.m.start(ready=False)
        wait_for("the API", lambda: os.path.exists(self.m.kubeconfig) and self.m.kubectl("get", "namespace", "default"))
        self.assertIn("7443", open(self.m.kubeconfig).read())
        self.assertEqual(self.m.json("get", "nodes")["items"], [])
        slices = self.m.json("get", "endpointslices", "-n", "default", "kubernetes")
        self.assertEqual([port["port"] for port in slices["ports"]], [8443])


class Refused(lab.Case):
    """A wrong start: a clear line, exit code 1 or 2, nothing started and nothing written."""

    @classmethod
    def setUpClass(cls):
        cls.m = lab.Machine(archives=[])

    def refused(self, *flags, says, env=None, command=None):
        done = self.m.exec(*(command or self.m.command(*flags)), env=env, check=False, timeout=20)
        self.assertIn(done.code, (1, 2), done)
        self.assertIn(says, done.err + done.out)
        self.assertNotIn("panicked", done.err)
        self.assertFalse(os.path.exists(self.m.kubeconfig))
        return done

    def test_unknown_flag(self):
        self.refused("--no-such-flag", says="--no-such-flag")

    def test_bad_values(self):
        for flag, value in [("--https-listen-port", "70000"), ("--cluster-cidr", "10.42"), ("--node-ip", "nowhere"),
                            ("--service-node-port-range", "9-1"), ("--node-taint", "a=b"), ("--service-cidr", "x"),
                            ("--kubelet-arg", "max-pods=many"), ("--kube-apiserver-arg", "encryption-provider-config=/x"),
                            ("--etcd-arg", "heartbeat-interval=0")]:
            self.refused(f"{flag}={value}", says=flag)

    def test_flags_that_do_not_go_together(self):
        self.refused("--cluster-reset-restore-path", "/x", says="needs --cluster-reset")
        self.refused("--cluster-reset", "--server", "https://x:6443", says="take --server away")
        self.refused("--disable-etcd", "--server", "https://x:6443", says="every server keeps the store")

    def test_bad_value_in_the_environment(self):
        self.refused(says="--https-listen-port", env={"MUSSEL_HTTPS_LISTEN_PORT": "none"})

    def test_bad_config_file(self):
        with open(self.m.dir + "/bad.yaml", "w") as file:
            file.write("node-name: [\n")
        self.refused("--config", self.m.dir + "/bad.yaml", says="bad.yaml")

    def test_data_dir_that_cannot_be(self):
        self.m.sh(f"echo x > {self.m.dir}/file")
        self.refused("--data-dir", self.m.dir + "/file/data", says="not writable")
        self.assertEqual(self.m.sh(f"cat {self.m.dir}/file").strip(), "x")

    def test_not_root(self):
        self.refused(says="must be root", command=["setpriv", "--reuid=65534", "--clear-groups", *self.m.command()])

    def test_port_taken(self):
        other = self.m.spawn("python3", "-c", "import socket,time; s=socket.create_server(('0.0.0.0', 6443)); "
                             "print('up', flush=True); time.sleep(1000)", stdout=subprocess.PIPE)
        other.stdout.readline()
        self.refused(says="port 6443")
        self.m.sh("pkill -f [c]reate_server")  # In the machine's own process namespace.
        other.wait(10)


class SecondAndCorrupt(lab.Case):
    shared = False

    def test_a_second_server_on_the_same_data(self):
        self.m = lab.Machine(archives=[]).start()
        done = self.m.exec(*self.m.command("--https-listen-port=7443"), check=False, timeout=20)
        self.assertIn(done.code, (1, 2), done)
        self.assertIn(self.m.data, done.err + done.out)
        self.m.kubectl("create", "configmap", "still-works")

    def test_a_damaged_store_is_refused_and_kept(self):
        self.m = lab.Machine(archives=[]).start()
        self.m.kubectl("create", "configmap", "precious")
        self.m.stop()
        files = self.m.sh(f"find {self.m.data}/server/db -name db -type f").split()
        self.assertEqual(len(files), 1, files)
        with open(files[0], "r+b") as file:
            good = file.read()
            file.seek(0)
            file.write(b"\xa5" * len(good))
        done = self.m.exec(*self.m.command(), check=False, timeout=30)
        self.assertEqual(done.code, 1, done)
        self.assertNotIn("panicked", done.err)
        # One line with the file and what to do.
        last = (done.out + done.err).strip().splitlines()[-1]
        self.assertIn(self.m.data + "/server/db", last)
        self.assertIn("restore it from a backup", last)
        with open(files[0], "rb") as file:
            self.assertEqual(file.read(), b"\xa5" * len(good), "the damaged file is as it was")
        with open(files[0], "wb") as file:
            file.write(good)
        self.m.start()
        self.m.kubectl("get", "configmap", "precious")
