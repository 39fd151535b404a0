"""Starts the clients of `client.py` in pods, on machines and outside of all, and reads what they saw."""

import json
import os
import subprocess
import sys

from lab.base import PATIENCE, TESTS, Failed

SCRIPT = os.path.join(TESTS, "lab/client.py")


class Client:
    """A client that runs in the network of a process, until `end` says what it saw."""

    def __init__(self, name, pid, *args):
        self.name, self.pid = name, pid
        self.process = subprocess.Popen(["nsenter", "-t", str(pid), "-n", "--", sys.executable, SCRIPT, *map(str, args)],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                                        start_new_session=True)
        if self.process.stdout.readline() != "up\n":
            raise Failed(f"client {name} does not start")

    def end(self):
        self.process.terminate()
        try:
            out, _ = self.process.communicate(timeout=30 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"client {self.name} does not end") from None
        if self.process.returncode != 0:
            raise Failed(f"client {self.name} ended with code {self.process.returncode}")
        return json.loads(out)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self.process.stdout.close()


def asking(name, pid, host, port=80, dns=None):
    """A GET every 10 ms."""
    return Client(name, pid, "ask", host, port, *([dns] if dns else []))


def writing(name, machine, folder, port=6444):
    """ConfigMaps `<name>-0`, `<name>-1`, … by way of a port of this machine, with the certificates in `folder`."""
    return Client(name, machine.pid, "write", folder, port, name)


def pod_pid(machine, uid):
    """A process of a pod's containers, as it is known outside of the machine."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cgroup") as file:
                text = file.read()
        except OSError:
            continue  # It has ended.
        if machine.cgroup_root + "/" in text and uid in text:
            return int(entry)
    raise Failed(f"{machine.name} has no process of pod {uid}")
