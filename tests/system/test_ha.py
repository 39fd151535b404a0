"""Three servers: each may die, they hand over when they go, and one whose node was deleted stays out."""

import json
import os
import signal
import time

import lab
from lab import wait_for
from lab.cluster import TOKEN


class Servers(lab.ClusterCase):
    servers, agents = 3, 1
    time_limit = 300

    def living(self):
        return next(s for s in self.c.servers if s.running())

    def endpoints(self):
        found = self.living().json("get", "endpointslices", "kubernetes")
        return sorted(e["addresses"][0] for e in found["endpoints"])

    def wait_endpoints(self, machines, deadline=30):
        wanted = sorted(m.ip for m in machines)
        wait_for(f"endpoints {wanted}", lambda: self.endpoints() == wanted, deadline)

    def agent_api(self, *args, **options):
        agent = self.c.agents[0]
        return agent.kubectl("--kubeconfig", agent.data + "/agent/kubelet.kubeconfig", *args, **options)

    def test_1_all_are_one_cluster(self):
        self.wait_endpoints(self.c.servers)
        for server in self.c.servers:
            server.kubectl("create", "configmap", "from-" + server.name)
        for server in self.c.servers:
            names = server.out("get", "configmap", "-o", "name")
            for other in self.c.servers:
                self.assertIn("from-" + other.name, names)
        kept = self.c.agents[0].data + "/agent/etc/mussel-agent-load-balancer.json"
        wait_for("the agent's list", lambda: len(json.load(open(kept))["server_addresses"]) == 3)
        for server in self.c.servers:
            wait_for(f"tunnel to {server.name}", lambda: 'tunnel opened node="agent1"' in server.log())
        self.c.pod_on(self.c.agents[0], "steady")
        for server in self.c.servers:
            self.assertEqual(server.out("exec", "steady", "--", "hostname"), "steady")

    def test_2_a_killed_server_is_not_missed(self):
        pods = self.c.agents[0].container_pids("sleep 1000000")
        for _ in range(2):
            for victim in list(self.c.servers):
                victim.kill9()
                wait_for("the API through the agent", lambda: self.agent_api(
                    "get", "node", "agent1", "--request-timeout=2s", timeout=5), 30, 0.05)
                other = self.living()
                wait_for("a write", lambda: other.kubectl(
                    "annotate", "node", "agent1", f"lab/x={time.time()}", "--overwrite", "--request-timeout=5s"), 30, 0.05)
                self.wait_endpoints([s for s in self.c.servers if s is not victim])
                self.assertEqual(self.c.agents[0].container_pids("sleep 1000000"), pods, "no pod is touched")
                victim.start(ready=False)
                self.wait_endpoints(self.c.servers)

    def test_3_leadership_is_handed_over(self):
        leader = self.c.leader()
        code = leader.stop()
        self.assertEqual(code, 0)
        self.assertIn("leadership is handed over", leader.log_tail(40))
        leader.start(ready=False)
        self.wait_endpoints(self.c.servers)

    def status(self, server):
        return json.loads(server.exec(lab.BINARY, "store", "status", "-o", "json", *server.local()).out)

    def test_3b_the_stores_status_tells_the_truth(self):
        leader = self.c.leader()
        victim = next(s for s in self.c.servers if s is not leader)
        lag = lambda: next(m for m in self.status(leader)["members"] if m["name"] == victim.name)
        pid = victim._server_pid()
        # What waits for the server outside of its namespaces stops with it, and does not go on with it.
        pids = [pid, victim.server.pid]
        os.kill(pid, signal.SIGSTOP)
        try:
            for n in range(20):
                leader.kubectl("annotate", "node", "agent1", f"lab/lag={n}", "--overwrite")
            wait_for("the member that stands still to be missed", lambda: lag()["reachable"] is False, 30)
            self.assertGreaterEqual(lag()["lagEntries"], 20)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        wait_for("it to catch up", lambda: (lag()["reachable"], lag()["lagEntries"]) == (True, 0), 60)

        def agree():
            states = [self.status(server) for server in self.c.servers]
            return len({(s["cluster"], s["leader"], s["term"], s["revision"], s["digest"], s["keys"]) for s in states}) == 1
        wait_for("all to say the same", agree, 60)
        for server in self.c.servers:
            db = server.data + "/server/db"
            size = sum(os.path.getsize(f"{db}/{name}") for name in ["sled/db", *(f"log/{n}" for n in os.listdir(db + "/log"))])
            self.assertLess(abs(self.status(server)["dbBytes"] - size), 2 << 20)

    def test_4_two_of_three_dead(self):
        a, b, c = self.c.servers
        b.kill9()
        c.kill9()
        done = a.kubectl("create", "configmap", "no-quorum", "--request-timeout=20s", check=False, timeout=40)
        self.assertNotEqual(done.code, 0)
        self.assertIn("no leader", done.err)
        self.assertIn("agent1", a.out("get", "--raw", "/api/v1/nodes?resourceVersion=0"), "reads that need not be new")
        b.start(ready=False)
        wait_for("writes again", lambda: a.kubectl("create", "configmap", "quorum", "--request-timeout=5s"), 60)
        c.start(ready=False)
        self.wait_endpoints(self.c.servers, 60)

    def test_5_a_joining_server_must_fit(self):
        for flags, says in [(["--cluster-cidr", "10.50.0.0/16"], "--cluster-cidr is 10.50.0.0/16 here and 10.42.0.0/16"),
                            (["--token", "wrong"], "the token is not this cluster's"),
                            (["--token", "K10" + "0" * 64 + "::server:" + TOKEN], "is not the one that the token names")]:
            machine = self.c.add_server()
            self.c.servers.remove(machine)
            try:
                done = machine.exec(*machine.command(*flags), check=False, timeout=30)
                self.assertEqual(done.code, 1, done)
                self.assertIn(says, done.err)
                self.assertFalse(os.path.exists(machine.data + "/server/tls/server-ca.key"))
                self.assertFalse(os.path.exists(machine.data + "/server/db"))
            finally:
                machine.down()

    def test_5_a_name_is_one_servers(self):
        taken = self.c.servers[0]
        for flags, says in [([], "another machine has the name"), (["--disable-agent"], "another server has the name")]:
            machine = self.c.add_server()
            self.c.servers.remove(machine)
            try:
                done = machine.exec(*machine.command("--node-name", taken.name, *flags), check=False, timeout=30)
                self.assertEqual(done.code, 1, done)
                self.assertIn(says, done.err)
                self.assertFalse(os.path.exists(machine.data + "/server/tls/server-ca.key"))
                self.assertEqual(machine.sh("ls /etc/mussel/node 2>/dev/null || true"), "")
            finally:
                machine.down()
        status = json.loads(taken.exec(lab.BINARY, "store", "status", "-o", "json", *taken.local()).out)
        self.assertEqual(len(status["members"]), 3, status)

    def test_6_a_deleted_server_stays_out_and_can_come_anew(self):
        first, gone = self.c.servers[0], self.c.servers[2]
        first.kubectl("delete", "node", gone.name)
        wait_for("the server to end", lambda: not gone.running(), 30)
        self.assertIn("removed", gone.log_tail(10))
        self.wait_endpoints(self.c.servers[:2])
        done = gone.exec(*gone.command(), check=False, timeout=30)
        self.assertEqual(done.code, 1)
        self.assertIn("removed", done.err)
        gone.killall()
        gone.sh(f"rm -rf {gone.data}/server/db")
        gone.start(ready=False)
        self.wait_endpoints(self.c.servers, 60)
        self.c.wait_node(gone)

    def test_7_a_server_is_taken_out_and_its_node_stays(self):
        first, gone = self.c.servers[0], self.c.servers[1]
        first.kubectl("annotate", "node", gone.name, "etcd.mussel.io/remove=true")
        wait_for("the server to end", lambda: not gone.running(), 30)
        said = self.c.node(gone)["metadata"]["annotations"]
        self.assertEqual(said["etcd.mussel.io/removed-node-name"], gone.name)
        self.assertNotIn("etcd.mussel.io/remove", said)
        gone.sh(f"rm -rf {gone.data}/server/db")
        gone.start(ready=False)
        self.wait_endpoints(self.c.servers, 60)
        self.c.wait_node(gone)

    def test_8_a_server_with_another_address_is_the_same_member(self):
        machine, before = self.c.servers[2], self.c.servers[2].ip
        self.assertEqual(machine.stop(), 0)
        machine.ip = self.c.lan.next_address()
        machine.sh(f"""
            ip addr del {before}/24 dev eth0
            ip addr add {machine.ip}/24 dev eth0
            ip route replace default via {self.c.lan.router}""")
        machine.start(ready=False)
        self.wait_endpoints(self.c.servers, 60)
        self.c.wait_node(machine)
        first = self.c.servers[0]
        status = json.loads(first.exec(lab.BINARY, "store", "status", "-o", "json", *first.local()).out)
        self.assertEqual(sorted(member["address"] for member in status["members"]),
                         sorted(f"{server.ip}:6443" for server in self.c.servers))
        own = {"type": "InternalIP", "address": machine.ip}
        wait_for("the Node's address", lambda: own in self.c.node(machine)["status"]["addresses"], 30)

    def test_9_a_majority_that_is_lost_for_good(self):
        last, *lost = self.c.servers
        last.kubectl("create", "configmap", "precious")
        pods = self.c.agents[0].container_pids("sleep 1000000")
        for server in lost:
            server.kill9()
        self.assertEqual(last.stop(), 0)
        done = last.exec(*last.command("--cluster-reset"), timeout=60)
        self.assertIn("without --cluster-reset", done.out + done.err)
        last.start(ready=False)
        self.wait_endpoints([last], 60)
        last.kubectl("get", "configmap", "precious")
        wait_for("a write through the agent's balancer", lambda: self.agent_api(
            "annotate", "node", "agent1", "lab/y=1", "--overwrite", "--request-timeout=2s"), 30)
        for server in lost:
            server.sh(f"rm -rf {server.data}/server/db")
            server.start(ready=False)
        self.wait_endpoints(self.c.servers, 60)
        for server in lost:
            self.c.wait_node(server)
            server.kubectl("get", "configmap", "precious")
        self.assertEqual(self.c.agents[0].container_pids("sleep 1000000"), pods, "no pod of the agent is touched")
