"""Where images come from: the archives' folder, `mussel ctr images`, and registries."""

import json
import os
import shutil
import subprocess
import sys

import lab
from lab import BINARY, BUSYBOX, WEB, WEB2, wait_for


class Archives(lab.Case):
    @classmethod
    def machine(cls):
        cls.archive = {name.split(".")[0]: os.path.join(lab.images(), name) for name in os.listdir(lab.images())}
        machine = lab.Machine(archives=[cls.archive["busybox"]])
        cls.folder = machine.data + "/agent/images"
        with open(cls.archive["busybox"], "rb") as whole, open(cls.folder + "/cut.tar", "wb") as cut:
            cut.write(whole.read(300000))
        with open(cls.folder + "/poem.tar.gz", "w") as poem:
            poem.write("not an image\n")
        return machine

    def ctr(self, *args, check=True):
        return self.m.exec(BINARY, "ctr", *self.m.local(), "images", *args, check=check)

    def names(self):
        return self.ctr("ls", "-q").out.split()

    def test_bad_archives_are_told_and_the_rest_is_there(self):
        self.assertIn(BUSYBOX, self.names())
        for name in ("cut.tar", "poem.tar.gz"):
            wait_for("an event", lambda: name in self.m.out("get", "events", "--field-selector", "reason=ImageImportFailed"))
            self.assertIn(name, self.m.log())

    def test_a_later_archive_is_imported(self):
        self.assertNotIn(WEB, self.names())
        shutil.copy(self.archive["web"], self.folder + "/late.tar.gz")
        wait_for("the image", lambda: WEB in self.names())
        self.m.run_pod("late", container={"image": WEB, "command": ["/web"]})

    def test_by_hand(self):
        self.assertIn(WEB2, self.ctr("import", self.archive["web2"]).out + " ".join(self.names()))
        self.assertIn(WEB2, self.names())
        self.assertIn(WEB2, self.ctr("ls").out)
        self.ctr("rm", WEB2)
        self.assertNotIn(WEB2, self.names())
        self.assertNotEqual(self.ctr("import", self.folder + "/poem.tar.gz", check=False).code, 0)

    def test_the_socket_is_there(self):
        self.assertTrue(os.path.exists(self.m.run_dir + "/mussel.sock"))


class Registry(lab.Case):
    shared = False
    user, password = "puller", "let me: in"
    # That password, by `htpasswd -B`.
    htpasswd = "puller:$2y$05$T/eSLEY49CZPjJUpWQz/b.1SA9YieTjlKeSiCahWm1XsICd3W8FzG"
    host = "192.168.77.1"

    def setUp(self):
        super().setUp()
        self.m = lab.Machine(archives=[])

    def serve(self, port, closed=False):
        """A registry outside of the machine. All have the same images; a closed one wants to know who asks."""
        settings = (f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {self.m.dir}/blobs}}}}\n"
                    f"http: {{addr: '{self.host}:{port}'}}\n")
        if closed:
            with open(self.m.dir + "/htpasswd", "w") as file:
                file.write(self.htpasswd + "\n")
            settings += f"auth: {{htpasswd: {{realm: lab, path: {self.m.dir}/htpasswd}}}}\n"
        with open(f"{self.m.dir}/registry-{port}.yml", "w") as file:
            file.write(settings)
        self.m.spawn("docker-registry", "serve", f"{self.m.dir}/registry-{port}.yml", outside=True,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("the registry", lambda: self.m.exec(
            "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{self.host}:{port}/v2/").out in ("200", "401"), 15)

    def push(self):
        return self.m.exec(sys.executable, lab.TESTS + "/images/build.py", self.m.dir, "--push", self.host + ":5000",
                           timeout=60).out.strip()

    def start(self, registries):
        with open(self.m.dir + "/registries.yaml", "w") as file:
            json.dump(registries, file)
        self.m.start("--private-registry", self.m.dir + "/registries.yaml")

    def waits(self, name, *texts):
        def state():
            statuses = self.m.pod(name)["status"].get("containerStatuses") or [{}]
            waiting = statuses[0].get("state", {}).get("waiting", {})
            return waiting.get("reason") == "ImagePullBackOff" and waiting
        message = wait_for("back-off", state)["message"]
        for text in texts:
            self.assertIn(text, message)

    def test_pull_by_tag_and_digest_from_a_plain_mirror(self):
        self.serve(5000)
        digest = self.push()
        plain = {"endpoint": [f"http://{self.host}:5000"]}
        self.start({"mirrors": {"apps.example": plain, self.host + ":5000": plain}})
        self.m.run_pod("tag", container={"image": "apps.example/busybox:pulled"})
        self.m.run_pod("digest", container={"image": f"apps.example/busybox@{digest}"})
        self.assertIn(digest, self.m.pod("tag")["status"]["containerStatuses"][0]["imageID"])
        self.m.run_pod("missing", container={"image": self.host + ":5000/nothing:1"}, wait=False)
        self.waits("missing", "not found")

    def test_credentials(self):
        self.serve(5000)
        self.push()
        self.serve(5001, closed=True)
        self.serve(5002, closed=True)
        self.start({
            "mirrors": {
                "private.example": {"endpoint": [f"http://{self.host}:5001"]},
                "known.example": {"endpoint": [f"http://{self.host}:5002"]},
                self.host + ":5001": {"endpoint": [f"http://{self.host}:5001"]},
            },
            # k3s' way: the node knows the password, pods need none.
            "configs": {self.host + ":5002": {"auth": {"username": self.user, "password": self.password}}},
        })
        always = {"imagePullPolicy": "Always"}
        self.m.run_pod("by-node", container={"image": "known.example/busybox:pulled", **always})
        private = {"image": self.host + ":5001/busybox:pulled", **always}
        self.m.run_pod("stranger", container=private, wait=False)
        self.waits("stranger", "pull access denied", "authorization failed")
        for name, password in [("right", self.password), ("wrong", "nonsense")]:
            self.m.kubectl("create", "secret", "docker-registry", name, f"--docker-server={self.host}:5001",
                           f"--docker-username={self.user}", f"--docker-password={password}")
        self.m.run_pod("by-secret", container=private, spec={"imagePullSecrets": [{"name": "right"}]})
        # The first that is right counts, as with upstream.
        self.m.run_pod("by-second-secret", container=private,
                       spec={"imagePullSecrets": [{"name": "wrong"}, {"name": "right"}]})
        self.m.run_pod("by-wrong-secret", container=private, spec={"imagePullSecrets": [{"name": "wrong"}]}, wait=False)
        self.waits("by-wrong-secret", "pull access denied")
        self.m.kubectl("create", "serviceaccount", "builder")
        self.m.kubectl("patch", "serviceaccount", "builder", "-p", '{"imagePullSecrets":[{"name":"right"}]}')
        self.m.run_pod("by-account", container=private, spec={"serviceAccountName": "builder"})
        for text in (self.password, "nonsense"):
            self.assertNotIn(text, self.m.log())

    def test_a_name_that_is_none(self):
        self.start({})
        self.m.run_pod("named", container={"image": "mussel.test/UPPER case:1"}, wait=False)
        def told():
            statuses = self.m.pod("named")["status"].get("containerStatuses") or [{}]
            return statuses[0].get("state", {}).get("waiting", {}).get("reason") == "InvalidImageName"
        wait_for("the reason", told)
        self.assertIn("Failed to apply default image tag",
                      self.m.out("get", "events", "--field-selector", "reason=InspectFailed"))
