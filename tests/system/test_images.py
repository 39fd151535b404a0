"""Where images come from: the archives' folder, `mussel ctr images`, and registries."""

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

    def test_pull_by_tag_and_digest_from_a_plain_mirror(self):
        self.m = lab.Machine(archives=[])
        with open(self.m.dir + "/registry.yml", "w") as file:
            file.write(f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {self.m.dir}/blobs}}}}\n"
                       "http: {addr: '192.168.77.1:5000'}\n")
        with open(self.m.dir + "/registries.yaml", "w") as file:
            file.write("mirrors:\n  apps.example:\n    endpoint: ['http://192.168.77.1:5000']\n"
                       "  '192.168.77.1:5000':\n    endpoint: ['http://192.168.77.1:5000']\n")
        self.m.spawn("docker-registry", "serve", self.m.dir + "/registry.yml", outside=True,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("the registry", lambda: self.m.exec("curl", "-sf", "http://192.168.77.1:5000/v2/"), 15)
        digest = self.m.exec(sys.executable, lab.TESTS + "/images/build.py", self.m.dir, "--push",
                             "192.168.77.1:5000", timeout=60).out.strip()
        self.m.start("--private-registry", self.m.dir + "/registries.yaml")
        self.m.run_pod("tag", container={"image": "apps.example/busybox:pulled"})
        self.m.run_pod("digest", container={"image": f"apps.example/busybox@{digest}"})
        self.assertIn(digest, self.m.pod("tag")["status"]["containerStatuses"][0]["imageID"])
        self.m.run_pod("missing", container={"image": "192.168.77.1:5000/nothing:1"}, wait=False)
        wait_for("back-off", lambda: "ImagePullBackOff" in self.m.out("get", "pod", "missing"))
