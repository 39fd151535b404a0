"""Three servers and two agents, with clients that ask all the time, while servers and machines fail under them."""

import json
import time

import lab
from lab import clients, wait_for

# Every request says which pod answered. A page is read, not a program started: the machine has two processors for all.
PAGE = "mkdir -p /www && hostname > /www/index.html && exec httpd -f -p 80 -h /www"


class Served(lab.ClusterCase):
    """A Service with an endpoint on every machine, and who asks it."""

    servers, agents = 3, 2
    time_limit = 400

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
            cls.asker = clients.pod_pid(cls.c.agents[0], cls.m.pod("asker")["metadata"]["uid"])
            for machine in cls.c.machines:
                wait_for(f"the Service on {machine.name}", lambda: machine.get_url(f"http://{cls.cluster_ip}/"), 30)
        except BaseException:
            print(cls.c.explain())
            cls.c.down()
            raise

    def living(self):
        return next(s for s in self.c.servers if s.running())

    def pods(self):
        """The address of each endpoint, by pod."""
        found = self.living().json("get", "pods", "-l", "app=web")["items"]
        return {p["metadata"]["name"]: (p["status"].get("podIP"), p["spec"]["nodeName"]) for p in found}

    def containers(self):
        """All that must not change while nobody touches a pod."""
        found = self.living().json("get", "pods", "-A")["items"]
        return sorted((p["metadata"]["name"], s["containerID"], s["restartCount"])
                      for p in found for s in p["status"].get("containerStatuses", []))

    def start(self, client):
        self.addCleanup(client.kill)
        return client

    def ask_everywhere(self):
        """In a pod by name and by the node's DNS, on a machine by ClusterIP, outside by the NodePort of two machines."""
        agent1, agent2 = self.c.agents
        return [self.start(clients.asking("a pod", self.asker, "web.default.svc.cluster.local", dns="10.43.0.10")),
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

    def nothing_lost(self, writing):
        """Every acknowledged write is there, as every server sees it."""
        for client in writing:
            seen = client.end()
            self.assertTrue(seen["acknowledged"], seen)
            print(f"       {client.name}: {len(seen['acknowledged'])} writes, longest wait {seen['longest']} s, "
                  f"refused: {seen['failures']}")
            for server in filter(lab.Machine.running, self.c.servers):
                there = server.json("get", "configmaps")["items"]
                lost = set(seen["acknowledged"]) - {item["metadata"]["name"] for item in there}
                self.assertEqual(lost, set(), f"{client.name}, as {server.name} sees it")

    def caught_up(self, machine):
        """The server answers, and its node reports again."""
        wait_for(f"{machine.name} to serve", lambda: machine.kubectl("get", "--raw", "/readyz", "--request-timeout=2s"), 60)
        self.c.wait_node(machine)


class Failures(Served):
    def test_1_any_one_server_dies_and_nobody_notices(self):
        before, pods = self.containers(), self.pods()
        asking, writing = self.ask_everywhere(), self.write_everywhere("one")
        for victim in self.c.servers:
            # Each server, so that the leader is among them, wherever it is.
            victim.kill9()
            living = self.living()
            for agent in self.c.agents:
                wait_for(f"the API on {agent.name}", lambda: agent.kubectl(
                    "--kubeconfig", agent.data + "/agent/kubelet.kubeconfig", "get", "node", agent.name,
                    "--request-timeout=2s"), 20, 0.05)
            wait_for("a write", lambda: living.kubectl("annotate", "node", "agent1", f"lab/x={time.time()}",
                                                       "--overwrite", "--request-timeout=5s"), 20, 0.05)
            victim.start(ready=False)
            self.caught_up(victim)
        self.nothing_failed(asking, pods)
        self.nothing_lost(writing)
        self.assertEqual(self.containers(), before, "no pod is touched")

    def test_2_two_of_three_servers_die(self):
        before, pods = self.containers(), self.pods()
        asking = self.ask_everywhere()
        last, *dead = self.c.servers
        for victim in dead:
            victim.kill9()
        done = last.kubectl("create", "configmap", "no-quorum", "--request-timeout=20s", check=False, timeout=40)
        self.assertNotEqual(done.code, 0)
        self.assertIn("no leader", done.err)
        self.assertEqual(last.curl("/api/v1/namespaces/default/configmaps", method="POST", body=json.dumps(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "no-quorum"}}))[0], 503)
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
        victim = self.c.servers[2]
        dead = {ip for ip, node in pods.values() if node == victim.name}
        asking = {self.start(clients.asking("a pod", self.asker, self.cluster_ip)): self.c.agents[0],
                  self.start(clients.asking("agent2", self.c.agents[1].pid, self.cluster_ip)): self.c.agents[1]}
        died = time.monotonic()
        victim.wire.cut()
        victim.kill9()
        self.m.kubectl("get", "nodes")

        def endpoints():
            slices = self.living().json("get", "endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
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
        self.nothing_lost(writing)
        victim.wire.mend()
        victim.start(ready=False)
        self.caught_up(victim)
        wait_for("its endpoint to be back", lambda: endpoints() == {ip for ip, _ in self.pods().values()}, 60)
