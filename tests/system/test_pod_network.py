"""One pod network over several machines, with real packets: both backends, Services, DNS, and machines that come, move, go
and die."""

import json
import subprocess
import sys
import time

import lab
from lab import wait_for
from lab.network import in_net

# Answers with its name and the address the question came from.
WHO = r"""
mkdir -p /www/cgi-bin
printf '#!/bin/sh\necho "Content-Type: text/plain"\necho\necho "$(hostname) $(echo $REMOTE_ADDR | sed "s/.*ffff://; s/]//")"\n' > /www/cgi-bin/who
chmod +x /www/cgi-bin/who
exec httpd -f -p 80 -h /www
"""
# The same on a machine, or outside of all.
WHO_OUTSIDE = """
import http.server, sys
class Who(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{sys.argv[1]} {self.client_address[0]}".encode())
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", 7777), Who)
print("up", flush=True)
server.serve_forever()
"""


class Crossing(lab.ClusterCase):
    """What tests of both backends do."""

    def ask_from_pod(self, pod, host, port=80, path="/cgi-bin/who"):
        return self.ask_often_from_pod(1, pod, host, port, path)[0]

    def ask_often_from_pod(self, times, pod, host, port=80, path="/cgi-bin/who"):
        """Every answer, an empty one where there was none; asked from inside, so that it does not take a command each."""
        once = f"printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} {port} | tail -n 1"
        script = f"for i in $(seq {times}); do answer=$({once}); echo \"$answer\"; done"
        return self.m.out("exec", pod, "--", "sh", "-c", script, timeout=30 + 5 * times).split("\n")

    def ask(self, machine, host, port=80):
        return machine.get_url(f"http://{host}:{port}/cgi-bin/who")

    def ask_often(self, times, machine, host):
        """As `ask`, with a connection of its own each time."""
        url = f"http://{host}:80/cgi-bin/who"
        return machine.sh(f"for i in $(seq {times}); do curl -sSf -m 3 {url}; done", timeout=30 + 3 * times).split("\n")[:times]

    def ask_from_outside(self, host, port):
        return in_net(self.c.network.pid, f"curl -sSf -m 3 http://{host}:{port}/cgi-bin/who").strip()

    def pod_per_machine(self, prefix, machines=None):
        """A pod on each machine that says who asks it; by name of the machine: (pod, address)."""
        pods, machines = {}, machines or self.c.machines
        for machine in machines:
            name = f"{prefix}-{machine.name}"
            self.m.run_pod(name, script=WHO, labels={"app": prefix}, spec={"nodeName": machine.name}, wait=False)
        for machine in machines:
            name = f"{prefix}-{machine.name}"
            self.m.wait("pod/" + name, "condition=Ready", 60)
            pods[machine.name] = (name, self.m.pod(name)["status"]["podIP"])
        return pods

    def service(self, name, selector, **spec):
        ports = [{"port": 80, "targetPort": 80}]
        self.m.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                      "spec": {"selector": {"app": selector}, "ports": ports, **spec}})
        return self.m.json("get", "service", name)["spec"]

    def everything_reaches_everything(self, prefix, machines):
        pods = self.pod_per_machine(prefix, machines)
        ranges = {m.name: self.c.node(m)["spec"]["podCIDR"] for m in machines}
        self.assertEqual(len(set(ranges.values())), len(machines), ranges)
        cluster_ip = self.service(prefix, prefix)["clusterIP"]
        outside = self.c.network.links[0].router
        self.answering(self.c.network.pid, "outside")
        for machine in machines:
            self.answering(machine.pid, machine.name)
        for one in machines:
            pod, ip = pods[one.name]
            for other in machines:
                name, address = pods[other.name]
                with self.subTest(pod=pod, other=name):
                    # Pods see each other's own addresses.
                    self.assertEqual(wait_for("an answer", lambda: self.ask_from_pod(pod, address), 20), f"{name} {ip}")
                with self.subTest(node=one.name, pod=name):
                    self.assertEqual(self.ask(one, address).split()[0], name)
                with self.subTest(pod=pod, node=other.name):
                    self.assertEqual(self.ask_from_pod(pod, other.ip, 7777).split()[0], other.name)
            # Each answer is of one of the pods, and each pod is among them.
            answers = self.ask_often_from_pod(8 * len(machines), pod, cluster_ip)
            self.assertEqual({answer.split(" ")[0] for answer in answers}, {pods[m.name][0] for m in machines},
                             "a Service spreads over all nodes")
            answers = self.ask_often(8 * len(machines), one, cluster_ip)
            self.assertEqual({answer.split(" ")[0] for answer in answers}, {pods[m.name][0] for m in machines})
            self.assertEqual(self.ask_from_pod(pod, outside, 7777), f"outside {one.ip}", "outside, a pod is its node")

    def answering(self, pid, name):
        """Starts a server on port 7777 in the network of a process; it ends with the test."""
        server = subprocess.Popen(["nsenter", "-t", str(pid), "-n", sys.executable, "-c", WHO_OUTSIDE, name],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait, 10)
        self.addCleanup(server.kill)
        self.assertEqual(server.stdout.readline(), "up\n")


class Vxlan(Crossing):
    """A server and two agents, the second of which is on another link."""

    @classmethod
    def cluster(cls):
        network = lab.Network()
        near, far = network.link(), network.link()
        return lab.Cluster([near], [near, far], network=network)

    def test_everything_reaches_everything(self):
        self.everything_reaches_everything("all", self.c.machines)

    def test_much_data_passes(self):
        pods = self.pod_per_machine("much")
        near, far = pods["agent1"], pods["agent2"]
        self.m.out("exec", near[0], "--", "dd", "if=/dev/zero", "of=/www/much", "bs=65536", "count=64")
        get = f"printf 'GET /much HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {near[1]} 80 | wc -c"
        count = int(self.m.out("exec", far[0], "--", "sh", "-c", get, timeout=60))
        self.assertGreater(count, 64 * 65536)

    def test_node_ports_answer_on_every_node(self):
        self.m.run_pod("lone", script=WHO, spec={"nodeName": "agent2"})
        port = self.service("lone", "lone", type="NodePort")["ports"][0]["nodePort"]
        for machine in self.c.machines:
            with self.subTest(machine=machine.name):
                wait_for("an answer from outside", lambda: self.ask_from_outside(machine.ip, port), 20)
                for asker in self.c.machines:
                    self.assertEqual(self.ask(asker, machine.ip, port).split()[0], "lone")

    def test_local_traffic_stays_and_shows_who_asks(self):
        self.m.run_pod("local", script=WHO, spec={"nodeName": "agent1"})
        spec = self.service("local", "local", type="LoadBalancer", externalTrafficPolicy="Local")
        port, health = spec["ports"][0]["nodePort"], spec["healthCheckNodePort"]
        agent1, agent2 = self.c.agents
        router = self.c.network.links[0].router
        wait_for("an answer", lambda: self.ask_from_outside(agent1.ip, port), 20)
        self.assertEqual(self.ask_from_outside(agent1.ip, port), f"local {router}", "the client's own address")
        script = f"curl -s -m 2 -o /dev/null http://{agent2.ip}:{port}/ && echo answered || true"
        self.assertEqual(in_net(self.c.network.pid, script), "", "no endpoint there")
        for machine, code in [(agent1, "200"), (agent2, "503")]:
            def health_of(machine=machine):
                return in_net(self.c.network.pid, f"curl -s -m 2 -o /dev/null -w '%{{http_code}}' "
                                                  f"http://{machine.ip}:{health}/healthz || true")
            wait_for(f"health {code} on {machine.name}", lambda: health_of() == code, 10)

    def test_internal_traffic_stays_on_the_node(self):
        pods = self.pod_per_machine("inner")
        ip = self.service("inner", "inner", internalTrafficPolicy="Local")["clusterIP"]
        for name, (pod, _) in pods.items():
            wait_for("an answer", lambda: self.ask_from_pod(pod, ip), 20)
            self.assertEqual({self.ask_from_pod(pod, ip).split()[0] for _ in range(6)}, {pod})

    def test_a_host_port_answers_from_everywhere(self):
        self.m.run_pod("held", script=WHO, spec={"nodeName": "agent1"},
                       container={"ports": [{"containerPort": 80, "hostPort": 8088}]})
        address = self.c.agents[0].ip
        pods = self.pod_per_machine("asker")
        wait_for("an answer", lambda: self.ask_from_outside(address, 8088), 20)
        for machine in self.c.machines:
            with self.subTest(machine=machine.name):
                self.assertEqual(self.ask(machine, address, 8088).split()[0], "held")
                self.assertEqual(self.ask_from_pod(pods[machine.name][0], address, 8088).split()[0], "held")
        # Only where the pod is.
        refused = self.m.exec("curl", "-s", "-m", "2", f"http://{self.c.agents[1].ip}:8088/", check=False)
        self.assertEqual(refused.code, 7, repr(refused))

    def test_nodes_say_where_they_are(self):
        for machine in self.c.machines:
            said = self.c.node(machine)["metadata"]["annotations"]
            prefix = "flannel.alpha.coreos.com/"
            self.assertEqual((said[prefix + "backend-type"], said[prefix + "public-ip"]), ("vxlan", machine.ip))
            self.assertEqual(said[prefix + "kube-subnet-manager"], "true")
            mac = json.loads(machine.sh("ip -j link show flannel.1"))[0]["address"]
            self.assertEqual(json.loads(said[prefix + "backend-data"]), {"VNI": 1, "VtepMAC": mac})
            link = json.loads(machine.sh("ip -d -j link show flannel.1"))[0]
            self.assertEqual((link["mtu"], link["linkinfo"]["info_data"]["port"]), (1450, 8472))

    def test_restarted_mussel_takes_away_what_is_stale_and_keeps_what_is_not_its_own(self):
        agent1, agent2 = self.c.agents
        agent1.stop()
        agent1.sh("""
            ip route add 10.42.200.0/24 via 10.42.200.0 dev flannel.1 onlink proto 109
            bridge fdb add 02:00:00:00:00:99 dst 192.0.2.99 dev flannel.1 self
            ip route add 10.42.201.0/24 via 192.168.101.1""")
        agent1.start(ready=False)
        wait_for("the stale route to go", lambda: "10.42.200.0" not in agent1.sh("ip route"), 30)
        wait_for("the stale entry to go", lambda: "192.0.2.99" not in agent1.sh("bridge fdb show dev flannel.1"), 10)
        self.assertIn("10.42.201.0/24", agent1.sh("ip route"))
        agent1.sh("ip route del 10.42.201.0/24")
        self.c.wait_node(agent1)
        self.assertIn(f"dst {agent2.ip}", agent1.sh("bridge fdb show dev flannel.1"))

    def test_each_node_answers_dns_and_services_while_no_server_does(self):
        pods = self.pod_per_machine("calm")
        ip = self.service("calm", "calm")["clusterIP"]
        agent1, agent2 = self.c.agents
        pod = pods["agent1"][0]
        wait_for("an answer", lambda: self.ask_from_pod(pod, ip), 20)
        # kubectl exec needs the server; the containers are entered from their machine.
        pid = agent1.sh("pgrep -f 'httpd -f -p 80' | head -n 50").split()
        inside = next(p for p in pid if self.hostname(agent1, p) == pod)
        def in_pod(command):
            return agent1.sh(f"nsenter -t {inside} -n -m -u -- /bin/busybox {command}")
        self.assertIn(ip, in_pod("nslookup calm.default.svc.cluster.local 10.43.0.10"))
        self.m.stop()
        try:
            self.assertIn(ip, in_pod("nslookup calm.default.svc.cluster.local 10.43.0.10"))
            self.assertIn("calm-", agent1.get_url(f"http://{ip}/cgi-bin/who"))
            # Also after mussel was started anew on the node: from what is on disk.
            agent1.stop()
            agent1.start(ready=False)
            wait_for("the name after a restart without a server", lambda: ip in in_pod(
                "nslookup calm.default.svc.cluster.local 10.43.0.10"), 30)
            self.assertIn(f"dst {agent2.ip}", agent1.sh("bridge fdb show dev flannel.1"))
        finally:
            self.m.start()
        self.c.wait_node(agent1)

    @staticmethod
    def hostname(machine, pid):
        return machine.exec("nsenter", "-t", pid, "-u", "--", "hostname", check=False).out.strip()


class HostGw(Crossing):
    """A server and an agent on one link, and one that host-gw cannot reach."""

    @classmethod
    def cluster(cls):
        network = lab.Network()
        near, far = network.link(), network.link()
        return lab.Cluster([near], [near, far], flags=["--flannel-backend", "host-gw"], network=network)

    def test_everything_on_the_link_reaches_everything(self):
        near = [self.m, self.c.agents[0]]
        self.everything_reaches_everything("all", near)
        for one, other in [near, near[::-1]]:
            route = f"{self.c.node(other)['spec']['podCIDR']} via {other.ip} dev eth0 proto 109"
            self.assertIn(route, one.sh("ip route"))
            self.assertNotIn("flannel", one.sh("ip -br link"))
        wait_for("a warning", lambda: "is not on this node's link" in self.m.log(), 10)


class Changes(Crossing):
    """Machines that come, move and go. Each test brings the cluster back to what it was."""

    agents, time_limit = 1, 300

    def test_a_node_that_comes_and_goes(self):
        late = self.c.add_agent()
        late.start(ready=False)
        self.c.wait_node(late)
        ip = self.c.pod_on(late, "guest", script=WHO)
        for machine in (self.m, self.c.agents[0]):
            self.assertEqual(wait_for("an answer", lambda: self.ask(machine, ip), 20).split()[0], "guest")
        cidr = self.c.node(late)["spec"]["podCIDR"]
        late.stop()
        done = late.killall()
        self.assertEqual(done.code, 0, repr(done))
        self.assertEqual(late.leftovers(), [])
        self.m.kubectl("delete", "node", late.name)
        for machine in (self.m, self.c.agents[0]):
            wait_for("the route to go", lambda: cidr not in machine.sh("ip route"), 20)
            self.assertNotIn(late.ip, machine.sh("bridge fdb show dev flannel.1"))
        self.c.agents.remove(late)
        late.down()

    def test_a_node_that_gets_another_address(self):
        agent = self.c.agents[0]
        ip = self.c.pod_on(agent, "moving", script=WHO)
        wait_for("an answer", lambda: self.ask(self.m, ip), 20)
        agent.stop()
        before, agent.ip = agent.ip, self.c.lan.next_address()
        agent.sh(f"""
            ip addr flush dev eth0
            ip addr add {agent.ip}/24 dev eth0
            ip route add default via {self.c.lan.router}""")
        agent.start(ready=False)
        self.c.wait_node(agent)
        wait_for("an answer from the pod at the new address", lambda: self.ask(self.m, ip), 30)
        wait_for("the new address on the Node", lambda: agent.ip in json.dumps(self.c.node(agent)["status"]["addresses"]), 20)
        forwards = self.m.sh("bridge fdb show dev flannel.1")
        self.assertIn(agent.ip, forwards)
        self.assertNotIn(before + " ", forwards)


class Death(Crossing):
    """A machine that dies, seen by Services and by its pods."""

    agents, time_limit = 2, 400

    def test_a_node_that_is_cut_off(self):
        agent1, agent2 = self.c.agents
        self.m.kubectl("label", "node", agent1.name, agent2.name, "lab=agent")
        self.m.apply({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}}, "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "tolerations": [{"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute",
                                     "tolerationSeconds": 5} for key in ("unreachable", "not-ready")],
                    "nodeSelector": {"lab": "agent"},
                    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                                                   "whenUnsatisfiable": "ScheduleAnyway",
                                                   "labelSelector": {"matchLabels": {"app": "web"}}}],
                    "containers": [{"name": "main", "image": lab.BUSYBOX, "command": ["sh", "-c", WHO]}]}}}})
        self.m.rolled_out("deployment/web", deadline=60)
        pods = self.m.json("get", "pods", "-l", "app=web")["items"]
        self.assertEqual({p["spec"]["nodeName"] for p in pods}, {"agent1", "agent2"})
        ip = self.service("web", "web")["clusterIP"]
        wait_for("an answer", lambda: self.ask(self.m, ip), 20)
        self.c.pod_on(agent1, "stays", spec={"tolerations": [{"operator": "Exists"}]})
        kept = agent1.container_pids("sleep 1000000")
        self.assertEqual(len(kept), 1)

        agent1.wire.cut()
        cut = time.monotonic()
        self.c.wait_node(agent1, "Unknown", 90)
        silent = time.monotonic() - cut
        # The lease was renewed up to 10 s before the cut; the grace period is 50 s.
        self.assertTrue(35 <= silent <= 60 * lab.PATIENCE, f"NotReady after {silent:.0f} s")
        wait_for("both taints", lambda: {t["effect"] for t in self.c.node(agent1)["spec"].get("taints", [])
                                         if t["key"] == "node.kubernetes.io/unreachable"}
                 == {"NoSchedule", "NoExecute"}, 30)
        def endpoints():
            slices = self.m.json("get", "endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
            return {e.get("nodeName") for s in slices for e in s.get("endpoints") or [] if e["conditions"].get("ready")}
        wait_for("no endpoint on the dead node", lambda: endpoints() == {"agent2"}, 20)
        for _ in range(10):
            wait_for("the rules to follow", lambda: self.ask(self.m, ip), 10)
        self.assertTrue(all(self.ask(self.m, ip) for _ in range(20)), "only what lives answers")
        def replaced():
            pods = self.m.json("get", "pods", "-l", "app=web")["items"]
            ready = [p for p in pods if p["spec"].get("nodeName") == "agent2" and "deletionTimestamp" not in p["metadata"]
                     and any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", []))]
            return len(ready) == 2
        wait_for("the pod to be replaced on the other node", replaced, 60)
        self.assertEqual(agent1.container_pids("sleep 1000000"), kept, "pods of the cut-off node run on")

        asked = self.requests()
        agent1.wire.mend()
        self.c.wait_node(agent1, "True", 60)
        wait_for("the taints to go", lambda: not self.c.node(agent1)["spec"].get("taints"), 30)
        def ended():
            pods = self.m.json("get", "pods", "-l", "app=web")["items"]
            return len(pods) == 2 and {p["spec"]["nodeName"] for p in pods} == {"agent2"}
        wait_for("the evicted pod to end", ended, 60)
        self.assertEqual(agent1.container_pids("sleep 1000000"), kept, "what was not evicted lives on")
        self.m.wait("pod/stays", "condition=Ready", 30)
        # What this test asks is among them.
        asked = self.requests() - asked
        print(f"       {asked:.0f} requests since the node is back")
        self.assertLess(asked, 500, "no storm of requests")

    def requests(self):
        """How many requests the API has answered."""
        lines = self.m.curl("/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("apiserver_request_total{"))
