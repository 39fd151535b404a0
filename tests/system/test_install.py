"""install.sh on a machine without systemd: a prebuilt binary becomes a Ready node, and goes away without a trace.

What install.sh writes to stays on the test machine: it has folders of its own where a system has its state. A machine
with systemd is in tests/machine.
"""

import os
import shutil
import subprocess

import lab
from lab import wait_for
from lab.machine import cgroups

INSTALL = os.path.join(lab.ROOT, "install.sh")

# All that a machine has, for a comparison. Kernel settings stay until a reboot, as operations.md says.
STATE = r"""
find /etc /usr/local /var/lib /var/log /run /root -xdev | sort
echo == mounts; awk '{print $5}' /proc/self/mountinfo | sort
echo == links; ls /sys/class/net
echo == routes; ip route; ip rule
echo == rules; { iptables-save; ip6tables-save; } | grep -e '^-A' -e '^:MUSSEL' -e '^:KUBE' || true
echo == processes; ps -eo args --no-headers | grep -v -e '^sh -ec' -e '^ps ' -e '^sort$' -e '^grep ' -e '^find ' | sort
"""


class WithoutSystemd(lab.Case):
    shared = False
    time_limit = 240

    def setUp(self):
        super().setUp()
        self.m = lab.Machine(archives=[])
        self.m.kubeconfig = "/etc/mussel/mussel.yaml"
        self.m.log_path = self.m.dir + "/root/var/log/mussel.log"
        # Copies of what the system has; a layer of mussel's own may not lie on an overlay, so /var/lib is a plain folder.
        mounts = []
        for path in ("/etc", "/usr/local"):
            upper, work = (f"{self.m.dir}/root{path}.{part}" for part in ("upper", "work"))
            mounts.append(f"mkdir -p {upper} {work}; mount -t overlay overlay -o lowerdir={path},upperdir={upper},workdir={work} {path}")
        for path in ("/var/lib", "/var/log", "/root"):
            mounts.append(f"mkdir -p {self.m.dir}/root{path}; mount --bind {self.m.dir}/root{path} {path}")
        # The overlay hides the mount on resolv.conf that the machine was made with.
        mounts.append("rm -f /etc/resolv.conf; cp /run/resolv.conf /etc/resolv.conf")
        self.m.sh("\n".join(mounts))
        self.m.sh("mkdir -p /var/lib/mussel/agent/images")
        for archive in lab.image_archives():
            shutil.copy(archive, f"{self.m.dir}/root/var/lib/mussel/agent/images/")

    def install(self, *flags, check=True, **env):
        env = {"INSTALL_MUSSEL_BIN": lab.BINARY, "INSTALL_MUSSEL_SKIP_DEPS": "true",
               "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + os.path.dirname(lab.KUBECTL), **env}
        return self.m.exec("sh", INSTALL, "--cgroup-root", self.m.cgroup_root, *flags, env=env, timeout=200, check=check)

    def server(self):
        return self.m.exec("pgrep", "-x", "-f", "/usr/local/bin/mussel server .*").out.split()[0]

    def test_install_use_and_uninstall(self):
        m = self.m
        m.sh("rm -rf /var/lib/mussel.kept; mv /var/lib/mussel /var/lib/mussel.kept")
        m.sh("cp /etc/resolv.conf \"/root/it's here\"")  # Words with quotes and blanks must reach the server whole.
        before = m.sh(STATE).splitlines()
        m.sh("cp -a /var/lib/mussel.kept /var/lib/mussel")
        done = self.install("--resolv-conf", "/root/it's here", MUSSEL_NODE_NAME="edge-1")
        self.assertIn("ready. Next:", done.out)
        self.assertEqual(m.out("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"), "edge-1")
        self.assertEqual(m.sh("/etc/init.d/mussel status").strip(), "mussel is running")
        self.assertEqual(m.sh("stat -c %a /etc/mussel/mussel.yaml /etc/mussel/mussel.env").split(), ["600", "600"])
        wait_for("the default service account", lambda: m.kubectl("get", "serviceaccount", "default"))
        m.deploy("web", 1)
        m.kubectl("expose", "deployment", "web", "--port=80")
        ip = m.out("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
        wait_for("an answer", lambda: m.get_url(f"http://{ip}/"))
        m.run_pod("old", "sleep 7777777")
        old = m.container_pids("sleep 7777777")

        # A second time: nothing changed, so nothing restarts.
        server = self.server()
        self.install("--resolv-conf", "/root/it's here", MUSSEL_NODE_NAME="edge-1")
        self.assertEqual(self.server(), server)

        # A restart and a crash: the loop starts it again, and the containers do not notice.
        m.sh("/etc/init.d/mussel restart", timeout=60)
        wait_for("the server", lambda: self.server() != server and m.kubectl("get", "--raw", "/readyz"), 60)
        server = self.server()
        m.sh(f"kill -9 {server}")
        wait_for("the server after a crash", lambda: self.server() != server and m.kubectl("get", "--raw", "/readyz"), 60)
        self.assertEqual(m.container_pids("sleep 7777777"), old)
        self.assertTrue(m.get_url(f"http://{ip}/"))

        m.sh("mussel-uninstall.sh", timeout=120)
        after = m.sh(STATE).splitlines()
        self.assertEqual(sorted(set(after) - set(before)), [], "left behind")
        self.assertEqual(sorted(set(before) - set(after)), [], "gone")
        self.assertEqual(cgroups(m.cgroup_root), [])

    def test_refusals_write_nothing(self):
        before = self.m.sh(STATE)
        for flags, env, says in [(["agency"], {}, "unknown command agency"),
                                 ([], {"INSTALL_MUSSEL_NAME": "a/b"}, "INSTALL_MUSSEL_NAME"),
                                 ([], {"INSTALL_MUSSEL_BIN": "/nonexistent"}, "/nonexistent does not exist")]:
            env = {"INSTALL_MUSSEL_BIN": lab.BINARY, "INSTALL_MUSSEL_SKIP_DEPS": "true", **env}
            done = self.m.exec("sh", INSTALL, *flags, env=env, timeout=60, check=False)
            self.assertEqual(done.code, 1, done)
            self.assertIn(says, done.err)
        done = self.m.exec("setpriv", "--reuid=65534", "--clear-groups", "sh", INSTALL, check=False)
        self.assertIn("must be root", done.err)
        self.assertEqual(self.m.sh(STATE), before)


class Scripts(lab.Case):
    @classmethod
    def setUpClass(cls):
        pass

    @classmethod
    def tearDownClass(cls):
        pass

    def test_they_are_posix(self):
        found = lab.run(["git", "-C", lab.ROOT, "ls-files", "*.sh", ".ci/run"]).out.split()
        self.assertIn("install.sh", found)
        for script in found:
            lab.run(["sh", "-n", os.path.join(lab.ROOT, script)])
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", "-s", "sh", "-S", "warning", *found], cwd=lab.ROOT, check=True, timeout=60)
