"""Controllers that only show in a whole system: volumes and claims, quotas, deletion in order, Jobs by index, resizing,
taints."""

import json
import time

import lab
from lab import BUSYBOX, wait_for


class Controllers(lab.Case):
    def phase(self, what):
        return self.m.out("get", what, "-o", "jsonpath={.status.phase}")

    def gone(self, what, namespace="default"):
        return self.m.kubectl("get", what, "-n", namespace, check=False).code != 0

    def test_a_claim_is_bound_used_and_released(self):
        host = self.m.dir + "/volume"
        self.m.sh(f"mkdir -p {host}")
        self.m.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"}, "spec": {
            "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": host},
            "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "by-hand"}})
        wait_for("the volume", lambda: self.phase("pv/disk") == "Available")
        self.m.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "by-hand",
            "resources": {"requests": {"storage": "1Gi"}}}})
        wait_for("the binding", lambda: self.phase("pvc/claim") == self.phase("pv/disk") == "Bound")
        self.m.run_pod("writer", "echo kept > /data/file; sleep 1000000", container={
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}, spec={
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "claim"}}]})
        wait_for("the file", lambda: self.m.sh(f"cat {host}/file").strip() == "kept")
        # In use, it stays until the pod has gone.
        self.m.kubectl("delete", "pvc", "claim", "--wait=false")
        self.assertIn("deletionTimestamp", self.m.json("get", "pvc", "claim")["metadata"])
        self.m.kubectl("delete", "pod", "writer")
        wait_for("the claim to go", lambda: self.gone("pvc/claim"))
        wait_for("the volume to be released", lambda: self.phase("pv/disk") == "Released")
        self.m.kubectl("delete", "pv", "disk")
        self.assertEqual(self.m.sh(f"cat {host}/file").strip(), "kept")

    def test_a_quota_tells_what_is_used(self):
        self.m.kubectl("create", "namespace", "bounded")
        self.m.kubectl("create", "quota", "all", "--hard=configmaps=5,secrets=2,count/deployments.apps=1", "-n", "bounded")
        def used(name):
            return self.m.json("get", "quota", "all", "-n", "bounded").get("status", {}).get("used", {}).get(name)
        # The root CA is there already.
        wait_for("the count", lambda: (used("configmaps"), used("secrets"), used("count/deployments.apps")) == ("1", "0", "0"))
        self.m.kubectl("create", "configmap", "more", "-n", "bounded")
        wait_for("one more", lambda: used("configmaps") == "2")
        self.m.kubectl("delete", "configmap", "more", "-n", "bounded")
        wait_for("one less", lambda: used("configmaps") == "1")

    def test_pods_leave_a_namespace_before_all_else(self):
        self.m.kubectl("create", "namespace", "ending")
        self.m.kubectl("create", "configmap", "kept", "-n", "ending")
        wait_for("the account", lambda: self.m.kubectl("get", "serviceaccount", "default", "-n", "ending"))
        self.m.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {
            "name": "last", "namespace": "ending", "finalizers": ["example.com/hold"]}, "spec": {
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": BUSYBOX, "command": ["sleep", "9999"]}]}})
        self.m.kubectl("delete", "namespace", "ending", "--wait=false")
        def waits():
            conditions = self.m.json("get", "namespace", "ending")["status"].get("conditions", [])
            return [c for c in conditions if c["type"] == "NamespaceContentRemaining" and c["status"] == "True"]
        self.assertIn("pods. has 1 resource instances", wait_for("the condition", waits)[0]["message"])
        self.assertNotIn("deletionTimestamp", self.m.json("get", "configmap", "kept", "-n", "ending")["metadata"])
        self.m.kubectl("patch", "pod", "last", "-n", "ending", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        wait_for("the namespace to go", lambda: self.m.kubectl("get", "namespace", "ending", check=False).code != 0)

    def test_a_circle_of_owners_is_collected(self):
        names = ("one", "two", "three")
        uids = {}
        for name in names:
            self.m.kubectl("create", "configmap", name)
            uids[name] = self.m.out("get", "configmap", name, "-o", "jsonpath={.metadata.uid}")
        for name, owner in zip(names, names[2:] + names[:2]):
            references = [{"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uids[owner],
                           "controller": True, "blockOwnerDeletion": True}]
            self.m.kubectl("patch", "configmap", name, "--type=merge", "-p",
                           json.dumps({"metadata": {"ownerReferences": references}}))
        self.m.kubectl("delete", "configmap", "one", "--cascade=foreground", "--wait=false")
        wait_for("all to go", lambda: all(self.gone("configmap/" + name) for name in names))

    def test_indexes_of_a_job_fail_each_for_itself(self):
        self.m.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "odd"}, "spec": {
            "completions": 4, "parallelism": 4, "completionMode": "Indexed", "backoffLimitPerIndex": 1,
            "podFailurePolicy": {"rules": [
                {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}}]},
            "template": {"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [{
                "name": "c", "image": BUSYBOX,
                "command": ["sh", "-c", "[ $JOB_COMPLETION_INDEX = 0 ] && exit 42; [ $JOB_COMPLETION_INDEX != 1 ]"]}]}}}})
        self.m.wait("job/odd", "condition=Failed", 60)
        status = self.m.json("get", "job", "odd")["status"]
        # The first index gave up at once, the second one after a second try.
        self.assertEqual((status["failedIndexes"], status["completedIndexes"], status["failed"], status["succeeded"]),
                         ("0,1", "2,3", 3, 2))
        self.assertEqual([c["reason"] for c in status["conditions"] if c["type"] == "Failed"], ["FailedIndexes"])

    def test_resizing_restarts_only_where_asked(self):
        def amounts(cpu, memory):
            return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}}
        self.m.run_pod("sized", container={"resources": amounts("100m", "64Mi"), "resizePolicy": [
            {"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": "RestartContainer"}]})
        def resize(cpu, memory):
            patch = {"spec": {"containers": [{"name": "main", "resources": amounts(cpu, memory)}]}}
            self.m.kubectl("patch", "pod", "sized", "--subresource=resize", "-p", json.dumps(patch))
            def done():
                pod = self.m.pod("sized")
                main = pod["status"]["containerStatuses"][0]
                going = [c for c in pod["status"]["conditions"] if c["type"] == "PodResizeInProgress"]
                return main.get("resources") == amounts(cpu, memory) and not going and "running" in main["state"] and main
            return wait_for("the new size", done)["restartCount"]
        self.assertEqual(resize("200m", "64Mi"), 0)
        self.assertEqual(resize("200m", "96Mi"), 1)
        self.assertEqual(resize("100m", "96Mi"), 1)

    def test_several_containers_are_resized_at_once(self):
        def amounts(cpu, memory):
            return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}}
        def containers(*sizes):
            return [{"name": f"c{n}", "resources": amounts(*size)} for n, size in enumerate(sizes)]
        def quota(name):
            script = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max"
            return self.m.out("exec", "several", "-c", name, "--", "sh", "-c", script)
        common = {"image": BUSYBOX, "command": ["sleep", "3600"]}
        self.m.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "several"}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{**c, **common} for c in containers(("100m", "32Mi"), ("100m", "32Mi"), ("100m", "64Mi"))]}})
        self.m.wait("pod/several", "condition=Ready", 60)
        # More in all, less in all, and some of both.
        for sizes in ((("200m", "48Mi"), ("300m", "64Mi"), ("50m", "32Mi")), (("250m", "48Mi"), ("50m", "32Mi"), ("40m", "32Mi")),
                      (("100m", "64Mi"), ("100m", "32Mi"), ("100m", "48Mi"))):
            self.m.kubectl("patch", "pod", "several", "--subresource=resize", "-p",
                           json.dumps({"spec": {"containers": containers(*sizes)}}))
            def done():
                status = self.m.pod("several")["status"]
                going = [c["type"] for c in status["conditions"] if c["type"].startswith("PodResize")]
                return not going and [s["resources"] for s in status["containerStatuses"]] == [amounts(*size) for size in sizes]
            wait_for(f"the sizes {sizes}", done)
            for number, (cpu, _) in enumerate(sizes):
                self.assertEqual(quota(f"c{number}"), str(int(cpu[:-1]) * 100))
        self.assertEqual([s["restartCount"] for s in self.m.pod("several")["status"]["containerStatuses"]], [0, 0, 0])

    def test_a_resize_waits_for_room_and_is_refused_where_there_can_be_none(self):
        cpus = int(self.m.json("get", "nodes")["items"][0]["status"]["allocatable"]["cpu"])
        def asks(cpu):
            return {"requests": {"cpu": cpu}}
        def resize(name, cpu, *flags, check=True):
            patch = {"spec": {"containers": [{"name": "main", "resources": asks(cpu)}]}}
            return self.m.kubectl("patch", "pod", name, "--subresource=resize", "-p", json.dumps(patch), *flags, check=check)
        def pending(name):
            return {c["reason"]: c["message"] for c in self.m.pod(name)["status"]["conditions"] if c["type"] == "PodResizePending"}
        def given(name):
            return self.m.pod(name)["status"]["containerStatuses"][0]["allocatedResources"]["cpu"]
        self.m.run_pod("grows", container={"resources": asks("100m")})
        self.m.run_pod("neighbour", container={"resources": asks(f"{cpus * 1000 // 2}m")})
        resize("grows", f"{cpus + 1}")
        message = wait_for("the resize to be refused", lambda: pending("grows").get("Infeasible"))
        self.assertEqual(message, f"Node didn't have enough capacity: cpu, requested: {(cpus + 1) * 1000}, capacity: {cpus * 1000}")
        resize("grows", f"{cpus * 1000 - 400}m")
        wait_for("the resize to wait", lambda: "Deferred" in pending("grows"))
        self.assertEqual(given("grows"), "100m")
        # Not even a restart gives it what is not there.
        self.m.stop()
        self.m.start()
        self.m.run_pod("small")
        self.assertEqual((given("grows"), list(pending("grows"))), ("100m", ["Deferred"]))
        self.m.kubectl("delete", "pod", "neighbour")
        wait_for("the room to be given", lambda: not pending("grows") and given("grows") == f"{cpus * 1000 - 400}m")
        self.assertEqual(self.m.pod("grows")["status"]["containerStatuses"][0]["restartCount"], 0)
        # A quota bounds a resize as it bounds a creation.
        self.m.kubectl("create", "namespace", "tight")
        self.m.kubectl("create", "quota", "cpu", "--hard=requests.cpu=200m", "-n", "tight")
        self.m.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bounded"}, "spec": {
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": BUSYBOX, "command": ["sleep", "1000"], "resources": asks("100m")}]}}, "-n", "tight")
        refused = resize("bounded", "201m", "-n", "tight", check=False)
        self.assertIn("exceeded quota: cpu, requested: requests.cpu=101m, used: requests.cpu=100m, limited: requests.cpu=200m", refused.err)
        self.m.kubectl("delete", "pod", "grows", "small")
        self.m.kubectl("delete", "namespace", "tight", timeout=60)

    def test_a_taint_evicts_who_does_not_stand_it(self):
        node = self.m.json("get", "nodes")["items"][0]["metadata"]["name"]
        def stands(**more):
            return {"tolerations": [{"key": "lab", "value": "evict", "effect": "NoExecute", **more}]}
        for name, spec in {"never": {}, "short": stands(tolerationSeconds=4), "longer": stands(tolerationSeconds=20),
                           "ever": stands()}.items():
            self.m.run_pod(name, spec=spec)
        def stays(name):
            return not self.gone("pod/" + name) and "deletionTimestamp" not in self.m.pod(name)["metadata"]
        tainted = time.monotonic()
        self.m.kubectl("taint", "nodes", node, "lab=evict:NoExecute")
        try:
            wait_for("the pod without a toleration to leave", lambda: not stays("never"))
            wait_for("the pod that tolerates for a time to leave", lambda: not stays("short"))
            # The taint's time is in whole seconds.
            self.assertGreater(time.monotonic() - tainted, 3)
            self.assertTrue(stays("longer"))
        finally:
            self.m.kubectl("taint", "nodes", node, "lab:NoExecute-")
        # Without the taint, the end of its time must pass like any other moment.
        wait_for("the time of the other", lambda: time.monotonic() - tainted > 24, 30)
        self.assertTrue(stays("longer") and stays("ever"))
