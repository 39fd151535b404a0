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

    def test_another_port_and_no_agent(self):
        self.m = lab.Machine(archives=[], flags=["--disable-agent", "--https-listen-port", "7443"])
        self.m.start(ready=False)
        wait_for("the API", lambda: os.path.exists(self.m.kubeconfig) and self.m.kubectl("get", "namespace", "default"))
        self.assertIn("7443", open(self.m.kubeconfig).read())
        self.assertEqual(self.m.json("get", "nodes")["items"], [])


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
                            ("--service-node-port-range", "9-1"), ("--node-taint", "a=b"), ("--service-cidr", "x")]:
            self.refused(f"{flag}={value}", says=flag)

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
