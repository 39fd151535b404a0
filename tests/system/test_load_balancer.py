"""ServiceLB: Services of type LoadBalancer at the nodes' addresses, with real packets from outside, from pods and from nodes."""

import lab
from lab import wait_for
from lab.network import in_net
from test_pod_network import WHO, Crossing

ENABLE, POOL = "svccontroller.k3s.cattle.io/enablelb", "svccontroller.k3s.cattle.io/lbpool"
FINALIZER = "service.kubernetes.io/load-balancer-cleanup"


class LoadBalancers(Crossing):
    servers, agents = 1, 1

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        try:
            cls.server, cls.agent = cls.c.servers[0], cls.c.agents[0]
            for name, machine in [("one", cls.server), ("two", cls.agent)]:
                cls.m.run_pod(name, script=WHO, spec={"nodeName": machine.name}, labels={"app": "web", "pod": name},
                              wait=False)
            for name in ("one", "two"):
                cls.m.wait("pod/" + name, "condition=Ready", 60)
        except BaseException:
            cls.c.down()
            raise

    def tearDown(self):
        self.m.kubectl("delete", "services", "--all", timeout=60)
        super().tearDown()

    def service(self, name, port, **spec):
        spec = {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": port, "targetPort": 80}], **spec}
        labels = spec.pop("labels", {})
        self.m.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": spec})
        return self.m.json("get", "service", name)

    def ips(self, name):
        status = self.m.json("get", "service", name)["status"].get("loadBalancer", {})
        return [ingress["ip"] for ingress in status.get("ingress", [])]

    def gets(self, name, *machines):
        """Waits until the Service has the addresses of these machines, and no others."""
        expected = sorted(machine.ip for machine in machines)
        wait_for(f"{name} at {expected}", lambda: sorted(self.ips(name)) == expected, 30)

    def outside(self, host, port):
        """Who answers, "refused", or "nobody" after a time-out."""
        script = f"curl -sS -m 3 http://{host}:{port}/cgi-bin/who 2>&1 || echo code $?"
        out = in_net(self.c.network.pid, script).strip()
        if out.endswith("code 7"):
            return "refused"
        return "nobody" if "code" in out else out

    def answers(self, host, port, expected=("one", "two")):
        wait_for(f"an answer at {host}:{port}", lambda: self.outside(host, port).split()[0] in expected, 20)

    def test_nodes_answer_from_everywhere_and_take_everything_back(self):
        def rules(machine):
            text = machine.sh("iptables-save")
            return sorted(line.split("[")[0] for line in text.splitlines() if not line.startswith("#"))
        self.m.kubectl("delete", "services", "--all", timeout=60)
        before = {machine.name: rules(machine) for machine in self.c.machines}
        service = self.service("web", 8081, allocateLoadBalancerNodePorts=False)
        self.assertNotIn("nodePort", service["spec"]["ports"][0])
        self.gets("web", self.server, self.agent)
        service = self.m.json("get", "service", "web")
        self.assertEqual({i.get("ipMode") for i in service["status"]["loadBalancer"]["ingress"]}, {"VIP"})
        self.assertIn(FINALIZER, service["metadata"]["finalizers"])
        for machine in self.c.machines:
            self.answers(machine.ip, 8081)
            for asker in self.c.machines:
                self.assertIn(self.ask(asker, machine.ip, 8081).split()[0], ("one", "two"))
            for pod in ("one", "two"):
                self.assertIn(self.ask_from_pod(pod, machine.ip, 8081).split()[0], ("one", "two"))
        self.assertIn("UpdatedLoadBalancer", self.m.out("get", "events"))
        # Another type, and none of it is left.
        self.m.kubectl("patch", "service", "web", "-p", '{"spec": {"type": "ClusterIP", "allocateLoadBalancerNodePorts": null}}')
        wait_for("the addresses to go", lambda: not self.ips("web"), 20)
        wait_for("the finalizer to go",
                 lambda: FINALIZER not in self.m.json("get", "service", "web")["metadata"].get("finalizers", []), 20)
        wait_for("a refusal", lambda: self.outside(self.agent.ip, 8081) == "refused", 20)
        self.m.kubectl("patch", "service", "web", "-p", '{"spec": {"type": "LoadBalancer"}}')
        self.gets("web", self.server, self.agent)
        self.m.kubectl("delete", "service", "web", timeout=30)
        for machine in self.c.machines:
            wait_for("the rules as they were", lambda: rules(machine) == before[machine.name], 20)

    def test_local_traffic_goes_to_nodes_with_endpoints_and_shows_who_asks(self):
        self.service("local", 8082, selector={"pod": "two"}, externalTrafficPolicy="Local")
        self.gets("local", self.agent)
        self.answers(self.agent.ip, 8082)
        router = self.c.network.links[0].router
        self.assertEqual(self.outside(self.agent.ip, 8082), f"two {router}")
        self.assertEqual(self.outside(self.server.ip, 8082), "refused")
        self.m.kubectl("patch", "service", "local", "-p", '{"spec": {"selector": {"pod": "one"}}}')
        self.gets("local", self.server)
        self.answers(self.server.ip, 8082)

    def test_source_ranges_keep_others_out(self):
        router = self.c.network.links[0].router
        self.service("ranges", 8083, loadBalancerSourceRanges=[f"{router}/32"])
        self.gets("ranges", self.server, self.agent)
        self.answers(self.agent.ip, 8083)
        self.m.kubectl("patch", "service", "ranges", "-p", '{"spec": {"loadBalancerSourceRanges": ["203.0.113.0/24"]}}')
        wait_for("nobody to answer", lambda: self.outside(self.agent.ip, 8083) == "nobody", 20)

    def test_a_port_belongs_to_who_was_first(self):
        self.service("first", 8084)
        self.gets("first", self.server, self.agent)
        self.service("second", 8084)
        wait_for("word of the clash", lambda: "port 8084/TCP" in self.m.out(
            "get", "events", "--field-selector", "involvedObject.name=second,reason=UnAvailableLoadBalancer"), 20)
        self.assertEqual(self.ips("second"), [])
        self.m.kubectl("delete", "service", "first", timeout=30)
        self.gets("second", self.server, self.agent)
        # The API's own port is nobody's, nor is one that a pod has.
        self.service("api", 6443)
        wait_for("word of the clash", lambda: "mussel itself" in self.m.out(
            "get", "events", "--field-selector", "involvedObject.name=api,reason=UnAvailableLoadBalancer"), 20)
        self.m.run_pod("held", script=WHO, spec={"nodeName": self.agent.name},
                       container={"ports": [{"containerPort": 80, "hostPort": 8085}]})
        self.addCleanup(self.m.kubectl, "delete", "pod", "held", "--wait=true", timeout=60)
        self.service("held", 8085)
        self.gets("held", self.server)
        # Nor does a pod get a port that a Service has.
        self.m.run_pod("late", spec={"nodeName": self.server.name}, wait=False,
                       container={"ports": [{"containerPort": 80, "hostPort": 8085}]})
        self.addCleanup(self.m.kubectl, "delete", "pod", "late", "--wait=true", timeout=60)
        wait_for("word of the clash", lambda: "host port 8085 is taken by the load balancer of service default/held"
                 in self.m.out("get", "events", "--field-selector", "involvedObject.name=late"), 30)
        self.m.kubectl("delete", "service", "held", timeout=30)
        self.m.wait("pod/late", "condition=Ready", 60)
        self.service("classy", 8086, loadBalancerClass="example.com/lb")
        self.service("after", 8087)
        self.gets("after", self.server, self.agent)
        self.assertEqual(self.ips("classy"), [], "another class is somebody else's")

    def test_labels_choose_nodes(self):
        self.service("any", 8088)
        self.gets("any", self.server, self.agent)
        self.m.kubectl("label", "node", self.agent.name, f"{ENABLE}=true", f"{POOL}=p")
        self.addCleanup(self.m.kubectl, "label", "node", self.agent.name, f"{ENABLE}-", f"{POOL}-")
        self.gets("any", self.agent)
        self.service("pooled", 8089, labels={POOL: "p"})
        self.gets("pooled", self.agent)
        self.service("other", 8090, labels={POOL: "q"})
        wait_for("word of it", lambda: "UnAvailable" in self.m.out(
            "get", "events", "--field-selector", "involvedObject.name=other"), 20)

    def test_restarts_change_nothing_and_turned_off_it_gives_back(self):
        self.service("kept", 8091)
        self.gets("kept", self.server, self.agent)
        self.answers(self.server.ip, 8091)
        self.server.stop()
        self.assertIn(self.outside(self.server.ip, 8091).split()[0], ("one", "two"), "stopped")
        self.server.start(ready=False)
        self.c.wait_node(self.server)
        self.gets("kept", self.server, self.agent)
        self.server.stop()
        self.server.start("--disable=servicelb", ready=False)
        self.c.wait_node(self.server)
        wait_for("the addresses to go", lambda: not self.ips("kept"), 30)
        wait_for("a refusal", lambda: self.outside(self.server.ip, 8091) == "refused", 20)
        # Somebody else's addresses stay.
        patch = '{"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}'
        self.m.kubectl("patch", "service", "kept", "--subresource=status", "--type=merge", "-p", patch)
        self.server.stop()
        self.server.start("--disable=servicelb", ready=False)
        self.c.wait_node(self.server)
        self.assertEqual(self.ips("kept"), ["203.0.113.9"])
        self.server.stop()
        self.server.start(ready=False)
        self.c.wait_node(self.server)
        self.gets("kept", self.server, self.agent)


class External(lab.ClusterCase):
    """A node that is known outside by another address, which its router translates."""

    servers, agents = 1, 0

    @classmethod
    def cluster(cls):
        return lab.Cluster(1, 0, flags=["--node-external-ip", "203.0.113.7"])

    def test_the_external_address_is_published_and_the_internal_one_answers(self):
        self.m.run_pod("web", script=WHO)
        self.m.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                      "spec": {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 8081, "targetPort": 80}]}})

        def ips():
            status = self.m.json("get", "service", "web")["status"]["loadBalancer"]
            return [ingress["ip"] for ingress in status.get("ingress", [])]
        wait_for("the external address", lambda: ips() == ["203.0.113.7"], 20)
        address = self.m.ip

        def asked():
            return in_net(self.c.network.pid, f"curl -sS -m 3 http://{address}:8081/cgi-bin/who")
        wait_for("an answer", asked, 20)
        pod_ip = self.m.pod("web")["status"]["podIP"]
        self.assertTrue(pod_ip)
        self.assertIn("web", self.m.get_url("http://203.0.113.7:8081/cgi-bin/who"))
