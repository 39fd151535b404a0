"""Measures what docs/benchmarks.md reports of the network between nodes: throughput and latency from a pod of one node to a pod
of another, straight and through a Service, for each backend, and between the nodes themselves.

    python3 tests/bench/network.py [vxlan] [host-gw]

The nodes are namespaces of one machine, so the figures say what the way costs, not what a wire carries.
"""

import json
import os
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import lab  # noqa: E402

SECONDS = 4
ROUND_TRIPS = 3000

SERVER = """
import socket, threading
def echo(c):
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := c.recv(1 << 20):
        if len(data) < 64:
            c.sendall(data)
s = socket.create_server(("0.0.0.0", 5001))
print("up", flush=True)
while True:
    threading.Thread(target=echo, args=(s.accept()[0],), daemon=True).start()
"""

CLIENT = f"""
import json, socket, sys, time
def connect():
    c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return c
c, block, sent = connect(), bytes(1 << 20), 0
end = time.monotonic() + {SECONDS}
while time.monotonic() < end:
    sent += c.send(block)
c.close()
c, times = connect(), []
for _ in range({ROUND_TRIPS}):
    began = time.perf_counter()
    c.sendall(b"?")
    c.recv(64)
    times.append(time.perf_counter() - began)
opened = []
for _ in range(300):
    began = time.perf_counter()
    connect().close()
    opened.append(time.perf_counter() - began)
p = lambda values, q: round(sorted(values)[int(len(values) * q)] * 1e6)
print(json.dumps({{"gbit_s": round(sent * 8 / {SECONDS} / 1e9, 2), "rtt_us_p50": p(times, 0.5), "rtt_us_p99": p(times, 0.99),
                  "connect_us_p50": p(opened, 0.5)}}))
"""


def inside(machine, marker):
    """Enters the network of the machine's container that sleeps for this long."""
    pid = str(lab.wait_for("the container", lambda: machine.container_pids(f"sleep {marker}"))[0])
    return ["nsenter", "-t", str(machine.pid), "-p", "-m", "-n", "--", "nsenter", "-t", pid, "-n", "--"]


def measure(backend):
    cluster = lab.Cluster(1, 1, flags=["--flannel-backend", backend])
    servers = []
    try:
        cluster.start()
        one, other = cluster.first, cluster.agents[0]
        cluster.pod_on(one, "client", script="sleep 1000001")
        pod = cluster.pod_on(other, "server", script="sleep 1000002")
        one.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
                   "spec": {"selector": {"app": "server"}, "ports": [{"port": 5001}]}})
        service = one.json("get", "service", "server")["spec"]["clusterIP"]
        node = ["nsenter", "-t", str(other.pid), "-n", "--"]
        for where in (inside(other, 1000002), node):
            process = subprocess.Popen([*where, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
            servers.append(process)
            if process.stdout.readline() != "up\n":
                raise lab.Failed("the server does not start")
        def ask(where, address):
            return json.loads(lab.run([*where, sys.executable, "-c", CLIENT, address, "5001"], timeout=60).out)
        client = inside(one, 1000001)
        lab.wait_for("the Service", lambda: ask(client, service), 60)
        return {"node to node": ask(["nsenter", "-t", str(one.pid), "-n", "--"], other.ip),
                "pod to pod": ask(client, pod), "pod to Service": ask(client, service)}
    finally:
        for process in servers:
            process.kill()
            process.wait(5)
        cluster.down()


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ["vxlan", "host-gw"]:
        for way, figures in measure(chosen).items():
            print(f"{chosen:8} {way:15}", json.dumps(figures), flush=True)
