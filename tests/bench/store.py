#!/usr/bin/env python3
"""Measures the store, and etcd by the same load on the same disk, for docs/benchmarks.md.

    cargo build --release -p mussel-store --example bench
    tests/bench/store.py [--bench target/release/examples/bench] [--etcd /usr/bin/etcd] [--dir DIR] [--skip growth]

Each gets a fresh folder in DIR. Figures of etcd are left out when there is none (Debian: etcd-server).
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ETCD = "http://127.0.0.1:23790"
KEYS, CHURN, OBJECT_BYTES = 100_000, 1_000_000, 2048


def say(*words):
    print(*words, flush=True)


def written(pid):
    with open(f"/proc/{pid}/io") as file:
        return int(next(line for line in file if line.startswith("write_bytes")).split()[1])


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1])


def size_mib(path):
    total = 0
    for folder, _, names in os.walk(path):
        total += sum(os.stat(os.path.join(folder, name)).st_blocks * 512 for name in names)
    return total / (1 << 20)


class Etcd:
    def __init__(self, binary, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [binary, "--data-dir", folder, "--listen-client-urls", ETCD, "--advertise-client-urls", ETCD,
             "--listen-peer-urls", "http://127.0.0.1:23800", "--initial-advertise-peer-urls", "http://127.0.0.1:23800",
             "--initial-cluster", "default=http://127.0.0.1:23800", "--quota-backend-bytes", str(8 << 30),
             # As Kubernetes has it compacted, so that its history does not grow for ever.
             "--auto-compaction-mode", "revision", "--auto-compaction-retention", "20000"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        began = time.monotonic()
        while True:
            try:
                with urllib.request.urlopen(ETCD + "/health", timeout=1) as answer:
                    if b'"true"' in answer.read():
                        break
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() - began > 60:
                sys.exit("etcd did not start")
            time.sleep(0.01)
        self.started = time.monotonic() - began

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def bench(args, what, engine, at):
    """Runs one measurement; what it said, and the bytes that it had the kernel write."""
    process = subprocess.Popen([args.bench, what, engine, at], stdout=subprocess.PIPE, text=True)
    lines, bytes_written = [], 0
    for line in process.stdout:
        lines.append(line.rstrip())
        say("   ", lines[-1])
        if engine == "mussel":
            bytes_written = written(process.pid)
    if process.wait() != 0:
        sys.exit(f"{what} {engine} failed")
    return lines, bytes_written


def mussel(args, folder):
    say("mussel, writes:")
    bench(args, "writes", "mussel", folder + "/writes")
    say("mussel, watch:")
    bench(args, "watch", "mussel", folder + "/watch")
    if args.skip == "growth":
        return
    for what, count in (("fill", KEYS), ("churn", CHURN)):
        say(f"mussel, {what}:")
        _, total = bench(args, what, "mussel", folder + "/grown")
        say(f"    {total / (count * OBJECT_BYTES):.2f} bytes written per byte of value,"
            f" {size_mib(folder + '/grown'):.0f} MiB on disk")
    say("mussel, opened again:")
    bench(args, "open", "mussel", folder + "/grown")


def etcd(args, folder):
    server = Etcd(args.etcd, folder + "/writes-etcd")
    say("etcd, writes:")
    bench(args, "writes", "etcd", ETCD)
    server.stop()
    if args.skip == "growth":
        return
    grown = folder + "/grown-etcd"
    server = Etcd(args.etcd, grown)
    for what, count in (("fill", KEYS), ("churn", CHURN)):
        say(f"etcd, {what}:")
        before = written(server.process.pid)
        bench(args, what, "etcd", ETCD)
        total = written(server.process.pid) - before
        say(f"    {total / (count * OBJECT_BYTES):.2f} bytes written per byte of value, {size_mib(grown):.0f} MiB on disk,"
            f" {resident_kib(server.process.pid)} KiB resident")
    server.stop()
    server = Etcd(args.etcd, grown)
    say(f"etcd, opened again: {server.started:.3f} s, {resident_kib(server.process.pid)} KiB resident")
    server.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", default="target/release/examples/bench")
    parser.add_argument("--etcd", default=shutil.which("etcd"))
    parser.add_argument("--dir", default=None)
    parser.add_argument("--skip", default="", choices=["", "growth"])
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="mussel-bench-", dir=args.dir)
    try:
        mussel(args, folder)
        if args.etcd:
            etcd(args, folder)
        say("load average now: " + " ".join(f"{load:.1f}" for load in os.getloadavg()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
