"""A cluster on this machine, of machines made of namespaces, to play with.

    python3 tests/lab up [--servers 3] [--agents 2] [FLAG…]   makes it and prints the kubeconfig; FLAGs go to all machines
    python3 tests/lab ls                                      its machines
    python3 tests/lab sh server1 [COMMAND…]                   a shell on one of them
    python3 tests/lab down                                    removes all of it

Needs root, and a binary: `cargo build`, or MUSSEL_BINARY.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time

sys.dont_write_bytecode = True
# As a program, Python has put this folder first; the package is found from the one above.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import lab  # noqa: E402
from lab.machine import remove_cgroups  # noqa: E402

STATE = "/run/mussel-lab"
UPLINK, OURS, THEIRS = "mussel-lab", "192.168.100.1", "192.168.100.2"


def up(args, flags):
    if os.path.exists(STATE + "/state.json"):
        sys.exit("a lab is up already; `python3 tests/lab down` removes it")
    if not os.access(lab.BINARY, os.X_OK):
        sys.exit(f"{lab.BINARY} is missing; build it with `cargo build`, or set MUSSEL_BINARY")
    cluster = lab.Cluster(args.servers, args.agents, flags=flags, agent_flags=flags)
    try:
        # A wire from this machine into the lab, so that kubectl here reaches it. It goes with the lab's namespaces.
        lab.run(["sh", "-ec", f"""
            ip link add {UPLINK} type veth peer name host netns {cluster.network.pid}
            ip addr add {OURS}/24 dev {UPLINK}
            ip link set {UPLINK} up
            ip route add {cluster.lan.prefix}.0/24 via {THEIRS}
            nsenter -t {cluster.network.pid} -n ip addr add {THEIRS}/24 dev host
            nsenter -t {cluster.network.pid} -n ip link set host up"""])
        os.makedirs(STATE, mode=0o700, exist_ok=True)
        with open(STATE + "/state.json", "w") as file:
            json.dump(cluster.state(), file, indent=2)
        began = time.monotonic()
        cluster.start()
    except BaseException:
        print(cluster.explain(), file=sys.stderr)
        cluster.down()
        shutil.rmtree(STATE, ignore_errors=True)
        raise
    kubeconfig = STATE + "/kubeconfig.yaml"
    with open(cluster.first.kubeconfig) as file:
        text = file.read().replace("https://127.0.0.1:6443", cluster.url())
    with os.fdopen(os.open(kubeconfig, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    print(f"{len(cluster.machines)} machines are Ready after {time.monotonic() - began:.1f} s", file=sys.stderr)
    print(f"export KUBECONFIG={kubeconfig}")


def state():
    try:
        with open(STATE + "/state.json") as file:
            return json.load(file)
    except FileNotFoundError:
        sys.exit("no lab is up; `python3 tests/lab up` makes one")


def alive(pid):
    """Whether the process still holds namespaces, and is not another one that got its number."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return "sigwait" in file.read()
    except OSError:
        return False


def ls():
    for machine in state()["machines"]:
        print(machine["name"], machine["ip"], machine["dir"] + "/mussel.log", sep="\t")


def sh(name, command):
    machine = next((m for m in state()["machines"] if m["name"] == name), None)
    if not machine:
        sys.exit(f"no machine is called {name}")
    os.environ["KUBECONFIG"] = machine["dir"] + "/kubeconfig.yaml"
    os.execvp("nsenter", ["nsenter", "-t", str(machine["pid"]), "-m", "-n", "-p", "-u", "-i", "--",
                          *(command or ["sh"])])


def down():
    found = state()
    for machine in found["machines"]:
        # The machine's first process takes all others of its namespace with it.
        for pid in (machine["pid"], machine["init"]):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
    for machine in found["machines"]:
        lab.wait_for(f"{machine['name']} to end", lambda: not os.path.exists(f"/proc/{machine['pid']}"))
        remove_cgroups(machine["cgroup_root"])
        shutil.rmtree(machine["dir"], ignore_errors=True)
    for pid in found["network"]:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(STATE)


def main():
    parser = argparse.ArgumentParser(prog="tests/lab", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("up")
    making.add_argument("--servers", type=int, default=1)
    making.add_argument("--agents", type=int, default=2)
    commands.add_parser("ls")
    shell = commands.add_parser("sh")
    shell.add_argument("machine")
    shell.add_argument("line", nargs=argparse.REMAINDER)
    commands.add_parser("down")
    args, flags = parser.parse_known_args()
    if os.geteuid() != 0:
        sys.exit("tests/lab: must be root")
    if flags and args.command != "up":
        parser.error("unknown: " + " ".join(flags))
    {"up": lambda: up(args, flags), "ls": ls, "sh": lambda: sh(args.machine, args.line), "down": down}[args.command]()


if __name__ == "__main__":
    main()
