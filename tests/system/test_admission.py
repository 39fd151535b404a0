"""Admission webhooks and policies, by kubectl, against a webhook on the machine: what upstream's conformance tests look at."""

import base64
import json
import os

import lab
from lab import wait_for

PORT = 9443
SERVER = os.path.join(os.path.dirname(lab.__file__), "hook.py")
# Its own namespace is exempt, so that a hook that denies all does not outlive its test in others.
POLICY = "admissionregistration.k8s.io/v1"


def rule(resource, operations=("CREATE",), group="", version="v1"):
    return {"apiGroups": [group], "apiVersions": [version], "operations": list(operations), "resources": [resource]}


class Admission(lab.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        try:
            cls.start_hook()
        except BaseException:
            cls.m.down()
            raise

    @classmethod
    def start_hook(cls):
        cls.m.sh(f"""
            cd {cls.m.dir}
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=hook-ca \
                -keyout ca.key -out ca.crt 2>/dev/null
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=hook -keyout hook.key -out hook.csr 2>/dev/null
            printf 'subjectAltName=DNS:hook.default.svc' > hook.ext
            openssl x509 -req -in hook.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile hook.ext -out hook.crt 2>/dev/null
        """)
        with open(os.path.join(cls.m.dir, "ca.crt"), "rb") as file:
            cls.ca = base64.b64encode(file.read()).decode()
        cls.m.spawn("/usr/bin/python3", SERVER, str(PORT), cls.m.dir + "/hook.crt", cls.m.dir + "/hook.key")
        address = cls.m.json("get", "node", "node")["status"]["addresses"][0]["address"]
        cls.m.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook"},
                     "spec": {"ports": [{"name": "https", "port": 443, "targetPort": PORT}]}})
        cls.m.apply({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                     "metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
                     "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
                     "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}]})
        wait_for("the webhook to listen", lambda: cls.m.sh(f"openssl s_client -connect 127.0.0.1:{PORT} </dev/null 2>&1"))

    def tearDown(self):
        self.m.kubectl("delete", "validatingwebhookconfigurations,mutatingwebhookconfigurations,"
                       "validatingadmissionpolicies,validatingadmissionpolicybindings,"
                       "mutatingadmissionpolicies,mutatingadmissionpolicybindings", "--all", check=False)
        super().tearDown()

    def hook(self, path, *rules, name="hook", **more):
        config = {"service": {"namespace": "default", "name": "hook", "path": path}, "caBundle": self.ca}
        return {"name": f"{name}.example.com", "clientConfig": config, "rules": list(rules), "sideEffects": "None",
                "admissionReviewVersions": ["v1"], **more}

    def configure(self, kind, *hooks, name="test", labels=None):
        self.m.apply({"apiVersion": POLICY, "kind": f"{kind}WebhookConfiguration",
                      "metadata": {"name": name, "labels": labels or {}}, "webhooks": list(hooks)})

    def refused(self, *args, **options):
        done = self.m.kubectl(*args, check=False, **options)
        self.assertNotEqual(done.code, 0, done.out)
        return done.err

    def config_map(self, name, **data):
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}

    def data(self, name):
        return self.m.json("get", "configmap", name)["data"]

    def apply_refused(self, thing):
        return self.refused("apply", "-f", "-", input=json.dumps(thing))

    def test_pods_and_config_maps_are_denied(self):
        exempt = {"matchExpressions": [{"key": "exempt", "operator": "NotIn", "values": ["yes"]}]}
        self.configure("Validating",
                       self.hook("/pods", rule("pods"), name="pods", namespaceSelector=exempt, timeoutSeconds=2),
                       self.hook("/configmaps", rule("configmaps", ("CREATE", "UPDATE", "DELETE")), name="maps",
                                 namespaceSelector=exempt))
        def pod(name, container):
            return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                    "spec": {"containers": [{"name": container, "image": "none"}]}}
        self.assertIn('admission webhook "pods.example.com" denied the request: the pod contains unwanted container name',
                      self.apply_refused(pod("bad", "unwanted")))
        self.assertIn("context deadline exceeded", self.apply_refused(pod("hangs", "main")))
        denied = "the configmap contains unwanted key and value"
        self.assertIn(denied, self.apply_refused(self.config_map("bad", test="disallow")))
        done = self.m.apply(self.config_map("good", test="allow"))
        self.assertIn("Warning: seen by a webhook", done.err)
        self.assertIn(denied, self.refused("patch", "configmap", "good", "-p", '{"data":{"test":"disallow"}}'))
        self.m.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "exempt", "labels": {"exempt": "yes"}}})
        self.m.kubectl("create", "configmap", "bad", "--from-literal=test=disallow", "-n", "exempt")

    def test_attaching_is_denied(self):
        self.m.run_pod("attached", "sleep 100000")
        self.configure("Validating", self.hook("/attach", rule("pods/attach", ("CONNECT",))))
        self.assertIn("attaching to pods is not allowed", self.refused("attach", "attached"))

    def test_custom_resource_definitions_are_denied(self):
        self.configure("Validating", self.hook("/deny", rule("customresourcedefinitions", group="apiextensions.k8s.io")))
        crd = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
               "metadata": {"name": "things.example.com"},
               "spec": {"group": "example.com", "scope": "Namespaced",
                        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
                        "versions": [{"name": "v1", "served": True, "storage": True,
                                      "schema": {"openAPIV3Schema": {"type": "object"}}}]}}
        self.assertIn("this webhook denies all requests", self.apply_refused(crd))

    def test_without_trust_requests_are_refused(self):
        hook = self.hook("/configmaps", rule("configmaps"))
        del hook["clientConfig"]["caBundle"]
        self.configure("Validating", hook)
        self.assertIn('failed calling webhook "hook.example.com": failed to call webhook: Post '
                      '"https://hook.default.svc:443/configmaps?timeout=10s": ', self.apply_refused(self.config_map("x")))

    def test_config_maps_are_mutated_in_order(self):
        self.configure("Mutating", self.hook("/stage-1", rule("configmaps"), name="one"),
                       self.hook("/stage-2", rule("configmaps"), name="two"))
        self.m.apply(self.config_map("staged", start="yes"))
        self.assertEqual(self.data("staged"), {"start": "yes", "stage-1": "yes", "stage-2": "yes"})

    def test_what_is_added_to_pods_has_defaults(self):
        self.configure("Mutating", self.hook("/init", rule("pods")))
        self.m.run_pod("mutated", wait=False)
        [init] = self.m.pod("mutated")["spec"]["initContainers"]
        self.assertEqual((init["name"], init["terminationMessagePolicy"]), ("webhook-added", "File"))

    def test_collections_of_configurations(self):
        for kind, path, resource in (("Validating", "/configmaps", "validatingwebhookconfigurations"),
                                     ("Mutating", "/stage-1", "mutatingwebhookconfigurations")):
            for number in range(10):
                self.configure(kind, self.hook(path, rule("configmaps")), name=f"list-{number}", labels={"list": "yes"})
            self.assertEqual(len(self.m.json("get", resource, "-l", "list=yes")["items"]), 10)
            self.m.kubectl("delete", resource, "-l", "list=yes")
            self.assertEqual(self.m.json("get", resource, "-l", "list=yes")["items"], [])
            self.m.apply(self.config_map(f"free-{kind.lower()}", test="disallow", start="yes"))
            self.assertNotIn("stage-1", self.data(f"free-{kind.lower()}"))

    def test_a_change_of_the_rules_is_in_force(self):
        self.configure("Validating", self.hook("/configmaps", rule("configmaps")))
        def operations(value):
            change = [{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": value}]
            self.m.kubectl("patch", "validatingwebhookconfiguration", "test", "--type=json", "-p", json.dumps(change))
        operations(["UPDATE"])
        self.m.apply(self.config_map("now", test="disallow"))
        self.m.kubectl("delete", "configmap", "now")
        operations(["CREATE"])
        self.apply_refused(self.config_map("now", test="disallow"))

    def test_configurations_are_not_subject_to_webhooks(self):
        everything = rule("*", ("*",), group=POLICY.split("/")[0])
        self.configure("Validating", self.hook("/deny", everything), name="deny-all")
        self.configure("Mutating", self.hook("/label", everything), name="label-all")
        self.configure("Validating", self.hook("/configmaps", rule("configmaps")), name="innocent")
        made = self.m.json("get", "validatingwebhookconfiguration", "innocent")
        self.assertNotIn("touched", made["metadata"].get("labels", {}))
        self.m.kubectl("delete", "validatingwebhookconfiguration", "innocent")

    def test_timeouts_are_honoured(self):
        for seconds, policy, refused in ((1, "Fail", True), (1, "Ignore", False), (10, "Fail", False)):
            self.configure("Validating", self.hook("/slow", rule("configmaps"), timeoutSeconds=seconds, failurePolicy=policy))
            name = f"slow-{seconds}-{policy.lower()}"
            if refused:
                self.assertIn("context deadline exceeded", self.apply_refused(self.config_map(name)))
            else:
                self.m.apply(self.config_map(name))

    def test_match_conditions(self):
        conditions = [{"name": "skip", "expression": "object.metadata.name != 'skip-me'"}]
        self.configure("Mutating", self.hook("/stage-1", rule("configmaps"), matchConditions=conditions))
        self.m.apply(self.config_map("skip-me", start="yes"))
        self.m.apply(self.config_map("take-me", start="yes"))
        self.assertEqual((self.data("skip-me"), self.data("take-me")), ({"start": "yes"}, {"start": "yes", "stage-1": "yes"}))
        bad = self.hook("/stage-1", rule("configmaps"), matchConditions=[{"name": "bad", "expression": "... [][[]][]"}])
        for kind in ("Mutating", "Validating"):
            self.assertIn("compilation failed", self.apply_refused(
                {"apiVersion": POLICY, "kind": f"{kind}WebhookConfiguration", "metadata": {"name": "bad"}, "webhooks": [bad]}))

    def test_a_policy_validates_deployments(self):
        spec = {"matchConstraints": {"resourceRules": [rule("deployments", ("CREATE", "UPDATE"), group="apps")]},
                "variables": [{"name": "replicas", "expression": "object.spec.replicas"},
                              {"name": "odd", "expression": "variables.replicas % 2 == 1"}],
                "validations": [{"expression": "variables.replicas > 1"},
                                {"expression": "variables.odd", "messageExpression": "'not odd: ' + string(variables.replicas)"}]}
        self.m.apply({"apiVersion": POLICY, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "odd"}, "spec": spec})
        self.m.apply({"apiVersion": POLICY, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "odd"},
                      "spec": {"policyName": "odd", "validationActions": ["Deny"]}})
        denied = "ValidatingAdmissionPolicy 'odd' with binding 'odd' denied request: "
        def create(count):
            return ("create", "deployment", "counted", "--image=none", f"--replicas={count}")
        self.assertIn(denied + "failed expression: variables.replicas > 1", self.refused(*create(1)))
        self.assertIn(denied + "not odd: 2", self.refused(*create(2)))
        self.m.kubectl(*create(3))
        wait_for("the policy's types to be checked", lambda: self.m.json(
            "get", "validatingadmissionpolicy", "odd").get("status", {}).get("observedGeneration") == 1)
        self.m.kubectl("delete", "deployment", "counted")

    def test_a_policy_mutates_deployments(self):
        apply = "Object{metadata: Object.metadata{annotations: {'my-foo-annotation': 'my-foo-value'}}, " \
                "spec: Object.spec{replicas: object.spec.replicas + 1}}"
        spec = {"matchConstraints": {"resourceRules": [rule("deployments", group="apps")]}, "reinvocationPolicy": "Never",
                "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}}]}
        self.m.apply({"apiVersion": POLICY, "kind": "MutatingAdmissionPolicy", "metadata": {"name": "more"}, "spec": spec})
        self.m.apply({"apiVersion": POLICY, "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": "more"},
                      "spec": {"policyName": "more"}})
        self.m.kubectl("create", "deployment", "mutated", "--image=none", "--replicas=0")
        made = self.m.json("get", "deployment", "mutated")
        self.assertEqual((made["spec"]["replicas"], made["metadata"]["annotations"]["my-foo-annotation"]), (1, "my-foo-value"))
        self.m.kubectl("delete", "deployment", "mutated")

    def test_discovery(self):
        listed = self.m.out("api-resources", f"--api-group={POLICY.split('/')[0]}", "-o", "name").split()
        kinds = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations", "validatingadmissionpolicies",
                 "validatingadmissionpolicybindings", "mutatingadmissionpolicies", "mutatingadmissionpolicybindings")
        for kind in kinds:
            self.assertIn(f"{kind}.{POLICY.split('/')[0]}", listed)
