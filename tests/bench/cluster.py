#!/usr/bin/env python3
"""Measures what docs/benchmarks.md reports of a cluster: how long joining takes, how long the API is away when the leader is
killed, and what a server in a group of three and an idle agent cost. With a release binary, on machines of tests/lab:

    MUSSEL_BINARY=target/x86_64-unknown-linux-gnu/release/mussel tests/bench/cluster.py [--agents N] [--failovers N]
        [--idle SECONDS] [--no-network]

Prints one JSON object when it is through, and each figure on stderr as soon as there is one. tests/bench/network.py, which
this also runs, measures the pod network. Run it as root on a machine that does nothing else.
"""

import argparse
import json
import os
import subprocess
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]

import lab  # noqa: E402
from lab import clients, wait_for  # noqa: E402
from lab.network import in_net  # noqa: E402
from run import Api, described, memory, say, spread, until, written  # noqa: E402


def process(machine):
    """The pid of the machine's `mussel server` or `mussel agent`."""
    inside = os.readlink(f"/proc/{machine.pid}/ns/pid")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/pid") != inside:
                continue
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if words[0] == lab.BINARY.encode() and words[1:2] == [machine.role.encode()]:
            return int(pid)
    raise lab.Failed(f"no mussel runs on {machine.name}")


def join(api, machine):
    """Seconds from the command to the node's condition Ready."""
    connection = api.connect()
    began = time.monotonic()
    machine.start(ready=False)

    def ready():
        try:
            node = api.ask("GET", f"/api/v1/nodes/{machine.name}", connection=connection)
        except lab.Failed:
            return False
        return any(c["type"] == "Ready" and c["status"] == "True" for c in node.get("status", {}).get("conditions", []))

    until(ready, 120, 0.005)
    connection.close()
    return time.monotonic() - began


def failover(cluster, number):
    """The longest time between two acknowledged writes through an agent's balancer while the leader is killed."""
    agent, leader = cluster.agents[0], cluster.leader()
    client = clients.writing(f"failover-{number}-agent", agent, cluster.first.dir)
    try:
        wait_for("ten writes", lambda: cluster.living().kubectl("get", "configmap", f"failover-{number}-agent-10"), 30)
        leader.kill9()
        # Twice as long as it should take.
        time.sleep(4)
        seen = client.end()
    finally:
        client.kill()
    leader.start(ready=False)
    addresses = {server.ip for server in cluster.servers}
    wait_for("all servers to serve", lambda: {a for e in cluster.living().json(
        "get", "endpointslices", "kubernetes")["endpoints"] for a in e["addresses"]} == addresses, 60)
    return seen["longest"]


def carried(machine):
    """Bytes that went over the machine's wire, both ways."""
    link = json.loads(in_net(machine.pid, "ip -s -j link show eth0"))[0]
    return link["stats64"]["rx"]["bytes"] + link["stats64"]["tx"]["bytes"]


def idle(cluster, seconds):
    pids = {machine.name: process(machine) for machine in cluster.machines}
    agent = cluster.agents[0]
    began, disk, network = time.monotonic(), written([pids[agent.name]]), carried(agent)
    time.sleep(seconds)
    hours = (time.monotonic() - began) / 3600
    return {"resident": {name: memory([pid]) for name, pid in pids.items()}, "seconds": seconds,
            "agent_disk_mb_per_hour": round((written([pids[agent.name]]) - disk) / hours / 1e6, 2),
            "agent_network_mb_per_hour": round((carried(agent) - network) / hours / 1e6, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=5, help="agents that join (5)")
    parser.add_argument("--failovers", type=int, default=20, help="leaders that are killed (20)")
    parser.add_argument("--idle", type=int, default=180, help="seconds of the idle measurement (180)")
    parser.add_argument("--no-network", action="store_true", help="leave out the pod network")
    args = parser.parse_args()
    result = {"machine": described(), "binary_mb": round(os.path.getsize(lab.BINARY) / 1e6, 1)}

    def note(name, value):
        result[name] = value
        say(name, json.dumps(value))

    cluster = lab.Cluster(3, args.agents, archives=[])
    try:
        cluster.first.start()
        api = Api(cluster.first)
        note("join_server_seconds", spread([join(api, server) for server in cluster.servers[1:]]))
        note("join_agent_seconds", spread([join(api, agent) for agent in cluster.agents]))
        cluster.first.curl("/version")  # Leaves the admin's certificate in the machine's folder.
        time.sleep(30)
        note("idle", idle(cluster, args.idle))
        if args.failovers:
            note("failover_seconds", spread([failover(cluster, number) for number in range(args.failovers)]))
    except BaseException:
        say(cluster.explain())
        raise
    finally:
        cluster.down()
    if not args.no_network:
        done = subprocess.run([sys.executable, HERE + "/network.py"], stdout=subprocess.PIPE, text=True, check=True)
        result["network"] = done.stdout.strip().splitlines()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
