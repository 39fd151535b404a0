"""Tokens that expire, are changed and are kept apart; certificates that are looked at and made anew."""

import os

import lab
from lab import BINARY, wait_for
from lab.cluster import TOKEN


class Tokens(lab.ClusterCase):
    servers, agents = 1, 0
    flags = ["--agent-token", "agents-only"]
    time_limit = 200
    names = 0

    def mussel(self, *args, check=True):
        return self.m.exec(BINARY, *args, check=check)

    def try_agent(self, token, says=None):
        """An agent with this token; waits until it is Ready, or for a word in its log."""
        machine = self.c.add_agent()
        self.c.agents.remove(machine)
        machine.flags = [f for f in machine.flags if f not in ("--token", TOKEN)]
        Tokens.names += 1
        try:
            # Each is another machine, and must have another name.
            machine.start("--token", token, "--node-name", f"joiner{Tokens.names}", ready=False)
            if says:
                wait_for(f"{says!r} in the log", lambda: says in machine.log(), 20)
            else:
                wait_for("the agent", lambda: "joined the cluster" in machine.log(), 20)
        finally:
            machine.down()

    def test_bootstrap_tokens(self):
        token = self.mussel("token", "create", "--description", "for the field", "--ttl", "1h").out.strip()
        self.assertRegex(token, r"^K10[0-9a-f]{64}::[a-z0-9]{6}\.[a-z0-9]{16}$")
        ident = token.split("::")[1].split(".")[0]
        listed = self.mussel("token", "list").out
        self.assertRegex(listed, rf"{ident} +\d+m .* signing,authentication +for the field")
        self.assertNotIn(token.split(".")[1], listed)
        self.try_agent(token)
        self.try_agent(token.split("::")[1])
        self.mussel("token", "delete", ident)
        self.assertNotIn(ident, self.mussel("token", "list").out)
        self.try_agent(token, says="unknown or has expired")
        again = self.mussel("token", "delete", ident, check=False)
        self.assertEqual(again.code, 1)
        self.assertIn("no token with the id", again.err)

    def test_a_token_expires(self):
        token = self.mussel("token", "create", "abcde1.0123456789abcdef", "--ttl", "1s").out.strip()
        wait_for("its end", lambda: "abcde1" not in self.mussel("token", "list").out, 30)
        self.try_agent(token, says="unknown or has expired")

    def test_wrong_tokens_are_not_made(self):
        for args, says in [(["short"], "<6>.<16>"), (["--groups", "system:masters"], "no group for bootstrap tokens"),
                           (["--ttl", "soon"], "not a time"), (["--usages", "all"], "no usage")]:
            done = self.mussel("token", "create", *args, check=False)
            self.assertIn(done.code, (1, 2), done)
            self.assertIn(says, done.err)

    def test_generate_asks_nobody(self):
        done = self.m.exec(BINARY, "token", "generate", env={"KUBECONFIG": "/nonexistent"})
        self.assertRegex(done.out, r"^[a-z0-9]{6}\.[a-z0-9]{16}\n$")

    def test_the_agents_token_is_for_agents(self):
        self.assertIn("::node:agents-only", open(self.m.data + "/server/agent-token").read())
        self.try_agent("agents-only")
        done = self.m.exec("curl", "-sS", "--cacert", self.m.data + "/server/tls/server-ca.crt", "-u", "node:agents-only",
                           "https://127.0.0.1:6443/v1-mussel/server-bootstrap")
        self.assertIn("not servers", done.out)
        server = self.c.add_server()
        self.c.servers.remove(server)
        try:
            done = server.exec(*server.command("--token", "agents-only"), check=False)
            self.assertEqual(done.code, 1)
            self.assertIn("the token is not this cluster's", done.err)
        finally:
            server.down()

    def test_z_the_token_is_changed(self):
        before = open(self.m.data + "/server/token").read().strip()
        done = self.mussel("token", "rotate", "--data-dir", self.m.data, "--new-token", "another-secret")
        self.assertIn("::server:another-secret", done.out)
        wait_for("the file", lambda: "::server:another-secret" in open(self.m.data + "/server/token").read())
        self.try_agent(before, says="the token is not this cluster's")
        self.try_agent(done.out.splitlines()[1].strip())
        self.try_agent("agents-only")


class Certificates(lab.ClusterCase):
    servers, agents = 1, 1
    time_limit = 200

    def check(self, machine, *args):
        return machine.exec(BINARY, "certificate", "check", "--data-dir", machine.data, *args).out

    def test_they_are_listed(self):
        table = self.check(self.m, "-o", "table")
        self.assertRegex(table, r"client-admin.crt +O=system:masters, CN=system:admin +ClientAuth +20.* 36[45] days +OK")
        self.assertRegex(table, r"server-ca.crt .* CertSign .* days +OK")
        self.assertRegex(self.m.curl("/metrics")[1],
                         r'mussel_certificate_expiration_seconds{subject="O=system:masters, CN=system:admin",usage="ClientAuth"} 3\d{7}')
        only = self.check(self.c.agents[0], "-o", "table", "--service", "kubelet")
        self.assertEqual(len(only.splitlines()), 3, only)
        self.assertIn("CN=system:node:agent1", only)

    def test_they_are_made_anew(self):
        running = self.m.exec(BINARY, "certificate", "rotate", *self.m.local(), check=False)
        self.assertEqual(running.code, 1)
        self.assertIn("stop the service first", running.err)
        agent = self.c.agents[0]
        before = open(agent.data + "/agent/client-kubelet.crt").read()
        key = open(agent.data + "/agent/client-kubelet.key").read()
        agent.stop()
        done = agent.exec(BINARY, "certificate", "rotate", *agent.local())
        self.assertIn("made anew at the next start", done.out)
        self.assertFalse(os.path.exists(agent.data + "/agent/client-kubelet.crt"))
        agent.start(ready=False)
        wait_for("the new certificate", lambda: os.path.exists(agent.data + "/agent/client-kubelet.crt"))
        self.assertNotEqual(open(agent.data + "/agent/client-kubelet.crt").read(), before)
        self.assertEqual(open(agent.data + "/agent/client-kubelet.key").read(), key)
        self.c.wait_node(agent)

    def test_a_new_san_is_in_the_certificate_after_a_restart(self):
        self.m.stop()
        self.m.start("--tls-san", "edge.example")
        self.m.exec("curl", "-sS", "-m", "5", "--resolve", "edge.example:6443:127.0.0.1", "--cacert",
                    self.m.data + "/server/tls/server-ca.crt", "https://edge.example:6443/ping")

    def test_z_authorities_are_replaced(self):
        tls, new = self.m.data + "/server/tls", self.m.dir + "/new"
        self.m.sh(f"""
            mkdir -p {new}; cd {new}
            for ca in server client; do
                openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt > $ca-ca.key
                openssl req -new -key $ca-ca.key -subj /CN=new-$ca-ca -out $ca.csr
                printf 'basicConstraints=critical,CA:TRUE\\nkeyUsage=critical,keyCertSign,digitalSignature\\n' > ext
                openssl x509 -req -in $ca.csr -CA {tls}/$ca-ca.crt -CAkey {tls}/$ca-ca.key -days 300 -extfile ext \\
                    -set_serial 4711 -out $ca-ca.crt 2>/dev/null
                cat {tls}/$ca-ca.crt >> $ca-ca.crt
            done
            rm -f *.csr ext""")
        stranger = self.m.dir + "/stranger"
        self.m.sh(f"""
            mkdir -p {stranger}; cd {stranger}
            openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt > server-ca.key
            openssl req -x509 -new -key server-ca.key -subj /CN=x -days 900 -out server-ca.crt""")
        rotate = [BINARY, "certificate", "rotate-ca", "--data-dir", self.m.data, "--path"]
        done = self.m.exec(*rotate, stranger, check=False)
        self.assertEqual(done.code, 1)
        self.assertIn("another root", done.err)
        self.m.exec(*rotate, new)
        wait_for("the files", lambda: open(tls + "/server-ca.crt").read() == open(new + "/server-ca.crt").read())
        agent = self.c.agents[0]
        self.m.stop()
        self.m.start(ready=False)
        agent.stop()
        agent.start(ready=False)
        wait_for("the API", lambda: "agent1" in self.m.out("get", "nodes"))
        wait_for("a certificate of the new CA", lambda: "new-client-ca" in agent.sh(
            f"openssl x509 -noout -issuer -in {agent.data}/agent/client-kubelet.crt"), 40)
        self.c.wait_node(agent)
        self.c.pod_on(agent, "after")
        self.assertEqual(self.m.out("exec", "after", "--", "hostname"), "after")
        wait_for("a word on the new CA's short life", lambda: "CACertificateExpirationWarning" in self.m.out(
            "get", "events", "-A", "--field-selector", "involvedObject.kind=Node,involvedObject.name=server1"))


class OwnAuthorities(lab.Case):
    """CAs that were put into place before the first start."""

    shared = False

    def test_an_intermediate_signs_and_the_root_is_trusted(self):
        self.m = lab.Machine(archives=[], flags=["--disable-agent"])
        tls = self.m.data + "/server/tls"
        self.m.sh(f"""
            mkdir -p {tls}; cd {tls}
            key() {{ openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt; }}
            printf 'basicConstraints=critical,CA:TRUE\\nkeyUsage=critical,keyCertSign,digitalSignature\\n' > ext
            key > root.key
            openssl req -x509 -new -key root.key -subj /CN=own-root -days 900 -out root.pem
            key > server-ca.key
            openssl req -new -key server-ca.key -subj /CN=own-server-ca -out csr
            openssl x509 -req -in csr -CA root.pem -CAkey root.key -days 900 -extfile ext -set_serial 7 \\
                -out server-ca.crt 2>/dev/null
            cat root.pem >> server-ca.crt
            mv root.pem root.key {self.m.dir}/; rm csr ext""")
        self.m.start(ready=False)
        wait_for("the API", lambda: os.path.exists(self.m.kubeconfig) and self.m.kubectl("get", "namespace", "default"))
        self.m.exec("curl", "-sS", "-m", "5", "--cacert", self.m.dir + "/root.pem", "https://127.0.0.1:6443/ping")
        root = self.m.sh(f"openssl x509 -in {self.m.dir}/root.pem -outform DER | sha256sum").split()[0]
        self.assertTrue(open(self.m.data + "/server/token").read().startswith("K10" + root))
