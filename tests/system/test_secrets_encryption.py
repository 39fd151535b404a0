"""Secrets in the store: what its files and snapshots hold, and how keys are changed under a running cluster."""

import base64
import glob
import json
import os
import subprocess
import sys

import lab
from lab import BINARY, wait_for

PLAIN = "correct-horse-battery-staple-0123456789"
CODED = base64.b64encode(PLAIN.encode()).decode()
FINISHED = "reencrypt_finished"


def encrypt(machine, *args, **options):
    return machine.exec(BINARY, "secrets-encrypt", *machine.local(), *args, **options)


def status(machine):
    return json.loads(encrypt(machine, "status", "-o", "json").out)


def wait_stage(machine, stage, deadline=60):
    wait_for(f"stage {stage}", lambda: status(machine)["stage"] == stage, deadline)


def wait_api(machine, deadline=60):
    wait_for("the API", lambda: "ok" in machine.out("get", "--raw", "/readyz"), deadline)


def make_secret(machine, name, text=PLAIN):
    machine.kubectl("create", "secret", "generic", name, "--from-literal=password=" + text)


def password(machine, name):
    return base64.b64decode(machine.out("get", "secret", name, "-o", "jsonpath={.data.password}")).decode()


# What each compressed value in a store begins with.
ZSTD = b"\x28\xb5\x2f\xfd"
FRAME_MAX = 256 << 10


def unpacked(content):
    """All that zstd has packed inside of a file; what follows a value is no zstd, which is of no interest."""
    at = content.find(ZSTD)
    while at >= 0:
        yield subprocess.run(["zstd", "-dcq"], input=content[at:at + FRAME_MAX], capture_output=True).stdout
        at = content.find(ZSTD, at + 1)


def found_in(folder, *needles):
    """The files in which one of the texts stands, as it is or compressed."""
    found = []
    for path in glob.glob(folder + "/**", recursive=True):
        if os.path.isfile(path):
            with open(path, "rb") as file:
                content = file.read()
            content = b"\n".join([content, *unpacked(content)])
            found += [path for needle in needles if needle.encode() in content]
    return found


def config_file(machine):
    return machine.data + "/server/cred/encryption-config.json"


class OneServer(lab.Case):
    shared = False
    time_limit = 240

    def restored(self, snapshot):
        """The database of a machine on which the snapshot was restored: a snapshot's file itself is compressed."""
        fresh = self.m.dir + "/fresh"
        self.m.exec(BINARY, "server", "--data-dir", fresh, "--run-dir", fresh + "-run", "--https-listen-port", "16443",
                    "--token-file", self.m.data + "/server/token", "--cluster-reset", "--cluster-reset-restore-path",
                    snapshot, timeout=60)
        return fresh + "/server/db"

    def save(self):
        self.m.exec(BINARY, "snapshot", *self.m.local(), "save", "--name", "kept")
        return sorted(glob.glob(self.m.data + "/server/db-snapshots/kept-*"))[-1]

    def test_from_the_first_start(self):
        self.m = self.machine().start("--disable-agent", "--secrets-encryption", ready=False)
        wait_api(self.m)
        make_secret(self.m, "a")
        self.m.kubectl("create", "configmap", "seen", "--from-literal=a=in-plain-sight-9876543210")
        self.assertEqual(password(self.m, "a"), PLAIN)
        self.assertEqual(os.stat(config_file(self.m)).st_mode & 0o777, 0o600)
        seen = status(self.m)
        self.assertEqual((seen["enable"], seen["stage"], seen["activekey"]), (True, "start", "aesgcmkey"))
        text = encrypt(self.m, "status").out
        self.assertTrue(text.startswith("Encryption Status: Enabled\nCurrent Rotation Stage: start\n"
                                        "Server Encryption Hashes: All hashes match\n"), text)
        self.assertIn(" *      AES-GCM   aesgcmkey", text)

        # A restart brings it all back; what a stop leaves on disk is looked through.
        self.m.stop()
        db = self.m.data + "/server/db"
        self.assertEqual(found_in(db, PLAIN, CODED), [])
        self.assertNotEqual(found_in(db, "in-plain-sight-9876543210"), [], "the search finds what is not encrypted")
        self.m.start("--disable-agent", ready=False)
        wait_api(self.m)
        self.assertEqual(password(self.m, "a"), PLAIN)
        self.assertTrue(status(self.m)["enable"], "the flag is not needed again")

        # Keys change under a watcher, who sees each object once more, with what it always held.
        for number in range(20):
            make_secret(self.m, f"many-{number}")
        watcher = self.m.spawn(lab.KUBECTL, "get", "secrets", "--watch-only", "--output-watch-events", "-o", "json",
                               stdout=open(self.m.dir + "/events", "w"), stderr=subprocess.DEVNULL)
        names = {f"many-{number}" for number in range(20)} | {"a"}

        def events():
            with open(self.m.dir + "/events") as file:
                text, decoder, found = file.read(), json.JSONDecoder(), []
            while text.strip():
                try:
                    event, end = decoder.raw_decode(text.lstrip())
                except ValueError:
                    break
                found.append(event)
                text = text.lstrip()[end:]
            return found

        def watching():
            self.m.kubectl("annotate", "secret", "a", "lab/now=1", "--overwrite")
            self.m.kubectl("annotate", "secret", "a", "lab/now-")
            return events()
        wait_for("the watcher", watching)
        wait_for("a quiet watcher", lambda: not events()[-1]["object"]["metadata"].get("annotations"))
        before = len(events())
        self.assertEqual(encrypt(self.m, "rotate-keys").out, "keys rotated, reencryption started\n")
        wait_stage(self.m, FINISHED)
        wait_for("an event of each", lambda: len(events()) - before >= len(names))
        after = events()[before:]
        self.assertEqual(sorted(e["object"]["metadata"]["name"] for e in after), sorted(names))
        self.assertEqual({(e["type"], e["object"]["data"]["password"]) for e in after}, {("MODIFIED", CODED)})
        watcher.kill()
        seen = status(self.m)
        self.assertTrue(seen["activekey"].startswith("aesgcmkey-2"), seen)
        self.assertNotIn("inactivekeys", seen)
        refused = encrypt(self.m, "rotate", check=False)
        self.assertEqual((refused.code, "incorrect stage: reencrypt_finished" in refused.err), (1, True))

        # Whenever it is interrupted, it goes on.
        encrypt(self.m, "rotate-keys")
        self.m.kill9()
        self.m.start("--disable-agent", ready=False)
        wait_api(self.m)
        wait_stage(self.m, FINISHED)
        self.assertEqual(password(self.m, "many-7"), PLAIN)

        with open(config_file(self.m)) as file:
            key = json.load(file)["resources"][0]["providers"][0]["aesgcm"]["keys"][0]["secret"]
        snapshot = self.save()
        self.m.stop()
        for folder in (db, self.restored(snapshot)):
            self.assertEqual(found_in(folder, PLAIN, CODED, key), [], folder)
        self.assertNotIn(key, self.m.log())
        self.assertNotIn(PLAIN, self.m.log())

    def test_without_the_keys_only_secrets_fail(self):
        self.m = self.machine().start("--disable-agent", "--secrets-encryption", ready=False)
        wait_api(self.m)
        make_secret(self.m, "a")
        self.m.stop()
        # The file alone is not missed: the token opens what the store has.
        os.rename(config_file(self.m), self.m.dir + "/config")
        self.m.start("--disable-agent", ready=False)
        wait_api(self.m)
        self.assertEqual(password(self.m, "a"), PLAIN)
        self.assertTrue(os.path.exists(config_file(self.m)))
        self.m.stop()

        # With another token and another key, all but Secrets goes on.
        token = self.m.data + "/server/token"
        with open(token) as file:
            right = file.read()
        with open(token, "w") as file:
            file.write(right.rsplit(":", 1)[0] + ":another\n")
        with open(config_file(self.m)) as file:
            config = json.load(file)
        keys = config["resources"][0]["providers"][0]["aesgcm"]["keys"]
        keys[0]["secret"] = base64.b64encode(bytes(32)).decode()
        with open(config_file(self.m), "w") as file:
            json.dump(config, file)
        self.m.start("--disable-agent", ready=False)
        wait_api(self.m)
        wrong = self.m.kubectl("get", "secret", "a", check=False).err
        self.assertIn('unable to transform key "/registry/secrets/default/a": cipher: message authentication failed',
                      wrong)
        self.assertIn("keys in force cannot be had", self.m.kubectl(
            "create", "secret", "generic", "b", "--from-literal=a=b", check=False).err)
        self.assertIn("InternalError", self.m.kubectl("get", "secrets", check=False).err)
        self.m.kubectl("create", "configmap", "goes-on")
        self.m.kubectl("create", "deployment", "goes-on", "--image=none")
        wait_for("controllers", lambda: self.m.json("get", "replicasets")["items"])
        self.assertIn("encrypted with another token", encrypt(self.m, "status").out)
        self.m.stop()

        # The right file is enough to read with, and the right token for all.
        os.replace(self.m.dir + "/config", config_file(self.m))
        self.m.start("--disable-agent", ready=False)
        wait_api(self.m)
        self.assertEqual(password(self.m, "a"), PLAIN)
        make_secret(self.m, "b")

    def test_enabled_late_and_disabled_again(self):
        self.m = self.machine().start("--disable-agent", ready=False)
        wait_api(self.m)
        self.assertEqual(encrypt(self.m, "status").out, "Encryption Status: Disabled, no configuration file found\n")
        make_secret(self.m, "a")
        self.assertEqual(encrypt(self.m, "enable").out, "secrets-encryption enabled\n")
        wait_stage(self.m, "start")
        make_secret(self.m, "b")
        snapshot = self.save()
        # The running store's files may still hold what was there before, in places not yet used again. A store made
        # of a snapshot does not.
        self.assertEqual(found_in(self.restored(snapshot), PLAIN, CODED), [])
        self.assertEqual((password(self.m, "a"), password(self.m, "b")), (PLAIN, PLAIN))
        for args, says in [(["prepare"], "prepare completed successfully\n"), (["rotate"], "rotate completed successfully\n"),
                           (["reencrypt"], "reencryption started\n")]:
            self.assertEqual(encrypt(self.m, *args).out, says)
        wait_stage(self.m, FINISHED)
        encrypt(self.m, "disable")
        wait_stage(self.m, "start")
        self.assertIn("Encryption Status: Disabled\n", encrypt(self.m, "status").out)
        self.assertEqual(password(self.m, "a"), PLAIN)
        self.m.stop()
        self.assertNotEqual(found_in(self.m.data + "/server/db", CODED), [])


class ThreeServers(lab.ClusterCase):
    """Keys change on one; the others, one that was down and one that comes later have them."""

    servers, agents, flags = 3, 0, ("--secrets-encryption", "--disable-agent")
    time_limit = 300

    @classmethod
    def setUpClass(cls):
        cls.c = cls.cluster()
        cls.m = cls.c.first
        try:
            for server in cls.c.servers:
                server.start(ready=False)
                wait_api(server, 90)
        except BaseException:
            print(cls.c.explain(), file=sys.stderr)
            cls.c.down()
            raise

    def hold_the_same(self, servers):
        def texts():
            return {open(config_file(server)).read() for server in servers}
        wait_for("the same file everywhere", lambda: len(texts()) == 1)

    def test_1_all_read_what_any_wrote(self):
        a, b, c = self.c.servers
        make_secret(a, "of-a")
        make_secret(b, "of-b")
        for server in (a, b, c):
            self.assertEqual((password(server, "of-a"), password(server, "of-b")), (PLAIN, PLAIN))
        self.hold_the_same(self.c.servers)

    def test_2_one_that_was_down_catches_up(self):
        a, b, c = self.c.servers
        c.kill9()
        for _ in range(2):
            wait_for("keys to rotate", lambda: encrypt(b, "rotate-keys"), 30)
            wait_stage(a, FINISHED)
            make_secret(a, "late", PLAIN)
            self.assertEqual(password(b, "late"), PLAIN)
            a.kubectl("delete", "secret", "late")
        make_secret(a, "while-away")
        c.start(ready=False)
        wait_api(c)
        self.assertEqual((password(c, "of-a"), password(c, "while-away")), (PLAIN, PLAIN))
        make_secret(c, "of-c")
        self.assertEqual(password(a, "of-c"), PLAIN)
        self.hold_the_same(self.c.servers)
        self.assertEqual(status(c)["activekey"], status(a)["activekey"])

    def test_3_one_that_comes_later_joins(self):
        new = self.c.add_server().start(ready=False)
        wait_api(new, 90)
        self.assertEqual(password(new, "while-away"), PLAIN)
        self.assertEqual(os.stat(config_file(new)).st_mode & 0o777, 0o600)
        make_secret(new, "of-new")
        self.assertEqual(password(self.m, "of-new"), PLAIN)

    def test_4_a_new_token_seals_them_anew(self):
        a = self.m
        token = a.exec(BINARY, "token", "rotate", "--data-dir", a.data, "--new-token", "another-token-of-this-lab",
                       "--token", lab.cluster.TOKEN).out
        self.assertIn("another-token-of-this-lab", token)
        for server in self.c.servers:
            wait_for("the token", lambda: "another-token-of-this-lab" in open(server.data + "/server/token").read())
        wait_for("a new seal", lambda: any("sealed anew" in server.log() for server in self.c.servers))
        for server in self.c.servers:
            server.flags = [flag.replace(lab.cluster.TOKEN, "another-token-of-this-lab") for flag in server.flags]
        last = self.c.servers[-1]
        last.stop()
        os.remove(config_file(last))
        last.start(ready=False)
        wait_api(last)
        self.assertEqual(password(last, "of-a"), PLAIN)
        for server in self.c.servers:
            self.assertNotIn(PLAIN, server.log())
