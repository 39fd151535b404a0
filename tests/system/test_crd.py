"""Custom resources, with kubectl: definitions, objects of their kinds, and what the rest of the cluster makes of them."""

import json
import os
import subprocess

import lab
from lab import wait_for

GROUP = "example.com"


def version(name, properties, storage=True, **more):
    schema = {"type": "object", "description": "A widget.", "properties": {
        "spec": {"type": "object", "description": "What is wanted.", "properties": properties},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}
    return {"name": name, "served": True, "storage": storage, "schema": {"openAPIV3Schema": schema}, **more}


def definition(plural, kind, *versions, scope="Namespaced", **names):
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{GROUP}"},
            "spec": {"group": GROUP, "scope": scope, "versions": list(versions),
                     "names": {"plural": plural, "singular": kind.lower(), "kind": kind, **names}}}


def thing(kind, name, spec, api="v1", namespace="default", **more):
    return {"apiVersion": f"{GROUP}/{api}", "kind": kind,
            "metadata": {"name": name, "namespace": namespace, **more}, "spec": spec}


class CustomCase(lab.Case):
    def define(self, crd):
        self.m.apply(crd)
        name = crd["metadata"]["name"]
        self.m.kubectl("wait", f"crd/{name}", "--for=condition=Established", "--timeout=10s")
        return name


class Kubectl(CustomCase):
    machine_flags = ("--disable-agent",)

    @classmethod
    def machine(cls):
        machine = lab.Machine(archives=[], flags=["--disable-agent"])
        cls.folder = machine.data + "/server/manifests"
        os.makedirs(cls.folder)
        return machine

    @classmethod
    def setUpClass(cls):
        cls.m = cls.machine()
        cls.m.start(ready=False)
        wait_for("the API", lambda: os.path.exists(cls.m.kubeconfig)
                 and cls.m.kubectl("get", "namespace", "default", check=False).code == 0)

    def test_everyday_commands(self):
        columns = [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                   {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
                   {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                   {"name": "Color", "type": "string", "jsonPath": ".spec.color", "priority": 1}]
        self.define(definition("widgets", "Widget", version(
            "v1", {"size": {"type": "integer", "minimum": 1, "description": "How large it is."}, "color": {"type": "string"}},
            additionalPrinterColumns=columns,
            subresources={"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
        ), shortNames=["wd"], categories=["all"]))
        self.m.apply(thing("Widget", "a", {"size": 3, "color": "red"}))
        row = self.m.out("get", "wd", "a").splitlines()
        self.assertEqual(row[0].split(), ["NAME", "SIZE", "READY", "AGE"])
        self.assertEqual(row[1].split()[:2], ["a", "3"])
        self.assertIn("red", self.m.out("get", "widget", "a", "-o", "wide"))
        self.assertIn("widget.example.com/a", self.m.out("get", "all", "-o", "name"))
        self.assertIn("widgets", self.m.out("api-resources", "--api-group", GROUP))
        explained = self.m.out("explain", "widget.spec.size")
        self.assertIn("How large it is.", explained)
        self.assertIn("A widget.", self.m.out("explain", "widgets"))
        self.m.kubectl("scale", "widget/a", "--replicas=5")
        self.assertEqual(self.m.out("get", "widget", "a", "-o", "jsonpath={.spec.size}"), "5")
        self.m.kubectl("label", "widget", "a", "x=y")
        self.m.kubectl("patch", "widget", "a", "--type=merge", "-p", '{"spec": {"color": "blue"}}')
        self.m.kubectl("patch", "widget", "a", "--subresource=status", "--type=merge", "-p",
                       '{"status": {"size": 5, "conditions": [{"type": "Ready", "status": "True"}]}}')
        self.m.kubectl("wait", "widget/a", "--for=condition=Ready", "--timeout=5s")
        self.assertEqual(self.m.out("get", "widget", "a").splitlines()[1].split()[:3], ["a", "5", "True"])
        edited = self.m.exec(lab.KUBECTL, "edit", "widget", "a", env={"KUBE_EDITOR": "sed -i s/blue/green/"})
        self.assertIn("edited", edited.out)
        self.assertEqual(self.m.json("get", "widgets", "-l", "x=y")["items"][0]["spec"], {"size": 5, "color": "green"})
        diff = self.m.kubectl("diff", "-f", "-", input=json.dumps(thing("Widget", "a", {"size": 9})), check=False)
        self.assertIn("+  size: 9", diff.out)
        wrong = self.m.apply(thing("Widget", "b", {"size": "many"}), check=False)
        self.assertIn('spec.size in body must be of type integer: "string"', wrong.err)
        unknown = self.m.apply(thing("Widget", "b", {"size": 1, "odd": 1}), check=False)
        self.assertIn('unknown field "spec.odd"', unknown.err)
        self.m.kubectl("delete", "widget", "a")
        self.assertIn("NotFound", self.m.kubectl("get", "widget", "a", check=False).err)

    def test_server_side_apply(self):
        ports = {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {
            "type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "port": {"type": "integer"}}}}
        self.define(definition("doors", "Door", version("v1", {"ports": ports})))
        def door(name, port):
            return thing("Door", "d", {"ports": [{"name": name, "port": port}]})
        self.m.apply(door("in", 1), "--server-side", "--field-manager=one")
        self.m.apply(door("out", 2), "--server-side", "--field-manager=two")
        self.assertEqual(len(self.m.json("get", "door", "d")["spec"]["ports"]), 2)
        clash = self.m.apply(door("in", 3), "--server-side", "--field-manager=two", check=False)
        self.assertIn('conflict with "one"', clash.err)
        self.m.apply(door("in", 3), "--server-side", "--field-manager=two", "--force-conflicts")
        self.assertEqual(self.m.json("get", "door", "d")["spec"]["ports"], [{"name": "in", "port": 3}])

    def test_two_versions_and_a_default_for_what_is_stored(self):
        old = version("v1", {"size": {"type": "integer"}})
        self.define(definition("boxes", "Box", old))
        self.m.apply(thing("Box", "stored", {"size": 1}))
        properties = {"size": {"type": "integer"}, "color": {"type": "string", "default": "grey"}}
        self.define(definition("boxes", "Box", version("v1", properties), version("v2", properties, storage=False)))
        color = wait_for("the default", lambda: self.m.json("get", "box", "stored")["spec"].get("color"))
        self.assertEqual(color, "grey")
        self.m.apply(thing("Box", "new", {"size": 2}, api="v2"))
        for api in ("v1", "v2"):
            listed = self.m.json("get", f"boxes.{api}.{GROUP}")
            self.assertEqual([(b["apiVersion"], b["metadata"]["name"]) for b in listed["items"]],
                             [(f"{GROUP}/{api}", "new"), (f"{GROUP}/{api}", "stored")])

    def test_a_restart_keeps_all(self):
        self.define(definition("rocks", "Rock", version("v1", {"size": {"type": "integer", "default": 4}})))
        self.m.apply(thing("Rock", "r", {}))
        self.m.stop()
        self.m.start(ready=False)
        wait_for("the API", lambda: self.m.kubectl("get", "rock", "r", check=False).code == 0)
        self.assertEqual(self.m.json("get", "rock", "r")["spec"], {"size": 4})
        self.m.apply(thing("Rock", "s", {}))
        self.assertIn("What is wanted.", self.m.out("explain", "rock.spec"))

    def test_five_hundred_objects_go_with_their_definition(self):
        name = self.define(definition("leaves", "Leaf", version("v1", {"n": {"type": "integer"}})))
        leaves = {"apiVersion": "v1", "kind": "List", "items": [thing("Leaf", f"leaf-{n}", {"n": n}) for n in range(500)]}
        self.m.kubectl("create", "-f", "-", input=json.dumps(leaves), timeout=120)
        held = thing("Leaf", "held", {"n": -1}, finalizers=[f"{GROUP}/hold"])
        self.m.apply(held)
        self.m.kubectl("delete", "crd", name, "--wait=false")
        wait_for("all others", lambda: self.m.out("get", "leaves", "-o", "name") == f"leaf.{GROUP}/held", 60)
        status = self.m.json("get", "crd", name)["status"]["conditions"]
        self.assertEqual([c["status"] for c in status if c["type"] == "Terminating"], ["True"])
        self.m.kubectl("patch", "leaf", "held", "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
        wait_for("the definition", lambda: "NotFound" in self.m.kubectl("get", "crd", name, check=False).err)
        self.assertIn("could not find the requested resource",
                      self.m.kubectl("get", "--raw", f"/apis/{GROUP}/v1/leaves", check=False).err)

    def test_owners_namespaces_and_quotas(self):
        self.define(definition("trees", "Tree", version("v1", {})))
        self.define(definition("apples", "Apple", version("v1", {})))
        self.m.kubectl("create", "namespace", "garden")
        self.m.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "garden"},
                      "spec": {"hard": {f"count/trees.{GROUP}": "2"}}})
        for n in range(2):
            self.m.apply(thing("Tree", f"t{n}", {}, namespace="garden"))
        third = self.m.apply(thing("Tree", "t2", {}, namespace="garden"), check=False)
        self.assertIn("exceeded quota", third.err)
        used = lambda: self.m.json("get", "quota", "q", "-n", "garden")["status"].get("used", {})
        wait_for("the count", lambda: used().get(f"count/trees.{GROUP}") == "2")
        uid = self.m.json("get", "tree", "t0", "-n", "garden")["metadata"]["uid"]
        self.m.apply(thing("Apple", "a", {}, namespace="garden", ownerReferences=[
            {"apiVersion": f"{GROUP}/v1", "kind": "Tree", "name": "t0", "uid": uid}]))
        self.m.kubectl("delete", "tree", "t0", "-n", "garden")
        wait_for("the apple", lambda: self.m.out("get", "apples", "-n", "garden", "-o", "name") == "", 40)
        self.m.kubectl("delete", "namespace", "garden", "--timeout=60s", timeout=90)
        self.assertEqual(self.m.out("get", "trees", "-A", "-o", "name"), "")

    def test_roles(self):
        self.define(definition("keys", "Key", version("v1", {})))
        self.m.apply(thing("Key", "k", {}))
        self.m.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {
            "name": "keys-view", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
            "rules": [{"apiGroups": [GROUP], "resources": ["keys"], "verbs": ["get", "list", "watch"]}]})
        self.m.kubectl("create", "rolebinding", "viewer", "--clusterrole=view", "--user=jane")
        get = lambda *what: self.m.kubectl("get", *what, "--as=jane", check=False)
        wait_for("the role", lambda: get("key", "k").code == 0)
        self.assertIn("Forbidden", self.m.kubectl("delete", "key", "k", "--as=jane", check=False).err)

    def test_a_manifest_with_a_definition_and_its_objects(self):
        text = json.dumps(definition("pots", "Pot", version("v1", {}))) + "\n---\n" + json.dumps(thing("Pot", "p", {}))
        with open(f"{self.folder}/pots.yaml", "w") as file:
            file.write(text)
        wait_for("the pot", lambda: self.m.kubectl("get", "pot", "p", check=False).code == 0, 12)

    def test_watch_of_a_cluster_scoped_kind(self):
        self.define(definition("stars", "Star", version("v1", {}), scope="Cluster"))
        watch = self.m.spawn(lab.KUBECTL, "get", "stars", "-w", "-o", "name", stdout=subprocess.PIPE)
        star = thing("Star", "s", {})
        del star["metadata"]["namespace"]
        self.m.apply(star)
        for line in watch.stdout:
            if line.strip() == f"star.{GROUP}/s":
                break
        watch.kill()
        watch.wait()


class Servers(lab.ClusterCase):
    """Three servers, each of which follows definitions by itself."""

    servers, agents = 3, 0

    def test_1_a_definition_is_in_force_on_every_server(self):
        for n, writer in enumerate(self.c.servers):
            plural = f"coins{n}"
            writer.apply(definition(plural, f"Coin{n}", version("v1", {"a": {"type": "string"}})))
            writer.kubectl("wait", f"crd/{plural}.{GROUP}", "--for=condition=Established", "--timeout=10s")
            path = f"/apis/{GROUP}/v1/namespaces/default/{plural}"
            for other in self.c.servers:
                # At once: not found would be wrong.
                other.kubectl("get", "--raw", path)
                made = other.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(
                    thing(f"Coin{n}", f"by-{other.name}", {"a": "x", "b": "y"})))
                self.assertEqual(json.loads(made.out)["spec"], {"a": "x"})
            for other in self.c.servers:
                self.assertEqual(len(other.json("get", plural)["items"]), 3)
                self.assertIn("What is wanted.", other.out("explain", f"{plural}.spec"))

    def test_2_a_new_leader_goes_on_with_a_deletion(self):
        self.c.first.apply(definition("pins", "Pin", version("v1", {})))
        self.c.first.kubectl("wait", f"crd/pins.{GROUP}", "--for=condition=Established", "--timeout=10s")
        self.c.first.apply(thing("Pin", "held", {}, finalizers=[f"{GROUP}/hold"]))
        self.c.first.kubectl("delete", "crd", f"pins.{GROUP}", "--wait=false")
        leader = self.c.leader()
        leader.kill9()
        other = next(s for s in self.c.servers if s.running())
        wait_for("the API", lambda: other.kubectl("get", "pin", "held", "--request-timeout=5s", check=False).code == 0)
        wait_for("the finalizer", lambda: other.kubectl(
            "patch", "pin", "held", "--type=merge", "-p", '{"metadata": {"finalizers": null}}', check=False).code == 0)
        wait_for("the definition", lambda: "NotFound" in other.kubectl("get", "crd", f"pins.{GROUP}", check=False).err)
        leader.start(ready=False)
        wait_for("the old leader", lambda: leader.kubectl("get", "coins0", check=False).code == 0)
