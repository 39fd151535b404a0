"""Bad input: the code, reason and message that upstream gives, and nothing stored."""

import json

import lab


def pod(name="bad", **container):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "a", "image": "x", **container}]}}


class BadInput(lab.Case):
    @classmethod
    def machine(cls):
        return lab.Machine(archives=[])

    def post(self, body, path="/api/v1/namespaces/default/pods", kind="application/json", method="POST"):
        body = body if isinstance(body, (str, bytes)) else json.dumps(body)
        code, text = self.m.curl(path, method=method, body=body, kind=kind)
        return code, json.loads(text)

    def refused(self, answer, code, reason, *texts):
        self.assertEqual((answer[0], answer[1].get("reason")), (code, reason), answer)
        self.assertEqual((answer[1]["kind"], answer[1]["status"], answer[1]["code"]), ("Status", "Failure", code))
        for text in texts:
            self.assertIn(text, answer[1]["message"])
        self.assertEqual(self.m.curl("/api/v1/namespaces/default/pods/bad")[0], 404)

    def test_invalid_fields(self):
        self.refused(self.post(pod(ports=[{"containerPort": -1}])), 422, "Invalid",
                     'Pod "bad" is invalid: spec.containers[0].ports[0].containerPort: Invalid value: -1: '
                     "must be between 1 and 65535, inclusive")
        twice = pod()
        twice["spec"]["containers"] *= 2
        self.refused(self.post(twice), 422, "Invalid", 'spec.containers[1].name: Duplicate value: "a"')
        self.refused(self.post(pod(image="")), 422, "Invalid", "spec.containers[0].image: Required value")
        answer = self.post(pod("n" * 300))
        self.refused(answer, 422, "Invalid", "metadata.name: Invalid value", "must be no more than 253")
        self.assertEqual(answer[1]["details"]["causes"][0]["field"], "metadata.name")

    def test_unknown_fields(self):
        self.refused(self.post(pod(nope=1), "/api/v1/namespaces/default/pods?fieldValidation=Strict"), 400,
                     "BadRequest", 'strict decoding error: unknown field "spec.containers[0].nope"')
        body = self.m.dir + "/warn.json"
        with open(body, "w") as file:
            json.dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "warned"}, "nope": 1}, file)
        status, text = self.m.curl("/api/v1/namespaces/default/configmaps?fieldValidation=Warn", "-D", "-",
                                   method="POST", body=open(body).read())
        self.assertEqual(status, 201)
        self.assertIn('unknown field "nope"', text.replace('\\"', '"'))

    def test_bodies(self):
        self.refused(self.post('{"kind":'), 400, "BadRequest")
        self.refused(self.post("a: [", kind="application/yaml"), 400, "BadRequest")
        self.refused(self.post("x" * (10 << 20)), 413, "RequestEntityTooLarge")
        self.refused(self.post("{}", kind="text/nonsense"), 415, "UnsupportedMediaType")

    def test_resource_version(self):
        self.m.kubectl("create", "configmap", "contested", "--from-literal=a=1")
        path = "/api/v1/namespaces/default/configmaps/contested"
        stale = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "contested", "resourceVersion": "1"}}
        self.refused(self.post(stale, path, method="PUT"), 409, "Conflict", "the object has been modified")
        self.assertEqual(self.m.json("get", "configmap", "contested")["data"], {"a": "1"})

    def test_already_there_and_not_there(self):
        self.m.kubectl("create", "configmap", "once")
        again = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "once"}}
        self.refused(self.post(again, "/api/v1/namespaces/default/configmaps"), 409, "AlreadyExists",
                     'configmaps "once" already exists')
        self.refused(self.post(pod(), "/api/v1/namespaces/nowhere/pods"), 404, "NotFound",
                     'namespaces "nowhere" not found')

    def test_dry_run_stores_nothing(self):
        code, _ = self.post(pod(), "/api/v1/namespaces/default/pods?dryRun=All")
        self.assertEqual(code, 201)
        self.assertEqual(self.m.curl("/api/v1/namespaces/default/pods/bad")[0], 404)
