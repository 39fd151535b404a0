#!/usr/bin/env python3
"""Measures what docs/benchmarks.md reports, with a release binary on machines of its own (tests/lab).

    MUSSEL_BINARY=target/x86_64-unknown-linux-gnu/release/mussel tests/bench/run.py [--cold N] [--idle SECONDS]
        [--skip start,pods,idle,loaded]

Prints one JSON object on stdout when it is through, and each figure on stderr as soon as there is one. Run it as root on a
machine that does nothing else: another process on the same cores is measured too.
"""

import argparse
import base64
import ctypes
import http.client
import json
import os
import platform
import ssl
import statistics
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import lab  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")
IDLE_PODS = 20


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def until(condition, deadline, every):
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(every)
    raise lab.Failed(f"not within {deadline} s")


# What the API says. The Kubernetes client is ours, so that no kubectl start (50 ms and more) is part of a figure.


def enter(namespace):
    """Puts this thread into a network namespace."""
    clone_newnet = 0x40000000
    if ctypes.CDLL(None, use_errno=True).setns(namespace, clone_newnet) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Api:
    """Requests with the admin's certificate, from inside the machine's network namespace."""

    def __init__(self, machine):
        self.netns = os.open(f"/proc/{machine.pid}/ns/net", os.O_RDONLY)
        with open(machine.kubeconfig) as file:
            text = file.read()
        self.tls = ssl.create_default_context(cadata=self._part(text, "certificate-authority-data"))
        pair = machine.dir + "/bench.pem"
        with open(pair, "w") as file:
            file.write(self._part(text, "client-certificate-data") + self._part(text, "client-key-data"))
        self.tls.load_cert_chain(pair)

    @staticmethod
    def _part(text, key):
        # Our own kubeconfig: the value stands behind the key, or alone on the next line.
        words = text.split(key + ":", 1)[1].split(None, 2)
        return base64.b64decode(words[1] if words[0].startswith((">", "|")) else words[0].strip("\"'")).decode()

    def connect(self, timeout=30):
        """A connection. Sockets belong to the network namespace that their thread is in when it makes them."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        enter(self.netns)
        try:
            connection = http.client.HTTPSConnection("127.0.0.1", 6443, context=self.tls, timeout=timeout)
            connection.connect()
        finally:
            enter(home)
            os.close(home)
        return connection

    def ask(self, method, path, body=None, connection=None):
        own = connection or self.connect()
        headers = {"Content-Type": "application/json"} if body else {}
        own.request(method, path, json.dumps(body) if body else None, headers)
        answer = own.getresponse()
        text = answer.read()
        if connection is None:
            own.close()
        if answer.status >= 400:
            raise lab.Failed(f"{method} {path}: {answer.status} {text[:300]}")
        return json.loads(text)


class Watch(threading.Thread):
    """Follows the pods of `default` and notes when each was seen Running, Ready, and gone."""

    def __init__(self, api):
        super().__init__(daemon=True)
        self.seen, self.changed = {}, threading.Condition()
        version = api.ask("GET", "/api/v1/namespaces/default/pods")["metadata"]["resourceVersion"]
        self.connection = api.connect(timeout=600)
        self.connection.request("GET", f"/api/v1/namespaces/default/pods?watch=1&resourceVersion={version}")
        self.answer = self.connection.getresponse()
        self.start()

    def run(self):
        try:
            for line in self.answer:
                now = time.monotonic()
                event = json.loads(line)
                pod, notes = event["object"], []
                status = pod.get("status", {})
                if event["type"] == "DELETED":
                    notes.append("gone")
                states = [c.get("state", {}) for c in status.get("containerStatuses", [])]
                if status.get("phase") == "Running" and all("running" in state for state in states):
                    notes.append("running")
                if any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", [])):
                    notes.append("ready")
                with self.changed:
                    for note in notes:
                        self.seen.setdefault((pod["metadata"]["name"], note), now)
                    self.changed.notify_all()
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass  # The machine is taken down.

    def when(self, names, note, deadline=120):
        wanted = [(name, note) for name in names]
        with self.changed:
            if not self.changed.wait_for(lambda: all(key in self.seen for key in wanted), deadline):
                raise lab.Failed(f"not {note} within {deadline} s: {[k for k in wanted if k not in self.seen]}")
            return [self.seen[key] for key in wanted]


def idle_pod(name):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 0,
                     "containers": [{"name": "main", "image": lab.BUSYBOX, "command": ["sleep", "1000000"]}]}}


PODS = "/api/v1/namespaces/default/pods"


# What the kernel says of our processes.


def processes(machine):
    """pid → command word of every mussel process in the machine: the server and its shims."""
    inside = os.readlink(f"/proc/{machine.pid}/ns/pid")
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/pid") != inside:
                continue
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if len(words) > 1 and (b"mussel" in words[0] or b"/exe" in words[0]) and words[1] in (b"server", b"shim"):
            # nsenter stays as the server's parent, with the server's words further back; it is not ours.
            found[int(pid)] = words[1].decode()
    return found


def memory(pids):
    """Sums in MiB: resident as ps shows it, and each page counted once (Pss)."""
    sums = {"Rss": 0, "Pss": 0}
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                key = line.split(":")[0]
                if key in sums:
                    sums[key] += int(line.split()[1])
    return {key.lower() + "_mib": round(value / 1024, 1) for key, value in sums.items()}


def cpu_ticks(pids):
    """Own time of the processes and of the children that they waited for (iptables-restore and the like)."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        total += sum(map(int, fields[11:15]))
    return total


def written(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/io") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("write_bytes:"))
    return total


def idle(machine, seconds):
    """Memory, CPU and disk writes over a time in which nobody asks for anything."""
    pids = processes(machine)
    server = [pid for pid, word in pids.items() if word == "server"]
    cpu, disk, begin = cpu_ticks(pids), written(pids), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begin
    if processes(machine).keys() != pids.keys():
        raise lab.Failed("processes came or went while idle")
    bytes_written = written(pids) - disk
    return {"processes": len(pids), **memory(pids), "server": memory(server), "seconds": round(took),
            "cpu_percent": round((cpu_ticks(pids) - cpu) / TICK / took * 100, 3),
            "written_bytes": bytes_written,
            "written_mb_per_hour": round(bytes_written / took * 3600 / 1e6, 2)}


# The measurements.


def cold_start(machine):
    """Seconds from exec to the node's Ready condition, on an empty data directory; polled every 5 ms."""
    begin = time.monotonic()
    machine.start(ready=False)

    def api():
        try:
            return os.path.exists(machine.kubeconfig) and Api(machine)
        except (OSError, ValueError, IndexError):
            return None

    client = until(api, 60, 0.002)
    marks = {"kubeconfig": round(time.monotonic() - begin, 3)}
    connection = None

    def ready():
        nonlocal connection
        try:
            connection = connection or client.connect()
            nodes = client.ask("GET", "/api/v1/nodes", connection=connection)["items"]
        except (OSError, http.client.HTTPException, lab.Failed):
            connection = None
            return False
        marks.setdefault("first_answer", round(time.monotonic() - begin, 3))
        return any(c["type"] == "Ready" and c["status"] == "True"
                   for node in nodes for c in node.get("status", {}).get("conditions", []))

    until(ready, 60, 0.005)
    marks["ready"] = round(time.monotonic() - begin, 3)
    connection.close()
    return marks


def spread(values):
    return {"p50": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def pods_started(api):
    """One pod at a time, ten times; then twenty at once. From before the POST to the watch event."""
    watch, connection = Watch(api), api.connect()
    alone = {"running": [], "ready": [], "gone": []}
    for number in range(11):
        name = f"alone-{number}"
        begin = time.monotonic()
        api.ask("POST", PODS, idle_pod(name), connection)
        running, ready = watch.when([name], "running")[0], watch.when([name], "ready")[0]
        deleted = time.monotonic()
        api.ask("DELETE", f"{PODS}/{name}", None, connection)
        gone = watch.when([name], "gone")[0]
        if number:  # The first unpacks the image.
            alone["running"].append(running - begin)
            alone["ready"].append(ready - begin)
            alone["gone"].append(gone - deleted)
        time.sleep(0.3)
    names = [f"together-{number}" for number in range(IDLE_PODS)]
    begin, created = time.monotonic(), {}
    for name in names:
        created[name] = time.monotonic()
        api.ask("POST", PODS, idle_pod(name), connection)
    posted = time.monotonic() - begin
    running, ready = watch.when(names, "running"), watch.when(names, "ready")
    return {"alone": {key: spread(values) for key, values in alone.items()},
            "together": {"posted": round(posted, 3),
                         "running": spread([at - created[name] for at, name in zip(running, names)]),
                         "all_running": round(max(running) - begin, 3), "all_ready": round(max(ready) - begin, 3)}}


def described():
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1])
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(),
            "memory_gib": round(total / 2**20, 1), "kernel": platform.release(),
            "load_before": [round(load, 2) for load in os.getloadavg()]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=5, help="cold starts (5)")
    parser.add_argument("--idle", type=int, default=180, help="seconds of each idle measurement (180)")
    parser.add_argument("--settle", type=int, default=30, help="seconds between a change and an idle measurement (30)")
    parser.add_argument("--skip", default="", help="start, pods, idle, loaded: what not to measure")
    args = parser.parse_args()
    skip = args.skip.split(",")
    version = subprocess.run([lab.BINARY, "--version"], capture_output=True, text=True, timeout=10).stdout.strip()
    result = {"machine": described(), "version": version, "binary_mb": round(os.path.getsize(lab.BINARY) / 1e6, 1)}
    say(json.dumps(result))

    def note(name, value):
        result[name] = value
        say(name, json.dumps(value))

    archives = [path for path in lab.image_archives() if os.path.basename(path).startswith("busybox.")]
    if "start" not in skip:
        starts = []
        for _ in range(args.cold):
            machine = lab.Machine(name="bench", archives=[])
            try:
                starts.append(cold_start(machine))
                say("cold start", json.dumps(starts[-1]))
            finally:
                machine.down()
        note("cold_start", {key: spread([marks[key] for marks in starts]) for key in starts[0]})

    machine = lab.Machine(name="bench", archives=archives)
    try:
        machine.start()
        if "idle" not in skip:
            time.sleep(args.settle)
            note("idle_empty", idle(machine, args.idle))
        api = Api(machine)
        if "pods" not in skip:
            note("pods", pods_started(api))
        if "loaded" not in skip and "pods" not in skip:
            time.sleep(args.settle)
            note("idle_20_pods", idle(machine, args.idle))
    except BaseException:
        say(machine.kubectl("describe", "pods", check=False).out[-3000:], machine.log_tail(40))
        raise
    finally:
        machine.down()
    result["machine"]["load_after"] = [round(load, 2) for load in os.getloadavg()]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
