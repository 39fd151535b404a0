"""Servers that leave parts to others: one that only keeps the store and runs no node, and one that does all."""

import json

import lab
from lab import wait_for
from lab.cluster import TOKEN
from lab.network import in_net


class Roles(lab.ClusterCase):
    servers, agents = 2, 1
    MOVE = """
        ip addr del {}/24 dev eth0
        ip addr add {}/24 dev eth0
        ip route replace default via """

    @classmethod
    def cluster(cls):
        cluster = super().cluster()
        store, full = cluster.servers
        store.flags += ["--disable-apiserver", "--disable-controller-manager", "--disable-scheduler", "--disable-agent"]

        def start():
            # The first machine has no API of its own to be asked by; all join by way of it nevertheless.
            store.start(ready=False)
            full.start()
            cluster.agents[0].start(ready=False)
            cluster.servers.reverse()
            cluster.wait_node(cluster.agents[0])
        cluster.start = start
        return cluster

    def setUp(self):
        super().setUp()
        self.full, self.store = self.c.servers

    def members(self):
        found = json.loads(self.full.exec(lab.BINARY, "store", "status", "-o", "json", *self.full.local()).out)["members"]
        return {member["name"]: member for member in found}

    def test_1_each_does_what_it_is_for(self):
        self.assertEqual({m["role"] for m in self.members().values()}, {"voter"})
        wait_for("who runs controllers to lead", lambda: self.members()[self.full.name]["leader"], 30)
        names = {node["metadata"]["name"] for node in self.full.json("get", "nodes")["items"]}
        self.assertEqual(names, {self.full.name, self.c.agents[0].name}, "no node without an agent")
        slices = self.full.json("get", "endpointslices", "kubernetes")
        self.assertEqual([e["addresses"] for e in slices["endpoints"]], [[self.full.ip]])
        self.full.deploy("web", replicas=2)
        code = in_net(self.c.network.pid, f"curl -sk -m 5 -o /dev/null -w '%{{http_code}}' https://{self.store.ip}:6443/version")
        self.assertEqual(code, "503", "no API here")
        said = self.c.node(self.c.agents[0])["metadata"]["annotations"]
        self.assertEqual(said["mussel.io/internal-ip"], self.c.agents[0].ip)
        args = json.loads(said["mussel.io/node-args"])
        self.assertEqual((args[0], args[args.index("--token") + 1]), ("agent", "********"))
        self.assertNotIn(TOKEN, json.dumps(said))
        kept = self.c.agents[0].data + "/agent/etc/mussel-agent-load-balancer.json"
        wait_for("the agent's list", lambda: json.load(open(kept))["server_addresses"] == [self.full.ip + ":6443"])

    def test_2_a_new_address_is_in_the_certificate_at_once(self):
        machine, before, new = self.full, self.full.ip, self.c.lan.next_address()
        machine.sh(self.MOVE.format(before, new) + self.c.lan.router)
        try:
            ask = ["curl", "-sS", "-m", "3", "--cacert", machine.data + "/server/tls/server-ca.crt"]
            wait_for("the certificate", lambda: machine.exec(*ask, f"https://{new}:6443/ping").out == "pong", 20)
        finally:
            machine.sh(self.MOVE.format(new, before) + self.c.lan.router)
        wait_for("a write", lambda: machine.kubectl("create", "configmap", "at-the-old-address"), 40)

    def test_2_so_it_is_for_an_agent(self):
        agent, new = self.c.agents[0], self.c.lan.next_address()
        before = agent.ip
        agent.sh(self.MOVE.format(before, new) + self.c.lan.router)
        try:
            ask = ["curl", "-sS", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}",
                   "--cacert", agent.data + "/agent/server-ca.crt", f"https://{new}:10250/pods"]
            wait_for("the certificate", lambda: agent.exec(*ask).out == "401", 20)
        finally:
            agent.sh(self.MOVE.format(new, before) + self.c.lan.router)

    def test_3_a_server_without_a_node_is_removed_by_its_name(self):
        wait_for("who runs controllers to lead", lambda: self.members()[self.full.name]["leader"], 30)
        remove = [lab.BINARY, "store", "remove", *self.full.local()]
        done = self.full.exec(*remove, "nobody", check=False)
        self.assertIn("no member is called", done.err)
        self.full.exec(*remove, self.store.name)
        self.assertEqual(list(self.members()), [self.full.name])
        wait_for("the server to end", lambda: not self.store.running(), 30)
        self.assertIn("removed from the cluster", self.store.log_tail(10))
        self.full.kubectl("create", "configmap", "alone")
        wait_for("what it said to go", lambda: self.store.name not in
                 self.full.json("get", "configmap", "mussel-servers", "-n", "kube-system")["data"], 20)
        done = self.full.exec(*remove, self.full.name, check=False)
        self.assertIn("the last voter", done.err)
