#!/usr/bin/env python3
"""Measures the store, and etcd by the same load on the same disk, for docs/benchmarks.md.

    cargo build --release -p mussel-store --example bench
    tests/bench/store.py [--rounds 3] [--only writes,reads,group,watch,idle,failover,growth] [--dir DIR]

What is measured takes turns: the store, etcd, the store, and so on, so that a machine that others use too treats both alike.
The table shows medians. Each run gets a fresh folder in DIR, which has to be on the disk that is meant. Figures of etcd are left
out when there is none (Debian: etcd-server). Groups of three are processes of this machine on the loopback, without TLS.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

KINDS = ["writes", "reads", "group", "watch", "idle", "failover", "growth"]


def say(*words):
    print(*words, flush=True)


def proc(pid, file, field):
    with open(f"/proc/{pid}/{file}") as lines:
        return int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def size_mib(path):
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total / (1 << 20)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Bench:
    """A process of the measuring program, which goes from step to step when told."""

    def __init__(self, args, what, target, *more):
        self.process = subprocess.Popen([args.bench, what, target, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        self.figures = []
        self.ready = self.until("ready")

    def until(self, what):
        for line in self.process.stdout:
            figures = json.loads(line)
            if figures["what"] == what:
                return figures
            self.figures.append(figures)
        raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def measure(self):
        self.go()
        self.until("done")
        return self.figures

    def close(self):
        self.process.stdin.close()
        if self.process.wait(60) != 0:
            raise SystemExit(f"{self.process.args} failed")

    def kill(self):
        self.process.kill()
        self.process.wait()


class Etcd:
    """Members of an etcd group; their process ids, and where they are."""

    def __init__(self, args, folder, members=1):
        self.processes, self.clients = [], []
        names = [f"m{n}" for n in range(members)]
        peers = [f"http://127.0.0.1:{free_port()}" for _ in names]
        group = ",".join(f"{name}={peer}" for name, peer in zip(names, peers))
        began = time.monotonic()
        for name, peer in zip(names, peers):
            client = f"http://127.0.0.1:{free_port()}"
            self.clients.append(client)
            self.processes.append(subprocess.Popen(
                [args.etcd, "--name", name, "--data-dir", f"{folder}/{name}", "--listen-client-urls", client,
                 "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                 "--initial-cluster", group, "--quota-backend-bytes", str(8 << 30),
                 # As Kubernetes has it compacted, so that its history does not grow for ever.
                 "--auto-compaction-mode", "revision", "--auto-compaction-retention", "20000"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        while not all(self.healthy(client) for client in self.clients):
            if time.monotonic() - began > 120:
                raise SystemExit("etcd did not start")
            time.sleep(0.005)
        self.started = time.monotonic() - began

    @staticmethod
    def healthy(client):
        try:
            with urllib.request.urlopen(client + "/health", timeout=2) as answer:
                return b'"true"' in answer.read()
        except (OSError, urllib.error.URLError):
            return False

    def leader(self):
        """Its place among the members."""
        for place, client in enumerate(self.clients):
            request = urllib.request.Request(client + "/v3/maintenance/status", data=b"{}", method="POST")
            with urllib.request.urlopen(request, timeout=5) as answer:
                status = json.load(answer)
            if status["leader"] == status["header"]["member_id"]:
                return place
        raise SystemExit("etcd has no leader")

    @property
    def pid(self):
        return self.processes[0].pid

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(60)


class Group:
    """Members of a mussel group beside the one that measures."""

    def __init__(self, args, folder):
        self.args, self.folder, self.hosts = args, folder, []
        self.cluster = self.seed = None

    def target(self):
        address = f"127.0.0.1:{free_port()}"
        joins = f",{self.cluster},{self.seed}" if self.seed else ""
        return f"member:{self.folder}/{address},{address}{joins}", address

    def founded(self, process, address):
        self.cluster, self.seed = process.ready["cluster"], address

    def host(self):
        target, address = self.target()
        process = Bench(self.args, "host", target)
        if not self.seed:
            self.founded(process, address)
        self.hosts.append(process)
        return process

    def stop(self):
        for host in self.hosts:
            host.kill()


def mussel_alone(args, folder, what):
    bench = Bench(args, what, f"mussel:{folder}/{what}")
    figures = bench.measure()
    bench.close()
    return figures


def etcd_alone(args, folder, what):
    server = Etcd(args, f"{folder}/{what}-etcd")
    bench = Bench(args, what, "etcd:" + server.clients[0])
    figures = bench.measure()
    bench.close()
    server.stop()
    return figures


def mussel_group(args, folder, what):
    """Load on the leader of three."""
    group = Group(args, f"{folder}/group-{what}")
    target, address = group.target()
    bench = Bench(args, what, target)
    group.founded(bench, address)
    group.host()
    group.host()
    figures = bench.measure()
    group.stop()
    bench.kill()
    return figures


def etcd_group(args, folder, what):
    server = Etcd(args, f"{folder}/group-{what}-etcd", 3)
    bench = Bench(args, what, "etcd:" + server.clients[server.leader()])
    figures = bench.measure()
    bench.close()
    server.stop()
    return figures


def mussel_failover(args, folder):
    """The leader of three is killed; the load is on another member, as a client of a server that goes on."""
    group = Group(args, f"{folder}/failover")
    leader = group.host()
    group.host()
    target, _ = group.target()
    bench = Bench(args, "failover", target, str(leader.pid))
    figures = bench.measure()
    bench.kill()
    group.stop()
    return figures


def etcd_failover(args, folder):
    server = Etcd(args, f"{folder}/failover-etcd", 3)
    leader = server.leader()
    bench = Bench(args, "failover", "etcd:" + server.clients[(leader + 1) % 3], str(server.processes[leader].pid))
    figures = bench.measure()
    bench.close()
    server.stop()
    return figures


def resources(figures, pid, before, path):
    written = proc(pid, "io", "write_bytes") - before
    rows = [dict(row, written_per_byte=written / row["value_bytes"], disk_mib=size_mib(path),
                 rss_mib=proc(pid, "status", "VmRSS") / 1024, peak_mib=proc(pid, "status", "VmHWM") / 1024) for row in figures]
    return rows


def mussel_growth(args, folder):
    path, rows = f"{folder}/grown", []
    for what in ("fill", "churn"):
        bench = Bench(args, what, f"mussel:{path}")
        before = proc(bench.pid, "io", "write_bytes")
        rows += resources(bench.measure(), bench.pid, before, path)
        if what == "churn":
            bench.kill()
        else:
            bench.close()
    # First as after a crash, then as after a stop.
    for what in ("open-after-kill", "open"):
        bench = Bench(args, "open", f"mussel:{path}")
        bench.measure()
        rows.append({"what": what, "seconds": bench.ready["seconds"], "rss_mib": proc(bench.pid, "status", "VmRSS") / 1024})
        bench.close()
    return rows


def etcd_growth(args, folder):
    path, rows = f"{folder}/grown-etcd", []
    for what in ("fill", "churn"):
        server = Etcd(args, path)
        bench = Bench(args, what, "etcd:" + server.clients[0])
        before = proc(server.pid, "io", "write_bytes")
        rows += resources(bench.measure(), server.pid, before, path)
        bench.close()
        if what == "churn":
            server.processes[0].kill()
        server.stop()
    for what in ("open-after-kill", "open"):
        server = Etcd(args, path)
        time.sleep(1)
        rows.append({"what": what, "seconds": server.started, "rss_mib": proc(server.pid, "status", "VmRSS") / 1024})
        server.stop()
    return rows


def plan(args):
    """Name, and how each of the two is measured."""
    runs = []
    for what in ("writes", "reads"):
        if what in args.only:
            runs.append((what, lambda folder, what=what: mussel_alone(args, folder, what),
                         lambda folder, what=what: etcd_alone(args, folder, what)))
        if "group" in args.only:
            runs.append((f"group {what}", lambda folder, what=what: mussel_group(args, folder, what),
                         lambda folder, what=what: etcd_group(args, folder, what)))
    if "watch" in args.only:
        runs.append(("watch", lambda folder: mussel_alone(args, folder, "watch"), lambda folder: etcd_alone(args, folder, "watch")))
    if "idle" in args.only:
        runs.append(("idle", lambda folder: mussel_alone(args, folder, "idle"), lambda folder: []))
    if "failover" in args.only:
        runs.append(("failover", lambda folder: mussel_failover(args, folder), lambda folder: etcd_failover(args, folder)))
    if "growth" in args.only:
        runs.append(("growth", lambda folder: mussel_growth(args, folder), lambda folder: etcd_growth(args, folder)))
    return runs


def rows(results):
    """Medians, by measurement and figure."""
    found = {}
    for name, figures in results:
        for row in figures:
            label = " ".join(filter(None, [name, "" if row["what"] in name else row["what"],
                                           f"{row['clients']} clients" if "clients" in row else ""]))
            for figure, value in row.items():
                if figure not in ("what", "clients", "writes", "value_bytes", "watchers", "commits"):
                    found.setdefault((label, figure), []).append(value)
    return found


def show(ours, theirs):
    say(f"\n| {'':40} | {'mussel':>24} | {'etcd':>24} |\n|---|---|---|")
    def cell(values):
        if not values:
            return ""
        spread = f" ({min(values):.5g}–{max(values):.5g})" if len(values) > 1 else ""
        return f"{statistics.median(values):.5g}{spread}"
    for (label, figure), values in ours.items():
        say(f"| {label + ', ' + figure:40} | {cell(values):>24} | {cell(theirs.get((label, figure))):>24} |")


def main():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(root, "target"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default=os.path.join(target, "release/examples/bench"))
    parser.add_argument("--etcd", default=shutil.which("etcd"))
    parser.add_argument("--dir", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--engines", default="mussel,etcd")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if not set(args.only) <= set(KINDS):
        parser.error("--only takes " + ",".join(KINDS))
    engines = args.engines.split(",")
    ours, theirs = [], []
    for name, mussel, etcd in plan(args):
        # Growth takes minutes and varies little; a failover takes a moment, and varies by chance.
        rounds = {"growth": 1, "failover": 4 * args.rounds}.get(name, args.rounds)
        for _ in range(rounds):
            for engine, measure, results in (("mussel", mussel, ours), ("etcd", etcd, theirs)):
                if engine not in engines or engine == "etcd" and not args.etcd:
                    continue
                folder = tempfile.mkdtemp(prefix="mussel-bench-", dir=args.dir)
                try:
                    figures = measure(folder)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                results.append((name, figures))
                for row in figures:
                    say(f"{name:14} {engine:7} {json.dumps(row)}")
    show(rows(ours), rows(theirs))
    say("\nload average now: " + " ".join(f"{load:.1f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
