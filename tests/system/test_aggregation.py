"""Extension API servers, by kubectl: one in a pod, and what becomes of the cluster when it is away."""

import base64
import json
import os

import lab
from lab import wait_for

LAB = os.path.dirname(lab.__file__)
NAME = "v1.wardle.example.com"


class Aggregation(lab.Case):
    time_limit = 300

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        try:
            cls.start_extension()
        except BaseException:
            cls.m.down()
            raise

    @classmethod
    def start_extension(cls):
        cls.m.sh(f"""
            mkdir {cls.m.dir}/extension && cd {cls.m.dir}/extension && cp {LAB}/extension.py .
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=wardle-ca \
                -keyout ca.key -out ca.crt 2>/dev/null
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=wardle -keyout tls.key -out tls.csr 2>/dev/null
            printf 'subjectAltName=DNS:wardle.default.svc' > ext
            openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out tls.crt 2>/dev/null
        """)
        with open(os.path.join(cls.m.dir, "extension", "ca.crt"), "rb") as file:
            cls.ca = base64.b64encode(file.read()).decode()
        subject = [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]
        rbac = "rbac.authorization.k8s.io"
        cls.m.apply({"apiVersion": rbac + "/v1", "kind": "RoleBinding",
                     "metadata": {"name": "wardle", "namespace": "kube-system"}, "subjects": subject,
                     "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "extension-apiserver-authentication-reader"}})
        cls.m.apply({"apiVersion": rbac + "/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "wardle"},
                     "subjects": subject,
                     "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "system:auth-delegator"}})
        cls.m.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wardle"},
                     "spec": {"selector": {"app": "wardle"}, "ports": [{"port": 443, "targetPort": 8443}]}})
        cls.run_server()
        cls.m.apply({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": NAME},
                     "spec": {"group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": 2000,
                              "versionPriority": 200, "caBundle": cls.ca,
                              "service": {"namespace": "default", "name": "wardle"}}})
        cls.available("Passed")

    @classmethod
    def run_server(cls):
        # The image has no Python; the machine has.
        mounts = {"/usr": "/usr", "/lib": "/usr/lib", "/lib64": "/usr/lib64", "/extension": f"{cls.m.dir}/extension"}
        spec = {"volumes": [{"name": f"v{i}", "hostPath": {"path": path}} for i, path in enumerate(mounts.values())]}
        cls.m.run_pod("wardle", spec=spec, labels={"app": "wardle"}, container={
            "command": ["/usr/bin/python3", "/extension/extension.py", "8443", "/extension/tls.crt", "/extension/tls.key"],
            "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
            "volumeMounts": [{"name": f"v{i}", "mountPath": path, "readOnly": True} for i, path in enumerate(mounts)]})

    @classmethod
    def available(cls, reason):
        def condition():
            return cls.m.json("get", "apiservice", NAME).get("status", {}).get("conditions", [{}])[0]
        wait_for(f"the APIService to be {reason}", lambda: condition().get("reason") == reason, deadline=60)
        return condition()

    def flunder(self, name, **spec):
        return {"apiVersion": "wardle.example.com/v1", "kind": "Flunder",
                "metadata": {"name": name, "namespace": "default"}, "spec": spec}

    def refused(self, *args, **options):
        done = self.m.kubectl(*args, check=False, **options)
        self.assertNotEqual(done.code, 0, done.out)
        return done.err

    def test_1_kubectl_works_on_what_the_extension_serves(self):
        self.assertIn("flunders", self.m.out("api-resources", "--api-group=wardle.example.com"))
        self.m.kubectl("create", "-f", "-", input=json.dumps(self.flunder("a", color="red")))
        made = self.m.json("get", "flunder", "a")
        self.assertEqual(made["spec"], {"color": "red"})
        self.assertEqual(made["seen"]["user"], "system:admin")
        self.assertIn("system:masters", made["seen"]["groups"])
        self.m.kubectl("patch", "fl", "a", "--type=merge", "-p", '{"spec": {"color": "blue"}}')
        self.assertEqual(self.m.json("get", "flunders", "a")["spec"]["color"], "blue")
        self.assertIn("default", self.m.out("get", "flunders", "-A"))
        watched = self.m.kubectl("get", "flunder", "a", "--watch", "--request-timeout=3s", "-o", "name", check=False)
        self.assertIn("flunder.wardle.example.com/a", watched.out)
        self.m.kubectl("delete", "flunder", "a")
        self.assertIn("NotFound", self.refused("get", "flunder", "a"))
        columns = self.m.out("get", "apiservice", NAME).split()
        self.assertEqual(columns[4:7], [NAME, "default/wardle", "True"])
        local = self.m.out("get", "apiservice", "v1.apps").split()
        self.assertEqual(local[4:7], ["v1.apps", "Local", "True"])

    def test_2_who_may_not_is_refused_here_and_there(self):
        error = self.refused("get", "flunders", "--as=ann")
        self.assertIn('User "ann" cannot list resource "flunders" in API group "wardle.example.com"', error)
        rbac = "rbac.authorization.k8s.io"
        self.m.apply({"apiVersion": rbac + "/v1", "kind": "Role", "metadata": {"name": "flunders", "namespace": "default"},
                      "rules": [{"apiGroups": ["wardle.example.com"], "resources": ["flunders"], "verbs": ["list"]}]})
        self.m.apply({"apiVersion": rbac + "/v1", "kind": "RoleBinding", "metadata": {"name": "flunders", "namespace": "default"},
                      "subjects": [{"kind": "User", "name": "ann", "apiGroup": rbac}],
                      "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "flunders"}})
        self.assertIn("No resources found", self.m.kubectl("get", "flunders", "--as=ann").err)
        # Not the front proxy: the extension's own door is closed.
        address = self.m.json("get", "pod", "wardle")["status"]["podIP"]
        done = self.m.sh(f"curl -sk --max-time 5 -H 'X-Remote-User: system:admin' -H 'X-Remote-Group: system:masters' "
                         f"https://{address}:8443/apis/wardle.example.com/v1/flunders", check=False)
        self.assertNotIn("FlunderList", getattr(done, "out", done) or "")

    def test_3_while_the_extension_is_away_all_else_goes_on(self):
        self.m.kubectl("create", "namespace", "leaving")
        self.m.kubectl("delete", "pod", "wardle", "--grace-period=1")
        condition = self.available("MissingEndpoints")
        self.assertEqual(condition["status"], "False")
        self.assertIn("the server is currently unable to handle the request", self.refused("get", "flunders"))
        self.assertIn("deployments", self.m.out("api-resources", check=False))
        self.m.kubectl("get", "pods,deployments")
        # A namespace may have flunders in it, so it stays, and says why.
        self.m.kubectl("delete", "namespace", "leaving", "--wait=false")
        def stuck():
            found = self.m.json("get", "namespace", "leaving")["status"].get("conditions", [])
            return [c for c in found if c["type"] == "NamespaceDeletionDiscoveryFailure" and c["status"] == "True"]
        wait_for("the namespace to say why it stays", stuck)
        self.assertEqual(stuck()[0]["reason"], "DiscoveryFailed")
        self.assertIn("wardle.example.com/v1", stuck()[0]["message"])
        # Garbage goes all the same.
        self.m.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}})
        uid = self.m.json("get", "configmap", "owner")["metadata"]["uid"]
        self.m.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}]}})
        self.m.kubectl("delete", "configmap", "owner")
        wait_for("the garbage to go", lambda: self.m.kubectl("get", "configmap", "owned", check=False).code != 0)
        self.run_server()
        self.available("Passed")
        wait_for("the namespace to go", lambda: self.m.kubectl("get", "namespace", "leaving", check=False).code != 0, deadline=60)

    def test_4_metrics_are_served_by_the_binary(self):
        self.assertIn("Local", self.m.out("get", "apiservice", "v1beta1.metrics.k8s.io"))
        nodes = json.loads(self.m.out("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"))["items"]
        self.assertEqual([n["metadata"]["name"] for n in nodes], ["node"])
        self.assertRegex(nodes[0]["usage"]["cpu"], r"^[0-9]+[num]?$")
        top = self.m.out("top", "nodes").split("\n")
        self.assertEqual(top[1].split()[0], "node")
        self.m.run_pod("busy", "while :; do :; done")
        def busy():
            done = self.m.kubectl("top", "pod", "busy", "--containers", "--no-headers", check=False)
            return done.code == 0 and int(done.out.split()[2].rstrip("m")) > 100
        wait_for("the busy pod to be seen", busy, deadline=60)
        self.assertIn("wardle", self.m.out("top", "pods", "-A"))
        self.m.kubectl("delete", "pod", "busy", "--grace-period=1")

    def test_5_an_autoscaler_follows_what_pods_use(self):
        main = {"name": "main", "image": lab.BUSYBOX, "command": ["sh", "-c", "while :; do :; done"],
                "resources": {"requests": {"cpu": "20m"}, "limits": {"cpu": "60m"}}}
        self.m.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "worker"},
                      "spec": {"selector": {"matchLabels": {"app": "worker"}},
                               "template": {"metadata": {"labels": {"app": "worker"}},
                                            "spec": {"terminationGracePeriodSeconds": 0, "containers": [main]}}}})
        def autoscaler(percent):
            target = {"type": "Utilization", "averageUtilization": percent}
            self.m.apply({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "worker"},
                          "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "worker"},
                                   "minReplicas": 1, "maxReplicas": 3,
                                   "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
                                   "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]}})
        def replicas():
            return self.m.json("get", "deployment", "worker")["spec"]["replicas"]
        autoscaler(50)
        wait_for("the deployment to grow", lambda: replicas() == 3, deadline=120)
        def conditions():
            found = self.m.json("get", "hpa", "worker")["status"].get("conditions", [])
            return {c["type"]: (c["status"], c["reason"]) for c in found}
        wait_for("the limit to be told", lambda: conditions().get("ScalingLimited") == ("True", "TooManyReplicas"), deadline=60)
        self.assertEqual(conditions()["ScalingActive"], ("True", "ValidMetricFound"))
        self.assertIn("%/50%", self.m.out("get", "hpa", "worker"))
        self.assertIn("New size: ", self.m.out("get", "events", "--field-selector=reason=SuccessfulRescale"))
        # Two for the same pods would pull in two directions.
        other = self.m.json("get", "hpa", "worker")
        self.m.apply({**{field: other[field] for field in ("apiVersion", "kind", "spec")}, "metadata": {"name": "worker-too"}})
        def ambiguous():
            found = self.m.json("get", "hpa")["items"]
            return any(c["reason"] == "AmbiguousSelector" for hpa in found for c in hpa["status"].get("conditions", []))
        wait_for("the second one to be told of", ambiguous, deadline=60)
        self.m.kubectl("delete", "hpa", "worker-too")
        # A hundred times as much is far below now.
        autoscaler(30000)
        wait_for("the deployment to shrink", lambda: replicas() == 1, deadline=120)
        self.m.kubectl("delete", "deployment,hpa", "worker")

    def test_6_an_autoscaler_follows_metrics_of_an_adapter(self):
        def value(metric, text):
            self.m.sh(f"echo {text} > {self.m.dir}/extension/{metric}.new; mv {self.m.dir}/extension/{metric}.new "
                      f"{self.m.dir}/extension/{metric}")
        value("queue", "25")
        value("hits", "500m")
        for group, version in ("external.metrics.k8s.io", "v1beta1"), ("custom.metrics.k8s.io", "v1beta2"):
            self.m.apply({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": f"{version}.{group}"},
                          "spec": {"group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100,
                                   "caBundle": self.ca, "service": {"namespace": "default", "name": "wardle"}}})
        self.m.deploy("consumer", image=lab.WEB)
        service = {"apiVersion": "v1", "kind": "Service", "name": "wardle"}
        self.m.apply({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "consumer"},
                      "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "consumer"},
                               "minReplicas": 1, "maxReplicas": 5,
                               "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
                               "metrics": [
                                   {"type": "External", "external": {"metric": {"name": "queue"},
                                                                     "target": {"type": "AverageValue", "averageValue": "10"}}},
                                   {"type": "Object", "object": {"metric": {"name": "hits"}, "describedObject": service,
                                                                 "target": {"type": "AverageValue", "averageValue": "1"}}}]}})
        def replicas():
            return self.m.json("get", "deployment", "consumer")["spec"]["replicas"]
        wait_for("25 in the queue to make three", lambda: replicas() == 3, deadline=60)
        value("hits", "4500m")
        wait_for("4.5 hits to make five", lambda: replicas() == 5, deadline=60)
        value("queue", "1")
        value("hits", "1")
        wait_for("the deployment to shrink", lambda: replicas() == 1, deadline=60)
        for name in "v1beta1.external.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io":
            self.m.kubectl("delete", "apiservice", name)
        def active():
            found = self.m.json("get", "hpa", "consumer")["status"]["conditions"]
            return {c["type"]: (c["status"], c["reason"]) for c in found}["ScalingActive"]
        wait_for("the metric to be missed", lambda: active() == ("False", "FailedGetExternalMetric"), deadline=60)
        self.assertEqual(replicas(), 1)
        self.m.kubectl("delete", "deployment,hpa", "consumer")

    def test_7_an_extension_is_removed(self):
        self.m.kubectl("delete", "apiservice", NAME)
        wait_for("the group to go", lambda: "wardle" not in self.m.out("api-resources", "-o", "name"))
        self.assertIn("the server doesn't have a resource type", self.refused("get", "flunders"))
        # A user's own metrics server takes the place of ours, and leaves it again.
        metrics = "v1beta1.metrics.k8s.io"
        theirs = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": metrics},
                  "spec": {"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100,
                           "versionPriority": 100, "insecureSkipTLSVerify": True,
                           "service": {"namespace": "default", "name": "missing"}}}
        self.m.apply(theirs)
        wait_for("theirs to be asked", lambda: "ServiceNotFound" in self.m.out("get", "apiservice", metrics))
        self.assertNotEqual(self.m.kubectl("top", "nodes", check=False).code, 0)
        self.m.kubectl("delete", "apiservice", metrics)
        wait_for("ours to be back", lambda: self.m.kubectl("top", "nodes", check=False).code == 0)


class OfAllNodes(lab.ClusterCase):
    servers, agents = 2, 1

    def test_every_server_measures_every_node(self):
        for machine in self.c.machines[:2]:
            def measured():
                done = machine.kubectl("top", "nodes", "--no-headers", check=False)
                return {line.split()[0] for line in done.out.splitlines()} if done.code == 0 else set()
            wait_for(f"three nodes to be measured from {machine.name}", lambda: len(measured()) == 3, deadline=60)
