"""The manifests' folder: applied at start and on change, pruned, and skipped on request."""

import os

import lab
from lab import wait_for


def config_map(name, value="1"):
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: default}}\ndata: {{key: '{value}'}}\n"


class Manifests(lab.Case):
    @classmethod
    def machine(cls):
        machine = lab.Machine(archives=[], flags=["--disable-agent"])
        cls.folder = machine.data + "/server/manifests"
        os.makedirs(cls.folder)
        cls.put("early.yaml", config_map("early") + "---\n" + config_map("extra"))
        cls.put("skipped.yaml", config_map("skipped"))
        cls.put("skipped.yaml.skip", "")
        cls.put("broken.yaml", "a: [")
        return machine

    @classmethod
    def setUpClass(cls):
        cls.m = cls.machine()
        cls.m.start(ready=False)
        wait_for("the API", lambda: os.path.exists(cls.m.kubeconfig) and cls.m.kubectl("get", "namespace", "default"))

    @classmethod
    def put(cls, name, text):
        with open(f"{cls.folder}/{name}", "w") as file:
            file.write(text)

    def value(self, name):
        return self.m.out("get", "configmap", name, "--ignore-not-found", "-o", "jsonpath={.data.key}")

    def test_at_start_on_change_and_pruned(self):
        wait_for("both", lambda: self.value("early") == "1" and self.value("extra") == "1")
        self.put("early.yaml", config_map("early", "2"))
        wait_for("the change", lambda: self.value("early") == "2")
        wait_for("the removal", lambda: self.value("extra") == "")

    def test_a_new_file(self):
        self.put("new.yaml", config_map("new"))
        wait_for("it", lambda: self.value("new") == "1")

    def test_skipped_and_broken(self):
        wait_for("the others", lambda: self.value("early"))
        self.assertEqual(self.value("skipped"), "")
        self.assertIn("broken.yaml", self.m.log())
