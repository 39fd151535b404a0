"""A machine, made of namespaces: its own network, mounts, processes and host name.

The real binary runs in it as root, with real containers. The machine's veth leads to a second network namespace, the
outside, where a registry or a client may live; nothing touches the network of the machine that runs the tests. The
process namespace makes the clean-up certain: when its first process is killed, all that ran in it is gone.

Every wait has a deadline and every subprocess a time-out. Only Python's standard library is used.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from lab.base import (BINARY, BUSYBOX, CGROUPS, KUBECTL, PATIENCE, WEB, Failed, image_archives, run, wait_for)

# The first process of a machine: collects what others leave behind, as any init does.
INIT = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
print("up", flush=True)
while True:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    signal.sigwait([signal.SIGCHLD])
"""


def namespace(*flags):
    """A process that holds new namespaces and does nothing."""
    process = subprocess.Popen(["unshare", *flags, sys.executable, "-c", INIT], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    if process.stdout.readline() != "up\n":
        raise Failed("unshare: " + process.stderr.read())
    return process


class Machine:
    """One machine, alone with an outside of its own, or on a link of a network. `start` runs mussel on it."""

    def __init__(self, name="node", archives=None, flags=(), env=None, link=None, role="server"):
        self.name, self.flags, self.env = name, list(flags), dict(env or {})
        self.dir = tempfile.mkdtemp(prefix="mussel-lab-")
        self.id = os.path.basename(self.dir).removeprefix("mussel-lab-")
        self.data, self.run_dir = self.dir + "/data", self.dir + "/run"
        self.kubeconfig, self.log_path = self.dir + "/kubeconfig.yaml", self.dir + "/mussel.log"
        self.cgroup_root = "/mussel-lab-" + self.id
        self.role, self.ip = role, "192.168.77.2"
        self.server, self.outside, self.wire = None, None, None
        self.others, self.off = [], None
        self._up(link)
        for archive in image_archives() if archives is None else archives:
            os.makedirs(self.data + "/agent/images", exist_ok=True)
            shutil.copy(archive, self.data + "/agent/images/")

    # The machine itself.

    def _up(self, link):
        self._namespaces()
        if link:
            self.wire, router = link.attach(self), link.router
        else:
            router = self._outside()
        self._file_systems(router)

    def _namespaces(self):
        self.init = namespace("--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc",
                              "--kill-child=SIGKILL")
        self.pid = self._child(self.init.pid)

    def _file_systems(self, router):
        # A folder /etc of its own, so that what machines write there is not shared.
        os.makedirs(self.dir + "/etc", exist_ok=True)
        self.sh(f"""
            hostname {self.name}
            ip link set lo up
            mount -t tmpfs -o mode=755 tmpfs {self.dir}/etc
            mkdir {self.dir}/etc/upper {self.dir}/etc/work
            mount -t overlay -o lowerdir=/etc,upperdir={self.dir}/etc/upper,workdir={self.dir}/etc/work overlay /etc
            rm -rf /etc/mussel
            echo {self.ip} {self.name} >> /etc/hosts
            mount -t tmpfs -o mode=755 tmpfs /run
            printf 'nameserver {router}\\n' > /run/resolv.conf
            mount --bind /run/resolv.conf "$(readlink -f /etc/resolv.conf)" """)

    def power_cut(self):
        """Ends all that runs at once: mussel, shims, containers, and what the kernel held. The disk stays."""
        shutil.copytree(f"/proc/{self.pid}/root/etc/mussel", self.dir + "/etc-mussel", dirs_exist_ok=True)
        self.init.kill()
        self.off, self.pid, self.server = (self.pid, self.init, self.server), None, None

    def boot(self):
        """The machine after a power cut, at the same place in its network. `start` starts mussel."""
        pid, *processes = self.off
        self.off = None
        wait_for(f"{self.name} to be off", lambda: not os.path.exists(f"/proc/{pid}"), 15)
        for process in filter(None, processes):
            process.wait(15 * PATIENCE)
            for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
                stream.close()
        # What ends with the kernel, here too.
        remove_cgroups(self.cgroup_root)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self._namespaces()
        self.wire.attach_again()
        self._file_systems(self.wire.link.router)
        self.sh(f"mkdir -p /etc/mussel && cp -a {self.dir}/etc-mussel/. /etc/mussel/")
        return self

    def _outside(self):
        """A second namespace at the other end of the machine's wire, where a registry or a client may live."""
        self.outside = namespace("--net")
        self.outside_pid = self.outside.pid
        run(["nsenter", "-t", str(self.outside.pid), "-n", "sh", "-ec", f"""
            ip link set lo up
            ip link add mussel0 type veth peer name eth0 netns {self.pid}
            ip addr add 192.168.77.1/24 dev mussel0
            ip link set mussel0 up"""])
        self.sh(f"""
            ip addr add {self.ip}/24 dev eth0
            ip link set eth0 up
            ip route add default via 192.168.77.1""")
        return "192.168.77.1"

    @staticmethod
    def _child(pid):
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return int(file.read().split()[0])

    def _enter(self):
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-u", "-i", "--"]

    def _environment(self, extra=None):
        keep = {key: os.environ[key] for key in ("LANG", "RUST_BACKTRACE") if key in os.environ}
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {**keep, "PATH": path, "HOME": self.dir, "KUBECONFIG": self.kubeconfig, **(extra or {})}

    def exec(self, *command, timeout=30, check=True, input=None, env=None):
        """Runs a command on the machine."""
        return run([*self._enter(), *map(str, command)], timeout, check, input, self._environment(env), self.dir)

    def sh(self, script, timeout=30, check=True):
        return self.exec("sh", "-ec", script, timeout=timeout, check=check).out

    def spawn(self, *command, outside=False, **options):
        """Starts a command that goes on, on the machine or outside of it; it ends with the machine."""
        enter = ["nsenter", "-t", str(self.outside.pid), "-n", "--"] if outside else self._enter()
        process = subprocess.Popen([*enter, *map(str, command)], env=self._environment(), cwd=self.dir,
                                   start_new_session=True, text=True, errors="replace",
                                   **{"stdin": subprocess.DEVNULL, **options})
        self.others.append(process)
        return process

    # The server.

    def command(self, *flags):
        output = ["-o", self.kubeconfig] if self.role == "server" else []
        return [BINARY, self.role, *self.local(), *output, *self.flags, *flags]

    def local(self):
        """What the other commands need to find this machine's state."""
        return ["--data-dir", self.data, "--run-dir", self.run_dir, "--cgroup-root", self.cgroup_root]

    def start(self, *flags, ready=True):
        log = open(self.log_path, "a")
        self.server = subprocess.Popen([*self._enter(), *self.command(*flags)], env=self._environment(self.env),
                                       cwd=self.dir, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       start_new_session=True)
        log.close()
        if ready:
            self.wait_ready()
        return self

    def _server_pid(self):
        return wait_for("the server's process", lambda: self._child(self.server.pid), 5, 0.01)

    def wait_ready(self, deadline=60):
        def ready():
            if self.server.poll() is not None:
                # Not an AssertionError that the wait would take as "not yet".
                raise RuntimeError(f"the server ended with code {self.server.returncode}:\n{self.log_tail(30)}")
            if not os.path.exists(self.kubeconfig):
                return False
            nodes = self.json("get", "nodes")["items"]
            return any(c["type"] == "Ready" and c["status"] == "True"
                       for node in nodes for c in node["status"].get("conditions", []))
        wait_for("the node to be Ready", ready, deadline)
        wait_for("the default service account", lambda: self.kubectl("get", "serviceaccount", "default"), deadline)

    def stop(self):
        """Ends the server as a service manager does; returns its exit code."""
        os.kill(self._server_pid(), signal.SIGTERM)
        return self.server.wait(30 * PATIENCE)

    def kill9(self):
        os.kill(self._server_pid(), signal.SIGKILL)
        self.server.wait(10 * PATIENCE)

    def running(self):
        return self.server is not None and self.server.poll() is None

    def killall(self):
        return self.exec(BINARY, "killall", *self.local(), timeout=60, check=False)

    def log(self):
        with open(self.log_path, errors="replace") as file:
            return file.read()

    def log_tail(self, lines=60):
        return "\n".join(self.log().splitlines()[-lines:]) if os.path.exists(self.log_path) else ""

    # Its cluster.

    def kubectl(self, *args, timeout=30, check=True, input=None):
        return self.exec(KUBECTL, *args, timeout=timeout, check=check, input=input)

    def out(self, *args, **options):
        return self.kubectl(*args, **options).out.strip()

    def json(self, *args, **options):
        return json.loads(self.kubectl(*args, "-o", "json", **options).out)

    def apply(self, text, *flags, **options):
        text = text if isinstance(text, str) else json.dumps(text)
        return self.kubectl("apply", *flags, "-f", "-", input=text, **options)

    def wait(self, what, condition, deadline=30, namespace="default"):
        self.kubectl("wait", what, "--for=" + condition, f"--timeout={int(deadline * PATIENCE)}s", "-n", namespace,
                     timeout=deadline + 5)

    def pod(self, name, namespace="default"):
        return self.json("get", "pod", name, "-n", namespace)

    def run_pod(self, name, script="sleep 1000000", spec=None, container=None, labels=None, wait=True, deadline=30):
        """A pod of one busybox container that runs `script`."""
        main = {"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script], **(container or {})}
        spec = {"terminationGracePeriodSeconds": 0, "containers": [main], **(spec or {})}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {"app": name}},
                    "spec": spec})
        if wait:
            self.wait("pod/" + name, "condition=Ready", deadline)

    def finished(self, name, deadline=30):
        """Waits until the pod has ended; its phase and what it printed."""
        def phase():
            seen = self.out("get", "pod", name, "-o", "jsonpath={.status.phase}")
            return seen in ("Succeeded", "Failed") and seen
        seen = wait_for(f"pod {name} to end", phase, deadline)
        return seen, self.out("logs", name)

    def curl(self, path, *flags, method="GET", body=None, kind="application/json"):
        """One request to the API with the admin's certificate: (status, body)."""
        if not os.path.exists(self.dir + "/admin.crt"):
            import base64
            config = json.loads(self.kubectl("config", "view", "--raw", "-o", "json").out)
            user, cluster = config["users"][0]["user"], config["clusters"][0]["cluster"]
            for name, data in [("admin.crt", user["client-certificate-data"]), ("admin.key", user["client-key-data"]),
                               ("ca.crt", cluster["certificate-authority-data"])]:
                with open(f"{self.dir}/{name}", "wb") as file:
                    file.write(base64.b64decode(data))
        send = []
        if body is not None:
            with open(self.dir + "/body", "wb") as file:
                file.write(body.encode() if isinstance(body, str) else body)
            send = ["-H", f"Content-Type: {kind}", "-H", "Expect:", "--data-binary", f"@{self.dir}/body"]
        done = self.exec("curl", "-sS", "-m", "20", "-X", method, "--cacert", self.dir + "/ca.crt", "--cert",
                         self.dir + "/admin.crt", "--key", self.dir + "/admin.key", "-w", "\n%{http_code}", *send,
                         *flags, "https://127.0.0.1:6443" + path)
        text, code = done.out.rsplit("\n", 1)
        return int(code), text

    def get_url(self, url, *flags, timeout=3):
        """A plain HTTP GET from the machine itself; raises `Failed` when there is no good answer."""
        return self.exec("curl", "-sSf", "-m", timeout, *flags, url, timeout=timeout + 5).out.strip()

    def fetch(self, pod, host, port=80):
        """What a web server answers to a container; `nc`, for Debian's static busybox has a wget that crashes."""
        script = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} {port} | tail -n 1"
        return self.out("exec", pod, "--", "sh", "-c", script)

    def deploy(self, name, replicas=1, image=WEB, namespace="default"):
        """A Deployment whose pods end quickly, though their first process ignores SIGTERM; waits until it is there."""
        self.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
                    "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
                        "metadata": {"labels": {"app": name}}, "spec": {
                            "terminationGracePeriodSeconds": 1, "containers": [{"name": "web", "image": image}]}}}})
        self.rolled_out("deployment/" + name, namespace)

    def rolled_out(self, what, namespace="default", deadline=40):
        self.kubectl("rollout", "status", what, "-n", namespace, f"--timeout={int(deadline * PATIENCE)}s",
                     timeout=deadline + 5)

    def container_pids(self, command):
        """Processes of containers by their command line, as the machine sees them."""
        return sorted(int(pid) for pid in self.exec("pgrep", "-xf", command, check=False).out.split())

    # What is left.

    def leftovers(self):
        """All that mussel must not leave behind: processes, mounts, interfaces, rules, cgroups."""
        left = []
        for line in self.sh("ps -eo args --no-headers").splitlines():
            if "mussel-shim" in line or " shim --dir" in line or line.startswith((BINARY + " server", BINARY + " agent")):
                left.append("process " + line)
        left += ["mount " + line for line in self.sh("cat /proc/self/mountinfo").splitlines()
                 if f" {self.dir}/" in line and f" {self.dir}/etc " not in line]
        for link in json.loads(self.sh("ip -j link")):
            if link["ifname"] not in ("lo", "eth0") and link.get("link_type") != "sit":
                left.append("interface " + link["ifname"])
        rules = self.sh("iptables-save; ip6tables-save 2>/dev/null || true").splitlines()
        left += ["rule " + rule for rule in rules if rule.startswith("-A") or rule.startswith(":MUSSEL")]
        left += ["cgroup " + path for path in cgroups(self.cgroup_root)]
        left += ["route " + line for line in self.sh("ip route").splitlines() if "10.42." in line or "10.43." in line]
        left += ["route " + line for line in self.sh("ip route show proto 109").splitlines()]
        return left

    def down(self):
        """Ends everything and removes all traces, whatever state the machine is in."""
        for process in self.others:
            if process.poll() is None:
                process.kill()
        if self.wire:
            self.wire.down()
        self.init.kill()
        try:
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if self.outside:
            self.outside.kill()
        off = self.off[1:] if self.off else ()
        for process in [*self.others, *filter(None, [self.init, self.outside, self.server, *off])]:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                print(f"process {process.pid} of {self.dir} does not end", file=sys.stderr)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()
        remove_cgroups(self.cgroup_root)
        shutil.rmtree(self.dir, ignore_errors=True)


def _hierarchies():
    return [CGROUPS, *(os.path.join(CGROUPS, name) for name in os.listdir(CGROUPS))]


def cgroups(root):
    """The cgroups below a machine's root, in every hierarchy; parents first."""
    return [path for base in _hierarchies() for path, _, _ in os.walk(base + root) if path != base + root]


def remove_cgroups(root):
    for path in [*reversed(cgroups(root)), *(base + root for base in _hierarchies())]:
        end = time.monotonic() + 5
        while os.path.isdir(path):
            try:
                os.rmdir(path)
            except OSError as error:
                # Killed processes leave their cgroup a moment later.
                if time.monotonic() > end:
                    print(f"{path} is left: {error}", file=sys.stderr)
                    break
                time.sleep(0.02)
