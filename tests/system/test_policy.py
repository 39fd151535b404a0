"""NetworkPolicies, with real packets between pods of one node and of two, to and from the outside, by Services, over restarts."""

import time

import lab
from lab import wait_for
from lab.network import in_net
from test_pod_network import WHO, Crossing


class Policies(Crossing):
    """A server and an agent; on the agent's node runs what policies are about."""

    servers, agents = 1, 1

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        try:
            cls.m.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team", "labels": {"team": "x"}}})
            here, there = cls.c.agents[0].name, cls.c.servers[0].name
            for name, node in [("web", here), ("near", here), ("far", there)]:
                cls.m.run_pod(name, script=WHO, spec={"nodeName": node}, wait=False)
            cls.m.apply({"apiVersion": "v1", "kind": "Pod",
                         "metadata": {"name": "foreign", "namespace": "team", "labels": {"app": "foreign"}},
                         "spec": {"nodeName": there, "terminationGracePeriodSeconds": 0, "containers": [
                             {"name": "main", "image": lab.BUSYBOX, "command": ["sh", "-c", "sleep 1000000"]}]}})
            for name in ("web", "near", "far"):
                cls.m.wait("pod/" + name, "condition=Ready", 60)
            cls.m.wait("pod/foreign", "condition=Ready", 60, namespace="team")
            cls.web = cls.m.pod("web")["status"]["podIP"]
            cls.far = cls.m.pod("far")["status"]["podIP"]
        except BaseException:
            cls.c.down()
            raise

    def tearDown(self):
        self.m.kubectl("delete", "networkpolicies", "--all", timeout=30)
        wait_for("the rules to go", lambda: "MUSSEL-NP" not in self.saved(), 20)
        super().tearDown()

    def saved(self):
        return self.c.agents[0].sh("iptables-save -t mangle")

    def policy(self, name, **spec):
        self.m.apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
                      "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], **spec}})

    def reaches(self, pod, host, port=80, namespace="default"):
        get = f"printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {host} {port} | tail -n 1"
        return self.m.out("exec", "-n", namespace, pod, "--", "sh", "-c", get, timeout=20).strip() != ""

    def becomes(self, expected, pod, host, port=80, namespace="default"):
        wait_for(f"{pod} to reach {host}:{port} = {expected}",
                 lambda: self.reaches(pod, host, port, namespace) == expected, 30)

    def outside_reaches(self, host, port=80):
        return in_net(self.c.network.pid, f"curl -s -m 2 -o /dev/null http://{host}:{port}/cgi-bin/who && echo yes || true") != ""

    def test_only_chosen_pods_come_in(self):
        self.policy("deny")
        for pod in ("near", "far"):
            self.becomes(False, pod, self.web)
        self.becomes(False, "foreign", self.web, namespace="team")
        self.assertTrue(self.reaches("web", self.web), "a pod reaches itself")
        self.assertTrue(self.reaches("web", self.far), "nothing is said of the other direction")
        self.assertEqual(self.ask(self.c.agents[0], self.web).split()[0], "web", "the pod's own node is let in")
        self.assertTrue(self.reaches("near", self.far), "no policy is about this one")
        # Policies add up.
        self.policy("near", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "near"}}}]}])
        self.becomes(True, "near", self.web)
        self.assertFalse(self.reaches("far", self.web))
        self.policy("team", ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"team": "x"}}}],
                                      "ports": [{"port": 80}]}])
        self.becomes(True, "foreign", self.web, namespace="team")
        self.assertFalse(self.reaches("far", self.web))
        # Labels of pods and namespaces are followed.
        self.m.kubectl("label", "pod", "far", "--overwrite", "app=near")
        self.addCleanup(self.m.kubectl, "label", "pod", "far", "--overwrite", "app=far")
        self.becomes(True, "far", self.web)
        self.m.kubectl("label", "namespace", "team", "--overwrite", "team=y")
        self.addCleanup(self.m.kubectl, "label", "namespace", "team", "--overwrite", "team=x")
        self.becomes(False, "foreign", self.web, namespace="team")

    def test_ports_and_addresses(self):
        router = self.c.network.links[0].router
        in_net(self.c.network.pid, f"ip route replace 10.42.0.0/16 via {self.c.agents[0].ip}")
        self.addCleanup(in_net, self.c.network.pid, "ip route del 10.42.0.0/16")
        wait_for("the outside to reach the pod", lambda: self.outside_reaches(self.web), 10)
        self.policy("none", ingress=[{"from": [{"ipBlock": {"cidr": "192.168.0.0/16", "except": [f"{router}/32"]}}]}])
        wait_for("the outside to be kept out", lambda: not self.outside_reaches(self.web), 20)
        self.assertFalse(self.reaches("near", self.web))
        self.policy("none", ingress=[{"from": [{"ipBlock": {"cidr": f"{router}/32"}}],
                                      "ports": [{"port": 70, "endPort": 80, "protocol": "TCP"}]}])
        wait_for("the outside to be let in", lambda: self.outside_reaches(self.web), 20)
        self.policy("none", ingress=[{"from": [{"ipBlock": {"cidr": f"{router}/32"}}], "ports": [{"port": 81}]}])
        wait_for("the outside to be kept out", lambda: not self.outside_reaches(self.web), 20)

    def test_services_are_judged_by_the_pods_behind_them(self):
        cluster_ip = self.service("far", "far")["clusterIP"]
        node_port = self.service("web", "web", type="NodePort")
        self.becomes(True, "web", cluster_ip)
        dns = "nslookup far.default.svc.cluster.local >/dev/null && echo found || true"

        def resolves():
            return "found" in self.m.out("exec", "web", "--", "sh", "-c", dns, timeout=30)
        wait_for("names", resolves, 20)
        self.policy("out", policyTypes=["Egress"])
        self.becomes(False, "web", cluster_ip)
        self.assertFalse(resolves(), "the DNS is a peer like others")
        self.policy("out", policyTypes=["Egress"], egress=[
            {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                     "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
             "ports": [{"port": 53, "protocol": "UDP"}]},
            {"to": [{"podSelector": {"matchLabels": {"app": "far"}}}], "ports": [{"port": 80}]}])
        self.becomes(True, "web", cluster_ip)
        wait_for("names", resolves, 20)
        self.assertFalse(self.reaches("web", self.m.pod("near")["status"]["podIP"]))
        # Answers to those who came in pass, and a port of the node leads to the same judge.
        self.becomes(True, "near", self.web)
        port = node_port["ports"][0]["nodePort"]
        agent = self.c.agents[0].ip
        wait_for("the node port", lambda: self.outside_reaches(agent, port), 20)
        self.policy("in")
        wait_for("the node port to be closed", lambda: not self.outside_reaches(agent, port), 20)

    def test_a_new_pod_is_never_reachable_before_its_policies(self):
        self.policy("deny", podSelector={"matchLabels": {"app": "late"}})
        # Asks the addresses that the pod may get for as long as it starts.
        prefix = self.web.rsplit(".", 1)[0]
        asking = "end=$(($(date +%s) + 12)); while [ $(date +%s) -lt $end ]; do for i in $(seq 2 24); do " \
                 f"[ {prefix}.$i = {self.web} ] || [ {prefix}.$i = $NEAR ] || " \
                 f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 1 {prefix}.$i 8080 2>/dev/null & done; wait; done"
        near = self.m.pod("near")["status"]["podIP"]
        script = f"NEAR={near}; {asking}"
        for name in ("late", "open"):
            serve = f"mkdir -p /w; echo reached {name} > /w/index.html; exec httpd -f -p 8080 -h /w"
            self.m.run_pod(name, script=serve, spec={"nodeName": self.c.agents[0].name}, wait=False)
        heard = self.m.out("exec", "far", "--", "sh", "-c", script, timeout=60)
        self.m.wait("pod/late", "condition=Ready", 60)
        self.assertIn("reached open", heard, "one that no policy is about is found this way")
        self.assertNotIn("reached late", heard)
        self.assertEqual(self.ask_index(self.m.pod("late")["status"]["podIP"]), "reached late", "its node reaches it")
        self.m.kubectl("delete", "pod", "late", "open", "--wait=true", timeout=60)

    def ask_index(self, ip):
        return self.c.agents[0].get_url(f"http://{ip}:8080/index.html")

    def test_rules_outlive_mussel(self):
        agent = self.c.agents[0]
        before = agent.sh("iptables-save -t mangle")
        self.assertNotIn("MUSSEL-POLICY", before, "nothing is installed without policies")
        self.policy("near", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "far"}}}]}])
        self.becomes(False, "near", self.web)
        agent.stop()
        self.assertFalse(self.from_near(agent), "stopped")
        self.assertTrue(self.reaches("far", self.web), "stopped")
        agent.start(ready=False)
        for _ in range(10):
            self.assertFalse(self.from_near(agent), "starting")
            time.sleep(0.5)
        self.c.wait_node(agent)
        self.assertTrue(self.reaches("far", self.web))
        # A flush by somebody else, which a restart mends at once.
        agent.stop()
        agent.sh("iptables -t mangle -F; iptables -t mangle -X")
        agent.start(ready=False)
        self.c.wait_node(agent)
        self.becomes(False, "near", self.web)
        self.m.kubectl("delete", "networkpolicies", "--all")
        self.becomes(True, "near", self.web)

        def lines(text):
            return [line.split("[")[0] for line in text.splitlines() if not line.startswith("#")]
        wait_for("the table as it was", lambda: lines(self.saved()) == lines(before), 20)

    def test_a_machine_that_boots_without_a_server_keeps_its_policies(self):
        agent, server = self.c.agents[0], self.c.first
        self.policy("far", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "far"}}}]}])
        self.becomes(False, "near", self.web)
        # A stop writes what is known.
        agent.stop()
        server.stop()
        agent.power_cut()
        agent.boot()
        agent.start(ready=False)

        def served():
            """Addresses of this node that answer the node itself: the pods are back, with other addresses."""
            prefix = self.web.rsplit(".", 1)[0]
            script = f"for i in $(seq 2 12); do curl -s -m 1 http://{prefix}.$i/cgi-bin/who || true; done"
            answers = {line.split(" ")[0] for line in agent.sh(script, timeout=60).split("\n")}
            return {"web", "near"} <= answers
        wait_for("the pods to be back", served, 90)
        prefix = self.web.rsplit(".", 1)[0]
        address = {}
        for i in range(2, 13):
            who = agent.sh(f"curl -s -m 1 http://{prefix}.{i}/cgi-bin/who || true", timeout=20).split(" ")[0]
            address[who] = f"{prefix}.{i}"
        asked = self.in_pod(agent, address["near"], f"curl -s -m 2 http://{address['web']}/cgi-bin/who && echo yes || echo no")
        self.assertTrue(asked.endswith("no"), asked)
        # The other node's pods run on, and are known.
        asked = self.in_pod(server, self.far, f"curl -s -m 2 http://{address['web']}/cgi-bin/who && echo yes || echo no")
        self.assertTrue(asked.endswith("yes"), asked)
        server.start(ready=False)
        self.c.wait_node(server)
        self.c.wait_node(agent)
        type(self).web = wait_for("news of the pod", lambda: self.m.pod("web")["status"]["podIP"] == address["web"]
                                  and address["web"], 60)
        self.assertFalse(self.reaches("near", self.web))
        self.becomes(True, "far", self.web)

    def in_pod(self, machine, address, script):
        """Runs a script in the network of the pod with this address, when no kubelet is there to do it."""
        return machine.sh(f"""
            for ns in {machine.run_dir}/netns/*; do
                nsenter --net=$ns ip -4 addr | grep -q 'inet {address}/' || continue
                nsenter --net=$ns sh -c "{script}"
            done""").strip()

    def from_near(self, agent):
        """As `reaches` from the pod near, when no kubelet answers: in the pod's own network."""
        near = self.m.pod("near")["status"]["podIP"]
        out = self.in_pod(agent, near, f"curl -s -m 2 -o /dev/null http://{self.web}/cgi-bin/who && echo yes || echo no")
        self.assertIn(out, ("yes", "no"))
        return out == "yes"


class Disabled(lab.ClusterCase):
    servers, agents = 1, 0

    def test_turned_off_nothing_is_left(self):
        self.m.run_pod("web", script=WHO)
        self.m.apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"},
                      "spec": {"podSelector": {}}})
        wait_for("the rules", lambda: "MUSSEL-POLICY" in self.m.sh("iptables-save -t mangle"), 20)
        self.m.stop()
        self.m.start("--disable-network-policy")
        self.assertNotIn("MUSSEL", self.m.sh("iptables-save -t mangle"))
        self.m.stop()
        self.m.start()
        wait_for("the rules", lambda: "MUSSEL-POLICY" in self.m.sh("iptables-save -t mangle"), 20)
