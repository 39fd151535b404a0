"""A cluster: machines on links, of which the first servers make the cluster and the others join it."""

from lab.base import Failed, wait_for
from lab.machine import Machine
from lab.network import Network

TOKEN = "lab-token-of-this-cluster"


class Cluster:
    """`servers` and `agents` are numbers, or lists that name for each machine the link it is on."""

    def __init__(self, servers=1, agents=1, flags=(), agent_flags=(), network=None, archives=None):
        self.network = network or Network()
        self.lan = self.network.links[0] if self.network.links else self.network.link()
        self.flags, self.agent_flags, self.archives = list(flags), list(agent_flags), archives
        self.servers, self.agents = [], []
        try:
            for link in servers if isinstance(servers, list) else [self.lan] * servers:
                self.add_server(link)
            for link in agents if isinstance(agents, list) else [self.lan] * agents:
                self.add_agent(link)
        except BaseException:
            self.down()
            raise

    @property
    def machines(self):
        return [*self.servers, *self.agents]

    @property
    def first(self):
        return self.servers[0]

    def add_server(self, link=None):
        """A server that is not started yet; it joins the first, if it isn't that itself."""
        join = ["--server", self.url()] if self.servers else []
        return self._add(self.servers, f"server{len(self.servers) + 1}", link, "server", [*join, *self.flags])

    def add_agent(self, link=None, flags=()):
        return self._add(self.agents, f"agent{len(self.agents) + 1}", link, "agent",
                         ["--server", self.url(), *self.agent_flags, *flags])

    def _add(self, to, name, link, role, flags):
        machine = Machine(name=name, archives=self.archives, link=link or self.lan, role=role,
                          flags=["--token", TOKEN, *flags])
        to.append(machine)
        return machine

    def url(self, machine=None):
        return f"https://{(machine or self.first).ip}:6443"

    def start(self):
        """Starts all machines, and returns when all are Ready."""
        self.first.start()
        # Further servers one at a time: each is a change of the Raft group.
        for machine in self.servers[1:]:
            machine.start(ready=False)
            self.wait_node(machine)
        for machine in self.agents:
            machine.start(ready=False)
        for machine in self.agents:
            self.wait_node(machine)
        return self

    def leader(self):
        """The server that leads: the one whose controllers run."""
        def found():
            leading = [s for s in self.servers if s.running() and self._leads(s)]
            return leading[0] if len(leading) == 1 else None
        return wait_for("one leader", found, 20)

    @staticmethod
    def _leads(server):
        last = None
        for line in server.log().splitlines():
            if "controllers start" in line:
                last = True
            if "controllers stop" in line or "mussel server version" in line:
                last = False
        return last

    def node(self, machine):
        return self.living().json("get", "node", machine.name)

    def living(self):
        """A server whose mussel runs."""
        return next((s for s in self.servers if s.running()), self.first)

    def ready(self, machine):
        """The status of the node's condition Ready."""
        conditions = self.node(machine)["status"].get("conditions", [])
        return next((c["status"] for c in conditions if c["type"] == "Ready"), None)

    def wait_node(self, machine, status="True", deadline=90):
        def reached():
            if status == "True" and not machine.running():
                # Not an AssertionError that the wait would take as "not yet".
                raise RuntimeError(f"mussel on {machine.name} ended with code {machine.server.returncode}:\n"
                                   f"{machine.log_tail(30)}")
            return self.ready(machine) == status
        wait_for(f"node {machine.name} to be Ready={status}", reached, deadline)

    def pod_on(self, machine, name, **options):
        """A running pod on this machine."""
        spec = {"nodeName": machine.name, **options.pop("spec", {})}
        self.first.run_pod(name, spec=spec, **options)
        return self.first.pod(name)["status"]["podIP"]

    def explain(self):
        """What one wants to know when something went wrong."""
        text = []
        for machine in self.machines:
            text.append(f"---- the log of {machine.name} ends with\n{machine.log_tail(40)}")
        if self.servers and self.first.running():
            for what in [("get", "nodes,pods,services,endpointslices", "-A", "-o", "wide"),
                         ("get", "events", "-A", "--sort-by=.lastTimestamp")]:
                try:
                    text.append(self.first.kubectl(*what, check=False, timeout=10).out[-4000:])
                except Failed as error:
                    text.append(str(error))
        return "\n".join(text)

    def state(self):
        """All that `down` needs in another process."""
        return {"network": self.network.pids(), "machines": [
            {"name": m.name, "role": m.role, "ip": m.ip, "dir": m.dir, "init": m.init.pid, "pid": m.pid,
             "cgroup_root": m.cgroup_root} for m in self.machines]}

    def down(self):
        for machine in self.machines:
            machine.down()
        self.network.down()

