"""What lies between machines: links (bridges), a router that joins them, and sites behind a translation of addresses.

All of it lives in network namespaces of its own; nothing touches the network of the machine that runs the tests.
"""

import os
import subprocess
import sys

from lab.base import TESTS, Failed, run, wait_for
from lab.machine import namespace


def in_net(pid, script):
    """Runs a script in the network namespace of a process."""
    return run(["nsenter", "-t", str(pid), "-n", "sh", "-ec", script]).out


class Network:
    """Links with a router between them. Every link's router has its first address."""

    def __init__(self):
        self.processes, self.links = [], []
        self.pid = self._namespace()
        in_net(self.pid, "ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward")

    def _namespace(self):
        process = namespace("--net")
        self.processes.append(process)
        return process.pid

    def link(self, name="lan"):
        """A link: machines on it reach each other without the router."""
        number = len(self.links) + 1
        link = Link(self, self.pid, f"br{number}", f"192.168.{100 + number}")
        self.links.append(link)
        return link

    def site(self, behind):
        """A link whose machines see the others, but are seen as their router: nobody reaches them unasked."""
        router, number = self._namespace(), len(self.links) + 1
        address = behind.next_address()
        in_net(self.pid, f"""
            ip link add site{number} type veth peer name wan netns {router}
            ip link set site{number} master {behind.bridge} up""")
        in_net(router, f"""
            ip link set lo up
            ip addr add {address}/24 dev wan
            ip link set wan up
            ip route add default via {behind.router}
            echo 1 > /proc/sys/net/ipv4/ip_forward
            iptables -t nat -A POSTROUTING -o wan -j MASQUERADE
            iptables -A FORWARD -i wan -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP""")
        link = Link(self, router, f"br{number}", f"192.168.{100 + number}")
        link.outer_address = address
        self.links.append(link)
        return link

    def pids(self):
        return [process.pid for process in self.processes]

    def down(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait(10)
            process.stdout.close()
            process.stderr.close()


class Link:
    def __init__(self, network, pid, bridge, prefix):
        self.network, self.pid, self.bridge, self.prefix = network, pid, bridge, prefix
        self.router = prefix + ".1"
        self.addresses = 1
        # A forwarded frame is no packet: it must not pass the router's iptables.
        in_net(pid, f"""
            echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null || true
            ip link add {bridge} address 02:00:00:00:{int(bridge[2:]):02x}:01 type bridge
            ip addr add {self.router}/24 dev {bridge}
            ip link set {bridge} up""")

    def next_address(self):
        self.addresses += 1
        return f"{self.prefix}.{self.addresses}"

    def attach(self, machine):
        """Gives the machine an interface `eth0` on this link, with an address and a default route."""
        machine.ip = self.next_address()
        wire = Wire(self, machine)
        wire.attach()
        return wire


class Wire:
    """What connects one machine to its link, and how it can fail."""

    def __init__(self, link, machine):
        self.link, self.machine = link, machine
        self.outer = f"w{link.bridge[2:]}n{machine.ip.rsplit('.', 1)[1]}"
        self.relay = None

    def attach(self):
        in_net(self.link.pid, f"""
            ip link add {self.outer} type veth peer name eth0 netns {self.machine.pid}
            ip link set {self.outer} master {self.link.bridge} up""")
        in_net(self.machine.pid, f"""
            ip addr add {self.machine.ip}/24 dev eth0
            ip link set eth0 up
            ip route add default via {self.link.router}""")

    def attach_again(self):
        """After the machine was off. A wire of a namespace that is gone goes with it, but a moment later."""
        wait_for(f"{self.outer} to go", lambda: in_net(
            self.link.pid, f"test ! -e /proc/sys/net/ipv4/conf/{self.outer} && echo gone || true"), 15)
        self.attach()

    def cut(self):
        """Nothing passes any more, and the machine's interface does not notice."""
        in_net(self.link.pid, f"ip link set {self._port()} nomaster")

    def mend(self):
        in_net(self.link.pid, f"ip link set {self._port()} master {self.link.bridge}")

    def unplug(self):
        """As `cut`, but the interface has no carrier."""
        in_net(self.link.pid, f"ip link set {self.outer} down")

    def plug(self):
        in_net(self.link.pid, f"ip link set {self.outer} up")

    def lossy(self, probability):
        """Loses this part of the packets, both ways; 0 loses none."""
        # The kernels of small machines and of CI have no netem. Each way where packets arrive: to drop a packet that leaves
        # is to tell its sender.
        sides = [(self.machine.pid, "-i eth0"), (self.link.pid, f"-m physdev --physdev-in {self._port()}")]
        for pid, where in sides:
            comment = f"lab-loss-{self.outer}"
            script = f"""
                iptables-save -t raw | grep -e '--comment {comment}' | sed 's/^-A/-D/' |
                while read -r rule; do iptables -w -t raw $rule; done"""
            if probability:
                script += f"""
                echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
                iptables -w -t raw -A PREROUTING {where} -m comment --comment {comment} \\
                    -m statistic --mode random --probability {probability} -j DROP"""
            in_net(pid, script)

    def slow(self, milliseconds):
        """Holds every frame back for this long, each way; 0 ends it."""
        if self.relay:
            self.relay.kill()
            self.relay.wait(10)
            self.relay.stdout.close()
            self.relay = None
            in_net(self.link.pid, f"""
                ip link del r{self.outer}
                ip link set {self.outer} master {self.link.bridge}""")
        if not milliseconds:
            return
        inner, port = f"r{self.outer}", f"p{self.outer}"
        in_net(self.link.pid, f"""
            ip link set {self.outer} nomaster
            ip link add {inner} type veth peer name {port}
            ip link set {inner} up
            ip link set {port} master {self.link.bridge} up""")
        script = os.path.join(TESTS, "lab/relay.py")
        # Whole packets with whole checksums only: the relay sees frames as they are on a wire.
        run(["nsenter", "-t", str(self.machine.pid), "-n", sys.executable, script, "plain", "eth0"])
        run(["nsenter", "-t", str(self.link.pid), "-n", sys.executable, script, "plain", port])
        self.relay = subprocess.Popen(
            ["nsenter", "-t", str(self.link.pid), "-n", sys.executable, script, "relay", self.outer, inner,
             str(milliseconds)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True)
        if self.relay.stdout.readline() != "up\n":
            raise Failed("the relay does not start")

    def _port(self):
        return f"p{self.outer}" if self.relay else self.outer

    def down(self):
        if self.relay:
            self.relay.kill()
            self.relay.wait(10)
            self.relay.stdout.close()

