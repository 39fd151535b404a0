"""The API server's own endpoints, as probes, scrapers and people ask them."""

import json

import lab
from lab import wait_for


class Endpoints(lab.Case):
    def test_health(self):
        for path in ("/livez", "/readyz", "/healthz"):
            self.assertEqual(self.m.curl(path), (200, "ok"), path)
        status, text = self.m.curl("/readyz?verbose")
        self.assertEqual(status, 200)
        self.assertIn("[+]ping ok", text)
        self.assertIn("readyz check passed", text)

    def test_health_needs_no_credentials(self):
        answer = self.m.exec("curl", "-sk", "-m", "5", "https://127.0.0.1:6443/livez").out
        self.assertEqual(answer, "ok")

    def test_version(self):
        status, text = self.m.curl("/version")
        version = json.loads(text)
        self.assertEqual(status, 200)
        self.assertEqual((version["major"], version["minor"]), ("1", "36"))
        self.assertRegex(version["gitVersion"], r"^v1\.36\.\d+\+mussel\.1$")
        self.assertIn(version["gitVersion"], self.m.out("version"))

    def test_metrics(self):
        status, text = self.m.curl("/metrics")
        self.assertEqual(status, 200)
        for name in ("apiserver_request_total{", "apiserver_request_duration_seconds_bucket{", "kubernetes_build_info{"):
            self.assertTrue(any(line.startswith(name) for line in text.splitlines()), name)

    def test_anonymous_may_not_read(self):
        answer = self.m.exec("curl", "-sk", "-m", "5", "https://127.0.0.1:6443/api/v1/secrets").out
        self.assertEqual(json.loads(answer)["code"], 403)
        self.assertEqual(json.loads(answer)["reason"], "Forbidden")

    def test_node(self):
        node = self.m.json("get", "nodes")["items"][0]
        self.assertEqual(node["metadata"]["name"], "node")
        self.assertRegex(node["status"]["nodeInfo"]["kubeletVersion"], r"^v1\.36\.\d+\+mussel\.1$")
        self.assertTrue(node["spec"]["podCIDR"].startswith("10.42."))
        row = self.m.out("get", "nodes").splitlines()[1].split()
        self.assertEqual(row[:3], ["node", "Ready", "control-plane"])

    def test_the_lease_goes_with_the_node(self):
        node = self.m.json("get", "node", "node")
        def owners():
            lease = self.m.json("get", "lease", "node", "-n", "kube-node-lease")
            return lease["metadata"].get("ownerReferences")
        # The first lease may be older than the node; the next, 10 s later, is not.
        owner = wait_for("the lease to have an owner", owners, 30)
        self.assertEqual([(o["kind"], o["uid"]) for o in owner], [("Node", node["metadata"]["uid"])])

    def test_kubeconfig_is_private(self):
        self.assertEqual(self.m.sh(f"stat -c %a {self.m.kubeconfig}").strip(), "600")
