"""Three servers and two agents, with clients that ask all the time, while servers and machines fail under them."""

import json
import time

import lab
from lab import clients, wait_for

# Plays the next version, with the next formats on the wire and on disk, and says which version of the protocol is spoken.
NEXT = {"MUSSEL_TEST_NEXT_VERSION": "1", "MUSSEL_LOG": "info,mussel_store=debug"}
# Every request says which pod answered. A page is read, not a program started: the machine has two processors for all.
PAGE = "mkdir -p /www && hostname > /www/index.html && exec httpd -f -p 80 -h /www"


class Failing(lab.ClusterCase):
    """A Service with an endpoint on every machine, and who asks it."""

    servers, agents = 3, 2
    time_limit = 400
    # Shorter than the default, so that a machine that died is not waited for as long; agents' leases are renewed every 10 s.
    flags = ["--kube-controller-manager-arg", "node-monitor-grace-period=25s"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        try:
            cls.m.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": [
                {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web"}, "spec": {
                    "selector": {"matchLabels": {"app": "web"}},
                    "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                        "terminationGracePeriodSeconds": 0,
                        "containers": [{"name": "web", "image": lab.BUSYBOX, "command": ["sh", "-c", PAGE],
                                        "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1}}]}}}},
                {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
                    "type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80}]}}]}))
            cls.m.rolled_out("daemonset/web", deadline=90)
            cls.c.pod_on(cls.c.agents[0], "asker", spec={"tolerations": [{"operator": "Exists"}]})
            cls.m.curl("/version")  # Leaves the admin's certificate in the machine's folder.
            spec = cls.m.json("get", "service", "web")["spec"]
            cls.cluster_ip, cls.node_port = spec["clusterIP"], spec["ports"][0]["nodePort"]
            for machine in cls.c.machines:
                wait_for(f"the Service on {machine.name}", lambda: machine.get_url(f"http://{cls.cluster_ip}/"), 30)
        except BaseException:
            print(cls.c.explain())
            cls.c.down()
            raise

    def pods(self):
        """The address of each endpoint, by pod."""
        found = self.c.living().json("get", "pods", "-l", "app=web")["items"]
        return {p["metadata"]["name"]: (p["status"].get("podIP"), p["spec"]["nodeName"]) for p in found}

    def containers(self):
        """All that must not change while nobody touches a pod."""
        found = self.c.living().json("get", "pods", "-A")["items"]
        return sorted((p["metadata"]["name"], s["containerID"], s["restartCount"])
                      for p in found for s in p["status"].get("containerStatuses", []))

    def ask_in_pod(self, *args, **options):
        """Asks from inside of the pod on the first agent."""
        pid = clients.pod_pid(self.c.agents[0], self.c.living().pod("asker")["metadata"]["uid"])
        return self.start(clients.asking("a pod", pid, *args, **options))

    def start(self, client):
        self.addCleanup(client.kill)
        return client

    def ask_everywhere(self):
        """In a pod by name and by the node's DNS, on a machine by ClusterIP, outside by the NodePort of two machines."""
        agent1, agent2 = self.c.agents
        return [self.ask_in_pod("web.default.svc.cluster.local", dns="10.43.0.10"),
                self.start(clients.asking("agent2", agent2.pid, self.cluster_ip)),
                self.start(clients.asking("outside by an agent", self.c.network.pid, agent1.ip, self.node_port)),
                self.start(clients.asking("outside by a server", self.c.network.pid, self.c.servers[1].ip, self.node_port))]

    def write_everywhere(self, prefix):
        """By way of each agent's own balancer."""
        return [self.start(clients.writing(f"{prefix}-{a.name}", a, self.m.dir)) for a in self.c.agents]

    def nothing_failed(self, asking, pods):
        for client in asking:
            seen = client.end()
            self.assertEqual(seen["failures"], [], f"{client.name}: {len(seen['failures'])} of {seen['asked']} failed")
            self.assertGreater(seen["asked"], 100, client.name)
            self.assertEqual(set(seen["answers"]), set(pods), client.name)
            print(f"       {client.name}: {seen['asked']} requests, slowest {seen['slowest']} s")

    def acknowledged(self, writing):
        """The names of all writes that were said to be done."""
        names = set()
        for client in writing:
            seen = client.end()
            self.assertTrue(seen["acknowledged"], seen)
            names.update(seen["acknowledged"])
            print(f"       {client.name}: {len(seen['acknowledged'])} writes, longest wait {seen['longest']} s, "
                  f"refused: {seen['failures']}")
        return names

    def nothing_lost(self, acknowledged):
        """Every acknowledged write is there, as every server sees it."""
        for server in filter(lab.Machine.running, self.c.servers):
            there = server.json("get", "configmaps")["items"]
            self.assertEqual(acknowledged - {item["metadata"]["name"] for item in there}, set(), server.name)

    def caught_up(self, machine):
        """A server answers, the node has reported since it was started, and its rules are those of now."""
        if machine.role == "server":
            wait_for(f"{machine.name} to serve",
                     lambda: machine.kubectl("get", "--raw", "/readyz", "--request-timeout=2s"), 60)
        wait_for(f"the node on {machine.name}", lambda: "pod network is ready" in
                 machine.log().rsplit(f"mussel {machine.role} version", 1)[1], 60)
        self.c.wait_node(machine)

    def test_1_any_one_server_dies_and_nobody_notices(self):
        before, pods = self.containers(), self.pods()
        asking, writing = self.ask_everywhere(), self.write_everywhere("one")
        for victim in self.c.servers:
            # Each server, so that the leader is among them, wherever it is.
            victim.kill9()
            living = self.c.living()
            for agent in self.c.agents:
                wait_for(f"the API on {agent.name}", lambda: agent.kubectl(
                    "--kubeconfig", agent.data + "/agent/kubelet.kubeconfig", "get", "node", agent.name,
                    "--request-timeout=2s"), 20, 0.05)
            wait_for("a write", lambda: living.kubectl("annotate", "node", "agent1", f"lab/x={time.time()}",
                                                       "--overwrite", "--request-timeout=5s"), 20, 0.05)
            victim.start(ready=False)
            self.caught_up(victim)
        self.nothing_failed(asking, pods)
        self.nothing_lost(self.acknowledged(writing))
        self.assertEqual(self.containers(), before, "no pod is touched")

    def test_2_two_of_three_servers_die(self):
        before, pods = self.containers(), self.pods()
        asking = self.ask_everywhere()
        last, *dead = self.c.servers
        for victim in dead:
            victim.kill9()
        body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "no-quorum"}})
        code, text = last.curl("/api/v1/namespaces/default/configmaps", method="POST", body=body)
        self.assertEqual(code, 503, text)
        self.assertIn("no leader", json.loads(text)["message"])
        self.assertEqual(last.curl("/api/v1/nodes?resourceVersion=0")[0], 200, "reads that need not be new")
        for agent in self.c.agents:
            self.assertIn("web", agent.sh(f"curl -sSf -m 3 http://{self.cluster_ip}/"))
        for victim in dead:
            victim.start(ready=False)
        for server in self.c.servers:
            self.caught_up(server)
        last.kubectl("create", "configmap", "quorum")
        self.nothing_failed(asking, pods)
        self.assertEqual(self.containers(), before, "no pod is touched")

    def test_3_a_machine_dies(self):
        pods = self.pods()
        writing = self.write_everywhere("machine")
        victim = self.c.leader()
        dead = {ip for ip, node in pods.values() if node == victim.name}
        asking = {self.ask_in_pod(self.cluster_ip): self.c.agents[0],
                  self.start(clients.asking("agent2", self.c.agents[1].pid, self.cluster_ip)): self.c.agents[1]}
        died = time.monotonic()
        victim.wire.cut()
        victim.kill9()

        def endpoints():
            slices = self.c.living().json("get", "endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
            return {a for s in slices for e in s["endpoints"] if e["conditions"].get("ready") for a in e["addresses"]}
        wait_for("its endpoint to leave", lambda: not endpoints() & dead, 90)
        # Then the rules of every node follow.
        for agent in self.c.agents:
            wait_for("the rules to follow", lambda: not any(ip in agent.sh("iptables-save -t nat") for ip in dead), 10)
        gone = time.monotonic()
        for client, machine in asking.items():
            seen = client.end()
            tracked = machine.sh("conntrack -L -p tcp --dport 80 2>/dev/null").splitlines()
            where = {}
            for line in tracked:
                words = [word.split("=", 1) for word in line.split() if "=" in word]
                sports, sources = [v for k, v in words if k == "sport"], [v for k, v in words if k == "src"]
                where.setdefault(sports[0], set()).add(sources[1])
            wrong = [f for f in seen["failures"] if not where.get(str(f["port"]), set()) & dead]
            self.assertEqual(wrong, [], f"{client.name}: only what went to the dead machine fails")
            late = [f for f in seen["failures"] if f["at"] > gone]
            self.assertEqual(late, [], f"{client.name}: nothing fails after the endpoint is gone")
            self.assertTrue(seen["failures"], "a machine that died cannot go unnoticed")
            print(f"       {client.name}: {len(seen['failures'])} of {seen['asked']} failed in {gone - died:.0f} s")
        self.nothing_lost(self.acknowledged(writing))
        victim.wire.mend()
        victim.start(ready=False)
        self.caught_up(victim)
        wait_for("its endpoint to be back", lambda: endpoints() == {ip for ip, _ in self.pods().values()}, 60)

    def test_4_every_mussel_is_restarted_one_after_the_other(self):
        before, pods = self.containers(), self.pods()
        asking, writing = self.ask_everywhere(), self.write_everywhere("rolling")
        for machine in self.c.machines:
            self.assertEqual(machine.stop(), 0)
            machine.start(ready=False)
            self.caught_up(machine)
        self.nothing_failed(asking, pods)
        self.nothing_lost(self.acknowledged(writing))
        self.assertEqual(self.containers(), before, "no pod is touched")

    def test_5_all_are_upgraded_one_after_the_other(self):
        agent1, agent2 = self.c.agents
        before, pods = self.containers(), self.pods()
        asking, writing = self.ask_everywhere(), self.write_everywhere("upgrade")
        # An agent before all servers and one after them; between the servers, old and new ones are one group.
        for machine in [agent1, *self.c.servers, agent2]:
            self.assertEqual(machine.stop(), 0)
            old = self.format(machine) if machine.role == "server" else None
            machine.env.update(NEXT)
            machine.start(ready=False)
            self.caught_up(machine)
            if old:
                self.assertEqual(int(self.format(machine)), int(old) + 1, "only a debug build plays the next version")
        self.nothing_failed(asking, pods)
        self.nothing_lost(self.acknowledged(writing))
        self.assertEqual(self.containers(), before, "no pod is touched")
        # Ahead of its servers an agent goes on as it was, and says so; when they have followed it is one of them again.
        self.assertIn("is newer than the server's", agent1.log())
        wait_for("the first agent's new certificates", lambda: "certificates of this node are renewed" in
                 agent1.log().rsplit("is newer than the server's", 1)[1], 60)
        for server in self.c.servers[1:]:
            self.assertIn("version=2", server.log(), "servers of the next version speak its protocol")
        # The way back is refused before anything is written.
        server = self.c.servers[1]
        self.assertEqual(server.stop(), 0)
        done = server.exec(*server.command(), check=False, timeout=30)
        self.assertEqual(done.code, 1, done)
        self.assertIn("start the version that wrote it", done.err)
        server.start(ready=False)
        self.caught_up(server)

    def format(self, server):
        """What the store's folder says of its layout."""
        with open(server.data + "/server/db/identity") as file:
            return dict(line.split("=", 1) for line in file.read().split())["format"]

    def power_cut(self, *order, at_once=False):
        """All machines lose their power at once, and get it back in the order given. What is left out stays off."""
        prefix = f"before-{'all' if at_once else order[0].name}"
        writing = self.write_everywhere(prefix)
        for agent in self.c.agents:
            wait_for("some writes", lambda: self.c.living().kubectl("get", "configmap", f"{prefix}-{agent.name}-20"), 30)
        pods = self.pods()
        for machine in self.c.machines:
            machine.power_cut()
        acknowledged = self.acknowledged(writing)
        for machine in order:
            machine.boot().start(ready=False)
            # Each has made its first steps before the next is there.
            if not at_once:
                wait_for(f"mussel on {machine.name}", lambda: self.starts(machine), 20)
        return pods, acknowledged

    @staticmethod
    def kept(machine, name):
        """What the machine keeps on disk for a start without a server."""
        return machine.sh(f"cat {machine.data}/agent/network/{name} 2>/dev/null || true")

    def starts(self, machine):
        """An agent without servers brings up what it knows; a server opens its store, alone or not."""
        sign = "store is open" if machine.role == "server" else "pod network is ready"
        return sign in machine.log().rsplit(f"mussel {machine.role} version", 1)[1]

    def all_is_back(self, pods, acknowledged, machines):
        for machine in machines:
            self.caught_up(machine)
        for pod, (_, node) in pods.items():
            if node in {machine.name for machine in machines}:
                self.c.living().wait(f"pod/{pod}", "condition=Ready", 60)
        self.nothing_lost(acknowledged)
        for machine in machines:
            wait_for(f"the Service on {machine.name}", lambda: machine.get_url(f"http://{self.cluster_ip}/"), 60)

    def test_6_the_power_fails_and_servers_come_back_late(self):
        led = self.c.leader()
        first, second = (server for server in self.c.servers if server is not led)
        # What changed in the last minute may not be on a machine's disk yet, unless mussel was stopped since.
        addresses = [address for address, _ in self.pods().values()]
        for machine in (first, *self.c.agents):
            wait_for(f"the endpoints on the disk of {machine.name}", lambda: all(
                f'"{address}"' in self.kept(machine, "endpointslices.json") for address in addresses), 90)
        pods, acknowledged = self.power_cut(first, *self.c.agents)
        # Alone it cannot know what is so now; what was so last is better than nothing, as on an agent.
        own = next(pod for pod, (_, node) in pods.items() if node == first.name)
        for machine in (first, *self.c.agents):
            wait_for(f"the Service on {machine.name} without servers",
                     lambda: machine.get_url(f"http://{self.cluster_ip}/", timeout=1), 60)
            self.assertIn(self.cluster_ip, machine.sh("busybox nslookup web.default.svc.cluster.local 10.43.0.10"))
        code, text = first.curl("/api/v1/nodes?resourceVersion=0")
        self.assertEqual(code, 503, "it does not show what was so at its last checkpoint")
        self.assertIn("is starting", text)
        wait_for("the server's own pod", lambda: first.get_url(f"http://{self.cluster_ip}/", timeout=1) == own, 30)
        second.boot().start(ready=False)
        self.all_is_back(pods, acknowledged, [first, second, *self.c.agents])
        led.boot().start(ready=False)
        self.all_is_back(pods, acknowledged, self.c.machines)

    def test_7_the_power_fails_and_agents_are_first_to_be_back(self):
        order = [*self.c.agents, *reversed(self.c.servers)]
        self.all_is_back(*self.power_cut(*order), order)

    def test_7_the_power_fails_and_all_are_back_at_once(self):
        led = self.c.leader()
        order = [led, *(machine for machine in self.c.machines if machine is not led)]
        self.all_is_back(*self.power_cut(*order, at_once=True), order)

    def term(self):
        """The number of elections there were, and then some."""
        server = self.c.living()
        return json.loads(server.exec(lab.BINARY, "store", "status", "-o", "json", *server.local()).out)["term"]

    def bears(self, what, seconds, elections):
        """Links are bad for a while: writes go on, the same server leads (more or less), nodes stay Ready."""
        term, writing = self.term(), self.write_everywhere(what)
        ready = {machine.name: self.ready_since(machine) for machine in self.c.machines}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(1)
        acknowledged = self.acknowledged(writing)
        for agent in self.c.agents:
            self.assertGreater(sum(name.startswith(f"{what}-{agent.name}") for name in acknowledged), seconds / 4)
        print(f"       {what}: {self.term() - term} elections in {seconds} s")
        self.assertLessEqual(self.term() - term, elections)
        self.assertEqual({machine.name: self.ready_since(machine) for machine in self.c.machines}, ready)
        return acknowledged

    def ready_since(self, machine):
        conditions = self.c.node(machine)["status"]["conditions"]
        return next((c["status"], c["lastTransitionTime"]) for c in conditions if c["type"] == "Ready")

    def test_8_lossy_links(self):
        for machine in self.c.machines:
            machine.wire.lossy(0.1)
        try:
            acknowledged = self.bears("lossy", 15, elections=4)
        finally:
            for machine in self.c.machines:
                machine.wire.lossy(0)
        self.nothing_lost(acknowledged)

    def test_9_slow_links(self):
        # Both ways and at both ends: round trips of 180 ms.
        self.is_slow("slow", 45)

    def test_9_very_slow_links_for_those_who_are_told(self):
        for server in self.c.servers:
            self.assertEqual(server.stop(), 0)
            server.start("--etcd-arg", "heartbeat-interval=500", "--etcd-arg", "election-timeout=5000", ready=False)
            self.caught_up(server)
        # Round trips of 400 ms, as by way of satellites.
        self.is_slow("very-slow", 100)

    def is_slow(self, what, milliseconds):
        for machine in self.c.machines:
            machine.wire.slow(milliseconds)
        try:
            # What was on the wires when they were changed is lost, and perhaps the leader with it.
            wait_for("a write", lambda: self.m.kubectl("create", "configmap", what, "--request-timeout=10s"), 60)
            acknowledged = self.bears(what, 15, elections=4)
        finally:
            for machine in self.c.machines:
                machine.wire.slow(0)
        self.nothing_lost(acknowledged)
