"""Volumes of the class local-path, on a fresh cluster: made on the node of the pod, kept with the data, removed with the claim."""

import json
import os

import lab
from lab import wait_for


class LocalStorage(lab.ClusterCase):
    """A server and an agent, each with its own disk."""

    servers, agents = 1, 1

    def root(self, machine):
        """The server's default is what all nodes use, as with k3s."""
        return self.c.first.data + "/storage"

    def folders(self, machine):
        out = machine.sh(f"ls {self.root(machine)} 2>/dev/null || true")
        return [line for line in out.split("\n") if line]

    def claim(self, name, **spec):
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, **spec}
        self.m.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})

    def pod(self, name, claim, script, machine=None, **spec):
        if machine:
            # By the scheduler, which chooses the claim's node: nodeName would pass it by.
            spec["nodeSelector"] = {"kubernetes.io/hostname": machine.name}
        self.m.run_pod(name, script=script, deadline=60, container={"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
                       spec={"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}], **spec})

    def volume_of(self, claim):
        return self.m.json("get", "pvc", claim)["spec"]["volumeName"]

    def events(self, name):
        return self.m.out("get", "events", "--field-selector", f"involvedObject.name={name}")

    def delete(self, *what):
        self.m.kubectl("delete", *what, "--wait=true", timeout=60)

    def test_a_claim_gets_a_directory_that_goes_with_it(self):
        agent = self.c.agents[0]
        classes = self.m.json("get", "storageclass", "local-path")
        self.assertEqual((classes["provisioner"], classes["volumeBindingMode"], classes["reclaimPolicy"]),
                         ("rancher.io/local-path", "WaitForFirstConsumer", "Delete"))
        # The default class.
        self.claim("data")
        self.assertEqual(self.m.json("get", "pvc", "data")["spec"]["storageClassName"], "local-path")
        wait_for("word that it waits", lambda: "WaitForFirstConsumer" in self.events("data"), 20)
        self.pod("writer", "data", "echo kept > /data/file; sleep 1000000", agent)
        volume = self.m.json("get", "pv", self.volume_of("data"))
        claim = self.m.json("get", "pvc", "data")
        name = f"pvc-{claim['metadata']['uid']}"
        self.assertEqual(volume["metadata"]["name"], name)
        path = volume["spec"]["local"]["path"]
        self.assertEqual(path, f"{self.root(agent)}/{name}_default_data")
        self.assertEqual(volume["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"], "rancher.io/local-path")
        modes = agent.sh(f"stat -c %a {path} {self.root(agent)}").split()
        self.assertEqual(modes, ["777", "700"])
        self.assertEqual(agent.sh(f"cat {path}/file").strip(), "kept")
        for reason in ("Provisioning", "ProvisioningSucceeded", "ExternalProvisioning"):
            self.assertIn(reason, self.events("data"))
        # The data outlives the pod, and the next one goes where it is.
        self.delete("pod", "writer")
        self.pod("reader", "data", "cat /data/file; sleep 1000000")
        self.assertEqual(self.m.pod("reader")["spec"]["nodeName"], agent.name)
        wait_for("the data", lambda: self.m.out("logs", "reader").strip() == "kept", 20)
        # A claim in use stays until its pod is gone; then it goes with its data.
        self.m.kubectl("delete", "pvc", "data", "--wait=false")
        self.assertEqual(self.m.json("get", "pvc", "data")["status"]["phase"], "Bound")
        self.delete("pod", "reader")
        wait_for("the volume to go", lambda: self.m.kubectl("get", "pv", name, check=False).code != 0, 60)
        self.assertEqual(self.folders(agent), [])

    def test_a_stateful_set_finds_its_data_again(self):
        script = "cat /data/who 2>/dev/null; hostname > /data/who; sleep 1000000"
        self.m.apply({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
            "serviceName": "db", "replicas": 2, "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
                "terminationGracePeriodSeconds": 0, "containers": [{
                    "name": "main", "image": lab.BUSYBOX, "command": ["sh", "-c", script],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "64Mi"}}}}]}})
        self.m.rolled_out("statefulset/db", deadline=90)
        nodes = {name: self.m.pod(name)["spec"]["nodeName"] for name in ("db-0", "db-1")}
        for machine in self.c.machines:
            machine.stop()
        for machine in self.c.machines:
            machine.start(ready=False)
        for machine in self.c.machines:
            self.c.wait_node(machine)
        self.delete("pod", "db-0", "db-1")
        for name in ("db-0", "db-1"):
            wait_for(f"{name} to be back", lambda: self.m.kubectl("get", "pod", name, check=False).code == 0, 30)
            self.m.wait("pod/" + name, "condition=Ready", 60)
            self.assertEqual(self.m.pod(name)["spec"]["nodeName"], nodes[name])
            wait_for("the data", lambda: self.m.out("logs", name).strip() == name, 20)
        self.delete("statefulset", "db")
        self.delete("pvc", "data-db-0", "data-db-1")
        wait_for("the directories to go", lambda: not [f for m in self.c.machines for f in self.folders(m)], 60)

    def test_what_is_deleted_while_a_node_is_away_is_removed_when_it_is_back(self):
        agent = self.c.agents[0]
        self.claim("away")
        self.pod("away", "away", "sleep 1000000", agent)
        self.assertEqual(len(self.folders(agent)), 1)
        name = self.volume_of("away")
        self.delete("pod", "away")
        agent.stop()
        self.delete("pvc", "away")
        wait_for("word of the failure", lambda: "VolumeFailedDelete" in self.events(name), 40)
        self.assertEqual(len(self.folders(agent)), 1)
        agent.start(ready=False)
        self.c.wait_node(agent)
        wait_for("the volume to go", lambda: self.m.kubectl("get", "pv", name, check=False).code != 0, 90)
        self.assertEqual(self.folders(agent), [])

    def test_what_is_retained_stays(self):
        agent = self.c.agents[0]
        self.m.apply({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "kept"},
                      "provisioner": "rancher.io/local-path", "volumeBindingMode": "WaitForFirstConsumer",
                      "reclaimPolicy": "Retain"})
        self.claim("kept", storageClassName="kept")
        self.pod("kept", "kept", "sleep 1000000", agent)
        name = self.volume_of("kept")
        # Without the annotation of local-path's class a volume is of type hostPath, as with k3s.
        path = self.m.json("get", "pv", name)["spec"]["hostPath"]["path"]
        self.delete("pod", "kept")
        self.delete("pvc", "kept")
        wait_for("release", lambda: self.m.json("get", "pv", name)["status"]["phase"] == "Released", 20)
        self.delete("pv", name)
        self.assertEqual(self.folders(agent), [os.path.basename(path)])
        agent.sh(f"rmdir {path}")

    def test_what_cannot_be_is_said(self):
        self.claim("many", accessModes=["ReadWriteMany"])
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "many"}, "spec": {
            "containers": [{"name": "main", "image": lab.BUSYBOX, "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "many"}}]}}
        self.m.apply(pod)
        wait_for("word of it", lambda: "ReadWriteMany" in self.events("many"), 40)
        self.delete("pod", "many")
        self.delete("pvc", "many")

    def test_paths_are_configured_by_node(self):
        agent = self.c.agents[0]
        config = self.m.json("get", "configmap", "-n", "kube-system", "local-path-config")
        before = config["data"]["config.json"]
        other = agent.dir + "/other"
        paths = json.loads(before)["nodePathMap"] + [{"node": agent.name, "paths": [other]}]

        def put(text):
            patch = json.dumps({"data": {"config.json": text}})
            self.m.kubectl("patch", "configmap", "-n", "kube-system", "local-path-config", "-p", patch)
        put(json.dumps({"nodePathMap": paths}))
        self.addCleanup(put, before)
        self.claim("elsewhere")
        self.pod("elsewhere", "elsewhere", "sleep 1000000", agent)
        self.assertEqual(len(agent.sh(f"ls {other}").split()), 1)
        self.delete("pod", "elsewhere")
        self.delete("pvc", "elsewhere")
        wait_for("the directory to go", lambda: agent.sh(f"ls {other}").split() == [], 30)


class Flags(lab.Case):
    shared = False

    def test_another_path_and_none_at_all(self):
        self.m = lab.Machine(flags=["--default-local-storage-path", "/srv/volumes"]).start()
        config = self.m.json("get", "configmap", "-n", "kube-system", "local-path-config")["data"]["config.json"]
        self.assertIn('"/srv/volumes"', config)
        self.assertEqual(json.loads(config)["nodePathMap"][0]["paths"], ["/srv/volumes"])
        self.m.stop()
        self.m.start("--disable=local-storage")
        wait_for("the class to go", lambda: self.m.kubectl("get", "storageclass", "local-path", check=False).code != 0, 20)
        self.assertFalse(os.path.exists(self.m.data + "/server/manifests/local-storage.yaml"))
