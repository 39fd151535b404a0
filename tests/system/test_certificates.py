"""Certificates by way of the API: what is approved and by whom, what is signed or not, and what it is good for."""

import base64
import json
import os

import lab
from lab import wait_for

API_CLIENT, KUBELET, SERVING = (
    "kubernetes.io/" + name for name in ["kube-apiserver-client", "kube-apiserver-client-kubelet", "kubelet-serving"])


class Requests(lab.Case):
    def file(self, name):
        return os.path.join(self.m.dir, name)

    def ask(self, name, subject, signer=API_CLIENT, usages=("client auth",), names=None, user=None, check=True, **spec):
        """Makes a key and a request for it, and sends that."""
        more = f"-addext subjectAltName={names}" if names else ""
        self.m.sh(f"cd {self.m.dir}; openssl ecparam -name prime256v1 -genkey -noout -out {name}.key\n"
                  f"openssl req -new -key {name}.key -subj {subject} {more} -out {name}.csr")
        with open(self.file(f"{name}.csr"), "rb") as file:
            request = base64.b64encode(file.read()).decode()
        body = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
                "spec": {"request": request, "signerName": signer, "usages": list(usages), **spec}}
        groups = ["--as-group", "system:nodes", "--as-group", "system:authenticated"]
        flags = ["--as", user, *groups] if user else []
        return self.m.kubectl("create", *flags, "-f", "-", input=json.dumps(body), check=check)

    def status(self, name):
        return self.m.json("get", "csr", name).get("status", {})

    def condition(self, name, kind):
        return next((c for c in self.status(name).get("conditions", []) if c["type"] == kind), None)

    def signed(self, name):
        """The certificate, in a file, and what openssl says of it."""
        text = wait_for(f"the certificate {name}", lambda: self.status(name).get("certificate"), 20)
        with open(self.file(f"{name}.crt"), "wb") as file:
            file.write(base64.b64decode(text))
        return self.m.sh(f"openssl x509 -in {self.file(name)}.crt -noout -text")

    def test_a_user_gets_a_certificate_and_uses_it(self):
        self.ask("jane", "/O=dev/O=ops/CN=jane", expirationSeconds=3600)
        self.assertRegex(self.m.out("get", "csr", "jane"), r"kube-apiserver-client +system:admin +60m +Pending")
        self.m.kubectl("certificate", "approve", "jane")
        text = self.signed("jane")
        self.assertRegex(text, r"Subject: O ?= ?dev, O ?= ?ops, CN ?= ?jane")
        self.assertIn("TLS Web Client Authentication", text)
        self.assertIn("CA:FALSE", text)
        self.m.sh(f"cd {self.m.dir}; openssl x509 -in jane.crt -noout -checkend 3000; ! openssl x509 -in jane.crt -noout -checkend 3700")
        self.assertIn("Approved,Issued", self.m.out("get", "csr", "jane"))
        flags = ["--client-certificate", self.file("jane.crt"), "--client-key", self.file("jane.key")]
        bare = self.file("bare.yaml")
        self.m.sh(f"grep -v client- {self.m.kubeconfig} > {bare}")
        who = json.loads(self.m.kubectl("--kubeconfig", bare, *flags, "auth", "whoami", "-o", "json").out)
        self.assertEqual(who["status"]["userInfo"]["username"], "jane")
        self.assertEqual(set(who["status"]["userInfo"]["groups"]), {"dev", "ops", "system:authenticated"})
        refused = self.m.kubectl("--kubeconfig", bare, *flags, "get", "pods", check=False)
        self.assertIn('User "jane" cannot list resource "pods"', refused.err)

    def test_what_is_denied_or_asks_too_much_is_not_signed(self):
        self.ask("denied", "/CN=denied")
        self.m.kubectl("certificate", "deny", "denied")
        self.ask("greedy", "/CN=greedy", usages=["client auth", "server auth"])
        self.m.kubectl("certificate", "approve", "greedy")
        failed = wait_for("the refusal", lambda: self.condition("greedy", "Failed"), 20)
        self.assertEqual((failed["reason"], failed["message"]),
                         ("SignerValidationFailure", "invalid usage for client certificate: server auth"))
        self.assertNotIn("certificate", self.status("denied"))
        both = [{"type": kind, "status": "True", "reason": "Test"} for kind in ["Denied", "Approved"]]
        done = self.m.kubectl("patch", "csr", "denied", "--subresource=approval", "--type=merge", "-p",
                              json.dumps({"status": {"conditions": both}}), check=False)
        self.assertIn("mutually exclusive", done.err)

    def test_nobody_makes_himself_an_administrator(self):
        done = self.ask("root", "/O=system:masters/CN=root", check=False)
        self.assertIn("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed", done.err)
        self.assertEqual(self.m.kubectl("get", "csr", "root", check=False).code, 1)

    def test_what_is_no_request_is_refused(self):
        body = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "wrong"},
                "spec": {"request": base64.b64encode(b"hello").decode(), "signerName": "kubernetes.io/legacy-unknown",
                         "usages": ["flying"]}}
        done = self.m.kubectl("create", "-f", "-", input=json.dumps(body), check=False)
        for part in ["spec.request: Invalid value", "the legacy signerName is not allowed via this API version",
                     'spec.usages[0]: Unsupported value: "flying"']:
            self.assertIn(part, done.err)

    def test_signing_takes_the_right_to(self):
        self.ask("theirs", "/CN=theirs", signer="example.com/own")
        self.m.kubectl("create", "clusterrole", "updater", "--verb=get,update,patch", "--resource=certificatesigningrequests/status")
        self.m.kubectl("create", "clusterrolebinding", "updater", "--clusterrole=updater", "--user=signer")
        pem = base64.b64encode(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").decode()
        patch = ["patch", "csr", "theirs", "--subresource=status", "--type=merge", "-p",
                 json.dumps({"status": {"certificate": pem}}), "--as=signer"]
        done = self.m.kubectl(*patch, check=False)
        self.assertIn('user not permitted to sign requests with signerName "example.com/own"', done.err)
        self.m.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "signer"},
                      "rules": [{"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": ["sign"],
                                 "resourceNames": ["example.com/*"]}]})
        self.m.kubectl("create", "clusterrolebinding", "signer", "--clusterrole=signer", "--user=signer")
        wait_for("the right", lambda: self.m.kubectl(*patch, check=False).code == 0, 10)
        self.assertEqual(self.status("theirs")["certificate"], pem)

    def test_kubelets_are_approved_where_the_cluster_says_so(self):
        self.m.kubectl("create", "clusterrolebinding", "nodes-renew", "--group=system:nodes",
                       "--clusterrole=system:certificates.k8s.io:certificatesigningrequests:selfnodeclient")
        usages, subject = ["client auth", "digital signature"], "/O=system:nodes/CN=system:node:far"
        self.ask("far", subject, KUBELET, usages, user="system:node:far")
        self.assertIn("CN", self.signed("far"))
        self.assertEqual(self.condition("far", "Approved")["reason"], "AutoApproved")
        # Somebody else's name, and a certificate that is no client's, wait for people.
        self.ask("other", subject, KUBELET, usages, user="system:node:near")
        self.ask("serving", subject, SERVING, ["server auth", "digital signature"], "DNS:far", user="system:node:far")
        self.ask("again", subject, KUBELET, usages, user="system:node:far")
        self.signed("again")
        self.assertEqual((self.status("other"), self.status("serving")), ({}, {}))
        self.m.kubectl("certificate", "approve", "serving")
        self.assertIn("DNS:far", self.signed("serving"))
