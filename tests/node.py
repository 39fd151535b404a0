"""A machine for tests: a network namespace of its own with a real mussel in it, driven by real kubectl.

Everything is bounded in time, and everything is taken away again, also after a failure.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.environ.get("MUSSEL_BINARY", os.path.join(ROOT, "target/debug/mussel"))
ADDRESS = "192.0.2.10"


def run(*command, timeout=60, check=True, stdin=None, env=None):
    """Runs a command and returns what it did; on failure says all it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, input=stdin, env=env)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def wait_for(what, condition, timeout=60):
    """Asks until the condition holds, and returns what it returned. An AssertionError counts as not yet."""
    deadline, last = time.monotonic() + timeout, None
    while time.monotonic() < deadline:
        try:
            answer = condition()
            if answer:
                return answer
        except AssertionError as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {timeout} s" + (f" (last: {last})" if last else ""))


def build_images():
    """The archives of tests/images/build.py, made once per run."""
    out = os.path.join(tempfile.gettempdir(), f"mussel-test-images-{os.getpid()}")
    if not os.path.isdir(out):
        run(sys.executable, os.path.join(ROOT, "tests/images/build.py"), out, timeout=300)
    return out


class Node:
    def __init__(self, name="n1", images=True):
        self.name, self.process = name, None
        self.netns = f"mt-{name}-{os.getpid()}"
        self.cgroup_root = f"/{self.netns}"
        self.dir = tempfile.mkdtemp(prefix=f"mussel-{name}-")
        self.data, self.run_dir = f"{self.dir}/data", f"{self.dir}/run"
        self.kubeconfig, self.log = f"{self.dir}/kubeconfig", f"{self.dir}/log"
        run("ip", "netns", "add", self.netns)
        # A bridge without ports stands for the machine's network card: an address and a default route, and nobody there.
        for command in ["link set lo up", "link add uplink type bridge", f"addr add {ADDRESS}/24 dev uplink",
                        "link set uplink up", "route add default via 192.0.2.1"]:
            run("ip", "-n", self.netns, *command.split())
        if images:
            os.makedirs(f"{self.data}/agent/images")
            for archive in os.listdir(build_images()):
                shutil.copy(os.path.join(build_images(), archive), f"{self.data}/agent/images")

    def inside(self, *command, **options):
        return run("nsenter", f"--net=/run/netns/{self.netns}", *command, **options)

    def command(self, *flags):
        return ["nsenter", f"--net=/run/netns/{self.netns}", BINARY, "server", "--config", f"{self.dir}/config.yaml",
                "--data-dir", self.data, "--run-dir", self.run_dir, "--cgroup-root", self.cgroup_root,
                "--write-kubeconfig", self.kubeconfig, "--node-name", self.name, *flags]

    def start(self, *flags, ready=True):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command(*flags), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            start_new_session=True)
        if ready:
            wait_for("node Ready", self.is_ready)

    def is_ready(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"mussel ended: {self.last_log()}")
        return os.path.exists(self.kubeconfig) and " Ready " in self.kubectl("get", "nodes", "--no-headers", timeout=10)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill9(self):
        self.process.kill()
        self.process.wait(10)

    def kubectl(self, *arguments, check=True, stdin=None, timeout=60):
        command = ["kubectl", "--kubeconfig", self.kubeconfig, *arguments]
        done = self.inside(*command, check=check, stdin=stdin, timeout=timeout)
        return done.stdout if check else done

    def get(self, *arguments):
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects):
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        return self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))

    def wait_pod(self, name, phase="Running", timeout=60):
        def there():
            status = self.get("pod", name)["status"]
            ready = all(c["ready"] for c in status.get("containerStatuses", [{"ready": False}]))
            return status["phase"] == phase and (phase != "Running" or ready) and status
        return wait_for(f"pod {name} {phase}", there, timeout)

    def container_pid(self, pod):
        """The pid, on this machine, of the pod's first process."""
        uid = self.get("pod", pod)["metadata"]["uid"]
        for base in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]:
            for place, _, files in os.walk(base + self.cgroup_root):
                if uid in place and "cgroup.procs" in files:
                    with open(os.path.join(place, "cgroup.procs")) as file:
                        pids = file.read().split()
                    if pids:
                        return int(pids[0])
        raise AssertionError(f"pod {pod} has no process")

    def cgroup_value(self, pod, v1, v2):
        """A setting of the pod's container's cgroup, by its file's name in either version."""
        with open(f"/proc/{self.container_pid(pod)}/cgroup") as file:
            lines = [line.strip().split(":", 2) for line in file]
        for _, controllers, path in lines:
            controller = v1.split(".")[0]
            place = f"/sys/fs/cgroup/{controller}{path}/{v1}" if controllers else f"/sys/fs/cgroup{path}/{v2}"
            if (not controllers or controller in controllers.split(",")) and os.path.exists(place):
                with open(place) as file:
                    return file.read().strip()
        raise AssertionError(f"no {v1} or {v2}")

    def last_log(self, lines=30):
        if not os.path.exists(self.log):
            return ""
        with open(self.log, errors="replace") as file:
            return "".join(file.readlines()[-lines:])

    def killall(self):
        return self.inside(BINARY, "killall", "--data-dir", self.data, "--run-dir", self.run_dir, "--cgroup-root",
                           self.cgroup_root, check=False)

    def remove(self):
        """Takes everything away; returns what could not be."""
        if self.process and self.process.poll() is None:
            self.kill9()
        left = self.killall()
        problems = [] if left.returncode == 0 else [left.stderr]
        run("ip", "netns", "del", self.netns, check=False)
        with open("/proc/self/mountinfo") as file:
            problems += [line for line in file if self.dir in line]
        for controller in os.listdir("/sys/fs/cgroup"):
            place = f"/sys/fs/cgroup/{controller}{self.cgroup_root}"
            if os.path.isdir(place):
                try:
                    os.rmdir(place)
                except OSError as error:
                    problems.append(f"{place}: {error}")
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    if self.dir.encode() in file.read() and int(pid) != os.getpid():
                        problems.append(f"process {pid} is left")
            except OSError:
                pass
        shutil.rmtree(self.dir, ignore_errors=not problems)
        return problems


def pod(name, *command, image="mussel.test/busybox:1", labels=None, container=None, **spec):
    """A Pod with one container that runs a shell command."""
    main = {"name": "main", "image": image, **({"command": ["sh", "-c", command[0]]} if command else {}), **(container or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [main], **spec}}
