"""Snapshots of the cluster's state: saved under load, listed, pruned, and restored."""

import json
import os
import threading

import lab
from lab import wait_for
from lab.cluster import TOKEN


class Snapshots(lab.Case):
    shared = False
    time_limit = 240

    def snapshot(self, *args, **options):
        return self.m.exec(lab.BINARY, "snapshot", *self.m.local(), *args, **options)

    def names(self):
        items = json.loads(self.snapshot("ls", "-o", "json").out)["items"]
        return [item["spec"]["snapshotName"] for item in items]

    def folder(self):
        return self.m.data + "/server/db-snapshots"

    def test_save_list_delete_prune(self):
        self.m = self.machine().start("--disable-agent", ready=False)
        wait_for("the API", lambda: "ok" in self.m.out("get", "--raw", "/readyz"), 30)
        done, failed = threading.Event(), []

        def load():
            number = 0
            while not done.is_set():
                number += 1
                answer = self.m.kubectl("create", "configmap", f"load-{number}", check=False)
                if answer.code:
                    failed.append(answer)
        writer = threading.Thread(target=load)
        writer.start()
        try:
            for _ in range(4):
                self.snapshot("save", "--name", "loaded")
            self.m.exec(lab.BINARY, "etcd-snapshot", *self.m.local())
        finally:
            done.set()
            writer.join()
        self.assertEqual(failed, [])
        names = self.names()
        self.assertEqual(len(names), 5)
        self.assertEqual([name.rsplit("-", 1)[0] for name in names].count("loaded-node"), 4)
        for name in names:
            mode = os.stat(f"{self.folder()}/{name}").st_mode
            self.assertEqual(mode & 0o777, 0o600)
        table = self.snapshot("ls").out
        self.assertEqual(table.splitlines()[0].split(), ["Name", "Location", "Size", "Created"])
        self.assertIn(f"file://{self.folder()}/{names[0]}", table)

        self.snapshot("prune", "--name", "loaded", "--snapshot-retention", "1")
        kept = [name for name in names if name.startswith("loaded-")][-1:]
        kept += [name for name in names if name.startswith("on-demand-")]
        self.assertEqual(sorted(self.names()), sorted(kept))
        missing = self.snapshot("delete", kept[0], "no-such", check=False)
        self.assertEqual((missing.code, "no-such" in missing.err), (1, True))
        self.snapshot("delete", *kept)
        self.assertEqual(self.names(), [])
        refused = self.snapshot("save", "--name", "../../etc/passwd", check=False)
        self.assertEqual((refused.code, "may hold" in refused.err), (1, True))

        status = json.loads(self.m.exec(lab.BINARY, "store", *self.m.local(), "status", "--output", "json").out)
        self.assertTrue(status["leader"] and status["revision"] > 0 and status["writeError"] is None)
        self.m.stop()
        gone = self.snapshot("save", check=False)
        self.assertEqual((gone.code, "no server answers" in gone.err), (1, True))

    def test_the_schedule_keeps_as_many_as_told(self):
        flags = ["--disable-agent", "--etcd-snapshot-schedule-cron", "@every 1s", "--etcd-snapshot-retention", "2",
                 "--etcd-snapshot-name", "tick"]
        self.m = self.machine().start(*flags, ready=False)
        wait_for("more snapshots than are kept", lambda: self.m.log().count("snapshot saved") >= 4, 30)
        wait_for("the older ones to go", lambda: len(self.names()) == 2, 10)
        self.assertTrue(all(name.startswith("tick-node-") for name in self.names()))

    def test_a_bad_schedule_starts_nothing(self):
        self.m = self.machine().start("--etcd-snapshot-schedule-cron", "at noon", ready=False)
        self.assertEqual(self.m.server.wait(20), 1)
        self.assertIn("--etcd-snapshot-schedule-cron", self.m.log())
        self.assertFalse(os.path.exists(self.m.data + "/server/db"))

    def test_restore_brings_back_what_was_deleted(self):
        self.m = self.machine().start()
        self.m.run_pod("stays", "sleep 7777777")
        self.m.kubectl("create", "namespace", "precious")
        self.m.kubectl("create", "configmap", "settings", "-n", "precious", "--from-literal=a=b")
        self.m.deploy("web", 2)
        before = self.m.pod("stays")
        self.snapshot("save", "--name", "good")
        file = f"{self.folder()}/{self.names()[0]}"

        self.m.kubectl("delete", "namespace", "precious", timeout=60)
        self.m.kubectl("delete", "deployment", "web")
        self.m.run_pod("later", "sleep 6666666")
        pids = self.m.container_pids("sleep 7777777")
        self.m.stop()

        # What is no whole snapshot is refused, and nothing is touched.
        with open(file, "rb") as whole:
            content = whole.read()
        for text, damaged in [("damaged", content[:-100]), ("damaged", content[:500] + b"x" + content[501:]),
                              ("not a backup", b"hello")]:
            with open(self.m.dir + "/damaged", "wb") as out:
                out.write(damaged)
            listing = sorted(os.listdir(self.m.data + "/server"))
            refused = self.m.exec(*self.m.command("--cluster-reset", "--cluster-reset-restore-path",
                                                  self.m.dir + "/damaged"), check=False, timeout=60)
            self.assertEqual(refused.code, 1)
            self.assertIn(text, refused.out + refused.err)
            self.assertEqual(sorted(os.listdir(self.m.data + "/server")), listing)

        reset = self.m.command("--cluster-reset", "--cluster-reset-restore-path", file)
        done = self.m.exec(*reset, timeout=60)
        self.assertIn("without --cluster-reset", done.out + done.err)
        again = self.m.exec(*reset, check=False, timeout=60)
        self.assertEqual((again.code, "reset already" in again.err), (1, True))
        self.assertEqual(len([name for name in os.listdir(self.m.data + "/server") if name.startswith("db-old-")]), 1)

        self.m.start()
        self.assertEqual(self.m.out("get", "configmap", "settings", "-n", "precious", "-o", "jsonpath={.data.a}"), "b")
        # A pod that was there then and now is the same, down to its process.
        after = self.m.pod("stays")
        self.assertEqual(after["metadata"]["uid"], before["metadata"]["uid"])
        self.assertEqual(self.m.container_pids("sleep 7777777"), pids)
        # What the snapshot does not know ends, and what it knows comes back.
        self.assertIn("NotFound", self.m.kubectl("get", "pod", "later", check=False).err)
        wait_for("the unknown pod to end", lambda: not self.m.container_pids("sleep 6666666"), 60)
        self.m.wait("deployment/web", "condition=Available", 60)
        wait_for("the new pods to run", lambda: self.m.json("get", "deployment", "web")["status"].get("readyReplicas") == 2,
                 60)
        # It is an ordinary cluster again, which can be reset once more.
        self.m.kubectl("create", "configmap", "new")
        self.m.stop()
        self.m.exec(*self.m.command("--cluster-reset"), timeout=60)
        self.m.start()
        self.m.kubectl("get", "configmap", "new")

        # The tool does the same, by a snapshot's name, and not while a server runs.
        refused = self.snapshot("restore", os.path.basename(file), check=False)
        self.assertEqual((refused.code, "a server runs on this machine" in refused.err), (1, True))
        self.m.stop()
        self.assertIn("No such file", self.snapshot("restore", "no-such-snapshot", check=False).err)
        self.snapshot("restore", os.path.basename(file))
        self.m.start()
        self.assertIn("NotFound", self.m.kubectl("get", "configmap", "new", check=False).err)
        self.m.kubectl("get", "configmap", "settings", "-n", "precious")


class NewMachine(lab.ClusterCase):
    """The only server is lost with its disk. A snapshot and the token make the same cluster again elsewhere."""

    servers, agents, flags = 1, 1, ("--secrets-encryption",)
    time_limit = 300

    def test_a_snapshot_and_the_token_bring_the_cluster_back(self):
        agent, data = self.c.agents[0], self.m.data
        self.c.pod_on(agent, "steady", script="sleep 7654321")
        self.m.kubectl("create", "secret", "generic", "kept", "--from-literal=a=b")
        wait_for("the CAs to be kept", lambda: "CAs and keys are kept in the store" in self.m.log())
        self.m.exec(lab.BINARY, "snapshot", *self.m.local(), "save", "--name", "all")
        folder = data + "/server/db-snapshots"
        snapshot = self.m.dir + "/snapshot"
        os.rename(f"{folder}/{os.listdir(folder)[0]}", snapshot)
        with open(data + "/server/tls/server-ca.crt") as file:
            authority = file.read()
        with open(snapshot, "rb") as file:
            self.assertNotIn(b"PRIVATE KEY", file.read())
        pids = agent.container_pids("sleep 7654321")

        self.m.stop()
        self.m.killall()
        # Nothing of it is left: this is a machine that has never been a server, at the old one's address.
        self.m.sh(f"rm -rf {data}/server {data}/agent/*.* {data}/agent/etc {data}/agent/kubelet /etc/mussel")
        restore = ["--cluster-reset", "--cluster-reset-restore-path", snapshot]
        for token, says in [("wrong", "cannot be opened"),
                            ("K10" + "0" * 64 + "::server:" + TOKEN, "belongs to another cluster")]:
            refused = self.m.exec(*self.m.command(*restore, "--token", token), check=False, timeout=60)
            self.assertEqual((refused.code, says in refused.err), (1, True), refused.err)
            self.assertFalse(os.path.exists(data + "/server"))
        self.m.exec(*self.m.command(*restore), timeout=60)
        with open(data + "/server/tls/server-ca.crt") as file:
            self.assertEqual(file.read(), authority)
        self.assertEqual(os.stat(data + "/server/tls/server-ca.key").st_mode & 0o777, 0o600)

        self.m.start()
        self.c.wait_node(agent)
        wait_for("the agent's tunnel", lambda: self.m.out("exec", "steady", "--", "hostname") == "steady", 60)
        self.assertEqual(agent.container_pids("sleep 7654321"), pids, "the agent's pods were not touched")
        self.assertEqual(self.m.out("get", "secret", "kept", "-o", "jsonpath={.data.a}"), "Yg==")
        self.c.pod_on(agent, "new")
        # The node's name was another machine's; it is this one's from now on.
        self.m.stop()
        self.m.start()
        self.m.kubectl("delete", "pod", "new", "steady")
