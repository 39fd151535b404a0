"""A Deployment behind a Service, as a user makes it first: addresses, names, spreading, roll-outs."""

import ipaddress
import json

import lab
from lab import WEB, WEB2, wait_for


class DeploymentAndService(lab.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.m.kubectl("create", "deployment", "web", "--image=" + WEB, "--replicas=3")
        cls.m.kubectl("expose", "deployment", "web", "--port=80")
        cls.m.kubectl("rollout", "status", "deployment/web", "--timeout=60s", timeout=65)
        cls.m.run_pod("client")
        cls.ip = cls.m.out("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")

    def pods(self):
        return self.m.json("get", "pods", "-l", "app=web")["items"]

    def names(self):
        return {pod["metadata"]["name"] for pod in self.pods()}

    def test_addresses(self):
        for pod in self.pods():
            self.assertEqual(pod["status"]["phase"], "Running")
            self.assertIn(ipaddress.ip_address(pod["status"]["podIP"]), ipaddress.ip_network("10.42.0.0/16"))
        self.assertIn(ipaddress.ip_address(self.ip), ipaddress.ip_network("10.43.0.0/16"))

    def test_from_the_host_and_spread_over_all_pods(self):
        seen = set()
        def all_seen():
            seen.add(self.m.get_url(f"http://{self.ip}/"))
            return seen >= self.names()
        wait_for("an answer of each pod", all_seen, 20, 0)
        self.assertEqual(seen, self.names())

    def test_from_a_pod_by_address_and_by_name(self):
        for host in (self.ip, "web", "web.default", "web.default.svc", "web.default.svc.cluster.local"):
            answer = self.m.fetch("client", host)
            self.assertIn(answer, self.names(), host)

    def test_the_api_from_a_pod_by_name(self):
        answer = self.m.out("exec", "client", "--", "nslookup", "kubernetes.default.svc.cluster.local")
        self.assertIn("10.43.0.1", answer)

    def test_a_pod_reaches_itself_through_the_service(self):
        self.m.run_pod("selfish", container={"image": WEB, "command": ["/web"]})
        self.m.kubectl("expose", "pod", "selfish", "--port=80")
        wait_for("its own answer", lambda: self.m.fetch("selfish", "selfish") == "selfish", 15)

    def test_endpoints_follow(self):
        slices = self.m.json("get", "endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
        listed = {address for item in slices for end in item["endpoints"] for address in end["addresses"]}
        self.assertEqual(listed, {pod["status"]["podIP"] for pod in self.pods()})


class Rollouts(lab.Case):
    def deploy(self, name, replicas=2):
        self.m.deploy(name, replicas)

    def status(self, name):
        self.m.rolled_out("deployment/" + name)

    def images(self, name):
        pods = self.m.json("get", "pods", "-l", "app=" + name)["items"]
        return sorted(p["spec"]["containers"][0]["image"] for p in pods if "deletionTimestamp" not in p["metadata"])

    def test_set_image_undo_restart(self):
        self.deploy("roll")
        self.m.kubectl("set", "image", "deployment/roll", "web=" + WEB2)
        self.status("roll")
        wait_for("only new pods", lambda: self.images("roll") == [WEB2] * 2)
        self.assertIn("2", self.m.out("rollout", "history", "deployment/roll"))
        self.m.kubectl("rollout", "undo", "deployment/roll")
        self.status("roll")
        wait_for("only old pods", lambda: self.images("roll") == [WEB] * 2)
        before = {p["metadata"]["uid"] for p in self.m.json("get", "pods", "-l", "app=roll")["items"]}
        self.m.kubectl("rollout", "restart", "deployment/roll")
        self.status("roll")
        wait_for("other pods", lambda: not before & {
            p["metadata"]["uid"] for p in self.m.json("get", "pods", "-l", "app=roll")["items"]})

    def test_scale_up_and_down(self):
        self.deploy("scaled", 1)
        self.m.kubectl("scale", "deployment/scaled", "--replicas=4")
        self.status("scaled")
        self.assertEqual(len(self.images("scaled")), 4)
        self.m.kubectl("scale", "deployment/scaled", "--replicas=0")
        wait_for("no pods", lambda: self.m.json("get", "pods", "-l", "app=scaled")["items"] == [])

    def test_a_deleted_pod_is_replaced(self):
        self.deploy("healed", 1)
        name = self.m.out("get", "pods", "-l", "app=healed", "-o", "name")
        self.m.kubectl("delete", name, "--grace-period=1")
        self.status("healed")
        wait_for("a new pod", lambda: self.m.out("get", "pods", "-l", "app=healed", "-o", "name") not in ("", name))

    def test_deleting_a_deployment_takes_its_pods(self):
        self.deploy("gone", 2)
        self.m.kubectl("delete", "deployment", "gone")
        wait_for("nothing", lambda: self.m.out("get", "pods,replicasets", "-l", "app=gone", "-o", "name") == "")

    def test_job(self):
        self.m.kubectl("create", "job", "sum", "--image=" + lab.BUSYBOX, "--", "sh", "-c", "echo $((6*7))")
        self.m.wait("job/sum", "condition=Complete")
        self.assertEqual(self.m.out("logs", "job/sum"), "42")
        self.m.kubectl("delete", "job", "sum")
        wait_for("no pods", lambda: self.m.out("get", "pods", "-l", "job-name=sum", "-o", "name") == "")

    def test_daemonset(self):
        self.m.apply({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "each"},
            "spec": {"selector": {"matchLabels": {"app": "each"}}, "template": {
                "metadata": {"labels": {"app": "each"}},
                "spec": {"containers": [{"name": "main", "image": WEB}]}}}})
        self.m.rolled_out("daemonset/each")
        self.assertEqual(len(self.images("each")), 1)

    def test_namespace_deletion_takes_all(self):
        self.m.kubectl("create", "namespace", "brief")
        wait_for("its service account", lambda: self.m.kubectl("get", "serviceaccount", "default", "-n", "brief"))
        self.m.kubectl("create", "configmap", "c", "--from-literal=a=b", "-n", "brief")
        self.m.deploy("web", namespace="brief")
        self.m.kubectl("delete", "namespace", "brief", "--timeout=60s", timeout=65)
        status, text = self.m.curl("/api/v1/namespaces/brief/pods")
        self.assertEqual((status, json.loads(text)["items"]), (200, []))


class ServiceKinds(lab.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.m.kubectl("create", "deployment", "web", "--image=" + WEB, "--replicas=3")
        cls.m.kubectl("rollout", "status", "deployment/web", "--timeout=60s", timeout=65)

    def service(self, name, **spec):
        self.m.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                      "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}], **spec}})
        return self.m.json("get", "service", name)["spec"]

    def test_node_port_from_the_host_and_from_outside(self):
        port = self.service("np", type="NodePort")["ports"][0]["nodePort"]
        self.assertTrue(30000 <= port <= 32767)
        wait_for("an answer", lambda: self.m.get_url(f"http://192.168.77.2:{port}/"), 10)
        lab.run(["nsenter", "-t", str(self.m.outside_pid), "-n", "curl", "-sSf", "-m", "5",
                 f"http://192.168.77.2:{port}/"])

    def test_session_affinity(self):
        ip = self.service("sticky", sessionAffinity="ClientIP")["clusterIP"]
        first = wait_for("an answer", lambda: self.m.get_url(f"http://{ip}/"), 10)
        self.assertEqual({self.m.get_url(f"http://{ip}/") for _ in range(12)}, {first})

    def test_a_service_without_endpoints_refuses_at_once(self):
        ip = self.service("empty", selector={"app": "nobody"})["clusterIP"]
        # curl's code 7: refused, not timed out.
        wait_for("a refusal", lambda: self.m.exec("curl", "-s", "-m", "3", f"http://{ip}/", check=False).code == 7, 10)

    def test_a_headless_service_names_its_pods(self):
        self.service("bare", clusterIP="None")
        ips = {p["status"]["podIP"] for p in self.m.json("get", "pods", "-l", "app=web")["items"]}
        self.m.run_pod("asker")
        def answer():
            text = self.m.out("exec", "asker", "--", "nslookup", "bare.default.svc.cluster.local")
            return all(ip in text for ip in ips)
        wait_for("all addresses", answer, 10)

    def test_a_removed_service_answers_no_more(self):
        ip = self.service("removed")["clusterIP"]
        wait_for("an answer", lambda: self.m.get_url(f"http://{ip}/"), 10)
        self.m.kubectl("delete", "service", "removed")
        wait_for("no answer", lambda: self.m.exec(
            "curl", "-s", "-m", "1", f"http://{ip}/", check=False).code != 0, 10)
