"""Installs, restarts, cuts the power of and uninstalls mussel on an emulated machine: machine.py MACHINE_DIR BINARY ARCH.

Everything is done by scripts inside the machine, sent through a virtio port; the serial console carries what must be
known at the very moment of the power cut. Emulation is about ten times slower than the real thing, so that the limits
here are generous and no figure means anything.
"""

import base64
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
# Slow machines may stretch all deadlines, as in tests/lab.py.
PATIENCE = float(os.environ.get("MUSSEL_TEST_PATIENCE", "1"))
WRITES = 400
CUT_AFTER = 60
# The emulator of each architecture, and its serial line.
EMULATORS = {
    "amd64": (["qemu-system-x86_64", "-cpu", "max", "-m", "2048"], "ttyS0"),
    # As near to a Raspberry Pi 4 with 1 GB as the emulator's general board comes.
    "arm64": (["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-m", "1024"], "ttyAMA0"),
}

POD = """
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: mussel.test/busybox:1
    command: [sh, -c, "echo started; exec sleep 7777777"]
    resources: {limits: {memory: 48Mi, cpu: 250m}, requests: {memory: 16Mi, cpu: 100m}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: "mussel.test/web:1", ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}], clusterIP: 10.43.7.7}
"""

# What a machine has apart from running things; mussel must leave it as it was.
STATE = """
find /etc /usr/local /opt /var/lib /run /var/log /root -xdev \\
    -not -path '/run/systemd/*' -not -path '/run/udev/*' -not -path '/var/log/journal*' -not -path '/run/log/*' \\
    -not -path '/var/lib/systemd/*' -not -path '/run/user/*' -not -path '/root/.kube*' -not -path '/run/mount/*' -not -path /run/machine-id | sort
echo == mounts; awk '{print $5}' /proc/self/mountinfo | grep -v /proc/sys/fs/binfmt_misc | sort
echo == links; ls /sys/class/net
echo == routes; ip route
echo == rules; iptables-save | grep -e '^-A' -e '^:MUSSEL' -e '^:KUBE' || true
ip6tables-save | grep -e '^-A' -e '^:MUSSEL' -e '^:KUBE' || true
echo == cgroups; ls -d /sys/fs/cgroup/*/ | grep -v -e '\\.slice/$' -e '\\.mount/$' -e '\\.scope/$' || true
echo == processes; ps -eo args --no-headers | grep '[m]ussel' || true
"""


class Failed(Exception):
    pass


class Machine:
    def __init__(self, origin, work, arch):
        self.origin, self.work, self.process, self.port = origin, work, None, None
        self.emulator, self.serial = EMULATORS[arch]
        self.console, self.sent = "", 0

    def boot(self, timeout=150):
        path = f"{self.work}/agent.sock"
        if os.path.exists(path):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        # Unflushed writes of the host do not matter: it is the guest that loses its power, with all in its memory.
        disks = [("disk.img", "off"), ("payload.img", "on")]
        self.process = subprocess.Popen(
            [*self.emulator, "-accel", "tcg,thread=multi", "-smp", "2", "-display", "none", "-no-reboot",
             "-kernel", f"{self.origin}/vmlinuz", "-initrd", f"{self.origin}/initrd",
             "-append", f"root=/dev/vda console={self.serial} quiet", "-serial", "stdio", "-monitor", "none",
             *[word for name, read_only in disks for word in
               ("-drive", f"file={self.work}/{name},if=virtio,format=raw,cache=unsafe,readonly={read_only}")],
             "-nic", "user,restrict=on,model=virtio-net-pci", "-device", "virtio-serial-pci",
             "-chardev", f"socket,id=agent,path={path}", "-device", "virtserialport,chardev=agent,name=test-agent"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.set_blocking(self.process.stdout.fileno(), False)
        listener.settimeout(20 * PATIENCE)
        self.port, _ = listener.accept()
        listener.close()
        self.answers = b""
        self._answer("ready", time.monotonic() + timeout * PATIENCE)

    def cut_power(self):
        self.process.kill()
        self.process.wait(20)
        self._read_console()
        self.process.stdout.close()
        self.port.close()
        self.process = None

    def _read_console(self):
        data = self.process.stdout.read()
        if data:
            self.console += data.decode(errors="replace")

    def _answer(self, wanted, deadline):
        while True:
            while b"\n" in self.answers:
                line, self.answers = self.answers.split(b"\n", 1)
                number, code, output = (line.decode().split(" ") + [""])[:3]
                if number == wanted:
                    return int(code), base64.b64decode(output).decode(errors="replace")
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failed(f"no answer in time; the console ends with\n{self.console[-2500:]}")
            if self.process.poll() is not None:
                raise Failed(f"the machine ended; the console ends with\n{self.console[-2500:]}")
            ready, _, _ = select.select([self.port, self.process.stdout], [], [], min(left, 5))
            if self.process.stdout in ready:
                self._read_console()
            if self.port in ready:
                self.answers += self.port.recv(65536)

    def sh(self, script, timeout=60, check=True):
        self.sent += 1
        script = f"export KUBECONFIG=/etc/mussel/mussel.yaml PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n{script}\n"
        self.port.sendall(f"{self.sent} {base64.b64encode(script.encode()).decode()}\n".encode())
        code, output = self._answer(str(self.sent), time.monotonic() + timeout * PATIENCE)
        if check and code != 0:
            raise Failed(f"{script}\nended with {code}:\n{output}")
        return output.strip()

    def until(self, script, what, timeout=120):
        """Repeats a script inside the machine until it succeeds."""
        try:
            return self.sh(f"end=$(($(cut -d. -f1 /proc/uptime) + {int(timeout * PATIENCE)})); until output=$({{ {script}\n}} 2>&1); do "
                           f"[ $(cut -d. -f1 /proc/uptime) -lt $end ] || {{ echo \"$output\"; exit 1; }}; sleep 0.5; done; "
                           "printf %s \"$output\"", timeout + 90)
        except Failed as error:
            raise Failed(f"not in time: {what}\n{error}") from None

    def console_until(self, test, timeout):
        deadline = time.monotonic() + timeout * PATIENCE
        while not test(self.console):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise Failed(f"the console ends with\n{self.console[-2000:]}")
            select.select([self.process.stdout], [], [], 1)
            self._read_console()


def payload(origin, work, binary, arch):
    """A second disk with what a user would have downloaded, and the images."""
    foreign = os.path.exists(f"{origin}/kubectl")
    folder = f"{work}/payload"
    os.makedirs(folder + "/systemd")
    if foreign:
        shutil.copy(binary, folder + "/mussel")
    else:
        # A debug build is mostly what debuggers read.
        subprocess.run(["objcopy", "--strip-debug", binary, folder + "/mussel"], check=True, timeout=60)
    os.chmod(folder + "/mussel", 0o755)
    shutil.copy(f"{ROOT}/install.sh", folder)
    shutil.copy(f"{ROOT}/systemd/mussel.service", folder + "/systemd")
    shutil.copy(f"{origin}/kubectl" if foreign else shutil.which("kubectl"), folder)
    env = dict(os.environ, **({"BUSYBOX": f"{origin}/busybox", "ARCH": arch} if foreign else {}))
    subprocess.run([sys.executable, f"{ROOT}/tests/images/build.py", folder + "/images"], env=env, check=True, timeout=120)
    with open(folder + "/pod.yaml", "w") as file:
        file.write(POD)
    with open(folder + "/state.sh", "w") as file:
        file.write(STATE)
    # Separate documents, so that each is created, and acknowledged on a line, by itself.
    with open(folder + "/many.yaml", "w") as file:
        for number in range(WRITES):
            file.write(f"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: written-{number}}}\ndata: {{n: '{number}'}}\n")
    subprocess.run(["truncate", "-s", "600M", f"{work}/payload.img"], check=True, timeout=20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-d", folder, f"{work}/payload.img"], check=True, timeout=120)
    shutil.rmtree(folder)


class Steps:
    def __init__(self, machine):
        self.m = machine

    def install(self):
        """install.sh with a prebuilt binary ends with a Ready node"""
        m = self.m
        m.sh("mount -o ro /dev/vdb /mnt && cp /mnt/kubectl /usr/local/bin/")
        kind = m.sh("stat -fc %T /sys/fs/cgroup")
        if kind != "cgroup2fs":
            raise Failed(f"the machine's cgroups are {kind}, not version 2")
        self.before = m.sh("sh /mnt/state.sh")
        m.sh("mkdir -p /var/lib/mussel/agent/images && cp /mnt/images/* /var/lib/mussel/agent/images/")
        output = m.sh("cd / && INSTALL_MUSSEL_BIN=/mnt/mussel sh /mnt/install.sh", 300)
        if "ready. Next:" not in output:
            raise Failed(output)
        m.sh("systemctl is-active mussel && systemctl is-enabled mussel")

    def install_again(self):
        """install.sh a second time changes nothing and restarts nothing"""
        pid = self.m.sh("systemctl show -P MainPID mussel")
        self.m.sh("cd / && INSTALL_MUSSEL_BIN=/mnt/mussel sh /mnt/install.sh", 300)
        if self.m.sh("systemctl show -P MainPID mussel") != pid:
            raise Failed("mussel was restarted")

    def limits(self):
        """a pod's limits are in its cgroup, outside of the service's"""
        m = self.m
        m.until("kubectl get serviceaccount default", "the default service account")
        m.sh("kubectl apply -f /mnt/pod.yaml")
        m.until("kubectl wait --for=condition=Ready --timeout=20s pod/limited", "pod Ready", 150)
        self.pid = m.sh("pgrep -xf 'sleep 7777777'")
        self._limits_are_set()
        for shim in m.sh("pgrep -f ' shim|mussel-shim' || true").split():
            where = m.sh(f"cut -d: -f3 /proc/{shim}/cgroup", check=False)
            if "mussel.service" in where:
                raise Failed(f"shim in {where}")

    def _limits_are_set(self):
        m = self.m
        cgroup = m.sh(f"cut -d: -f3 /proc/{self.pid}/cgroup")
        if not re.match(r"^/kubepods/burstable/pod[0-9a-f-]+/", cgroup):
            raise Failed(f"cgroup {cgroup}")
        pod = cgroup.rsplit("/", 1)[0]
        for where in (cgroup, pod):
            seen = m.sh(f"cd /sys/fs/cgroup{where} && cat memory.max cpu.max").split("\n")
            if seen != [str(48 << 20), "25000 100000"]:
                raise Failed(f"{where}: {seen}")

    def devices(self):
        """a container uses its own devices and no others, and may make nodes"""
        script = ("head -c 1 /dev/zero >/dev/null && mknod /tmp/disk b 254 0 && mknod /tmp/zero c 1 5 && head -c 1 /tmp/zero >/dev/null "
                  "&& { head -c 1 /tmp/disk 2>&1 || true; }")
        seen = self.m.sh(f"kubectl exec limited -- sh -c '{script}'")
        if "Operation not permitted" not in seen:
            raise Failed(f"the machine's disk was opened: {seen[:200]}")

    def service(self):
        """a Service answers from the machine"""
        self.m.until("kubectl wait --for=condition=Available --timeout=20s deployment/web", "deployment Available", 150)
        self.m.until("curl -sSf -m 5 http://10.43.7.7/", "an answer from the Service")

    def restart(self):
        """containers live through systemctl restart and a killed server"""
        m = self.m
        for how in ("systemctl restart mussel", "systemctl kill -s KILL --kill-who=main mussel"):
            server = m.sh("systemctl show -P MainPID mussel")
            m.sh(how, 120)
            m.until(f"[ $(systemctl show -P MainPID mussel) != {server} ] && systemctl is-active mussel && "
                    "kubectl get --raw /readyz", how)
            m.until("[ \"$(kubectl exec limited -- echo inside)\" = inside ]", "exec after " + how)
            if m.sh("pgrep -xf 'sleep 7777777'") != self.pid:
                raise Failed(f"the container was restarted by {how}")
            # systemd takes controllers away from the root when it believes that nobody needs them.
            self._limits_are_set()
            if "started" not in m.until("kubectl logs limited", "logs"):
                raise Failed("the log is lost")
            m.until("curl -sSf -m 5 http://10.43.7.7/", "an answer from the Service after " + how)
        if m.sh("kubectl get pod limited -o jsonpath={.status.containerStatuses[0].restartCount}") != "0":
            raise Failed("a restart is counted")

    def power_cut(self):
        """after a power cut every acknowledged write is there, and the pods come back"""
        m = self.m
        seen = lambda text: re.findall(r"configmap/written-(\d+) created", text)
        m.sh(f"systemd-run --no-block -E KUBECONFIG=$KUBECONFIG sh -c '/usr/local/bin/kubectl create -f /mnt/many.yaml >/dev/{m.serial} 2>&1'")
        m.console_until(lambda text: len(seen(text)) >= CUT_AFTER, 120)
        m.cut_power()
        acknowledged = seen(m.console)
        if len(acknowledged) >= WRITES:
            raise Failed("the power went after the last write")
        m.boot()
        m.sh("mount -o ro /dev/vdb /mnt")
        m.until("kubectl get --raw /readyz", "the API server after the boot", 150)
        there = set(m.until("kubectl get configmaps -o name", "a list").split())
        lost = [name for name in acknowledged if f"configmap/written-{name}" not in there]
        print(f"      {len(acknowledged)} writes acknowledged, {len(there)} objects there, {len(lost)} lost")
        if lost:
            raise Failed(f"lost: {lost}")
        # Containers of before the cut are gone: new ones must run, and the status must say so.
        m.until("pgrep -xf 'sleep 7777777' && kubectl wait --for=condition=Ready --timeout=20s pod/limited", "the pod again", 180)
        m.until("curl -sSf -m 5 http://10.43.7.7/", "the Service again", 180)

    def uninstall(self):
        """mussel-uninstall.sh leaves the machine as it was"""
        m = self.m
        m.sh("mussel-uninstall.sh", 120)
        after = m.sh("sh /mnt/state.sh")
        before, now = set(self.before.split("\n")), set(after.split("\n"))
        # The journal's and the kernel's own traces of a second boot are not mussel's.
        more = sorted(line for line in now - before if line)
        less = sorted(line for line in before - now if line and line != "/mnt")
        if more or less:
            raise Failed("left behind:\n  " + "\n  ".join(more) + "\ngone:\n  " + "\n  ".join(less))


def main():
    origin, binary, arch = sys.argv[1:4]
    work = tempfile.mkdtemp(prefix="run-", dir=os.path.dirname(origin))
    machine, failed, passed = Machine(origin, work, arch), 0, 0
    steps = Steps(machine)
    try:
        subprocess.run(["cp", "--sparse=always", f"{origin}/disk.img", f"{work}/disk.img"], check=True, timeout=120)
        payload(origin, work, binary, arch)
        machine.boot()
        for step in (steps.install, steps.install_again, steps.limits, steps.devices, steps.service, steps.restart,
                     steps.power_cut, steps.uninstall):
            started = time.monotonic()
            try:
                step()
                passed += 1
                print(f"ok    {step.__doc__} ({time.monotonic() - started:.0f} s)", flush=True)
            except Failed as error:
                failed += 1
                print(f"FAIL  {step.__doc__} ({time.monotonic() - started:.0f} s)\n{error}", flush=True)
                if machine.process:
                    try:
                        print(machine.sh("kubectl get pods -A -o wide; kubectl get events -A | tail -n 15; "
                                         "journalctl -u mussel -n 60 -o cat --no-pager; cat /sys/fs/cgroup/cgroup.subtree_control",
                                         90, check=False), flush=True)
                    except Failed as error:
                        print(error, flush=True)
                if step in (steps.install, steps.power_cut):
                    break
    finally:
        if machine.process:
            machine.cut_power()
        shutil.rmtree(work, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
