"""Agents join: with what they should have, and not without; they outlive servers, and servers reach them unasked."""

import json
import os
import sys

import lab
from lab import BINARY, Cluster, Network, wait_for
from lab.cluster import TOKEN


# Answers every request with a CA, under its own certificate, and writes down what it was asked.
IMPOSTOR = """
import http.server, ssl, sys, time
dir_, ca, days, port = sys.argv[1], open(sys.argv[2]).read(), int(sys.argv[3]), int(sys.argv[4])
asked = open(dir_ + "/asked", "a")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.command, self.path, file=asked, flush=True)
        self.send_response(200)
        self.send_header("Content-Length", str(len(ca)))
        self.end_headers()
        self.wfile.write(ca.encode())
    do_POST = do_GET
    def date_time_string(self, timestamp=None):
        return super().date_time_string(time.time() + days * 86400)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(dir_ + "/crt", dir_ + "/key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


class Agents(lab.ClusterCase):
    """One agent on the servers' link, and one at a site behind a translation of addresses."""

    @classmethod
    def cluster(cls):
        network = Network()
        site = network.site(network.link())
        return Cluster(1, [network.links[0], site], network=network)

    def test_an_agent_runs_pods_and_is_reached(self):
        agent = self.c.agents[0]
        self.c.pod_on(agent, "near")
        self.assertEqual(self.m.out("exec", "near", "--", "hostname"), "near")
        self.assertEqual(self.c.node(agent)["metadata"]["labels"]["kubernetes.io/hostname"], agent.name)

    def test_an_agent_that_nobody_can_reach_is_reached(self):
        agent = self.c.agents[1]
        done = self.m.exec("curl", "-sk", "-m", "3", f"https://{agent.ip}:10250/healthz", check=False)
        self.assertNotEqual(done.code, 0, "the lab must not let the server in")
        self.c.pod_on(agent, "hidden", script="echo spoken; sleep 1000000")
        wait_for("its log", lambda: self.m.out("logs", "hidden") == "spoken")
        self.assertEqual(self.m.out("exec", "hidden", "--", "hostname"), "hidden")
        self.assertIn("kubelet", self.m.out("get", "--raw", f"/api/v1/nodes/{agent.name}/proxy/metrics"))

    def test_the_agents_port_leads_to_the_api(self):
        agent = self.c.agents[0]
        kubeconfig = agent.data + "/agent/kubelet.kubeconfig"
        self.assertIn(agent.name, agent.out("--kubeconfig", kubeconfig, "get", "node", agent.name))
        others = agent.kubectl("--kubeconfig", kubeconfig, "get", "secrets", "-A", check=False)
        self.assertIn("Forbidden", others.err)
        kept = json.load(open(agent.data + "/agent/etc/mussel-agent-load-balancer.json"))
        self.assertEqual(kept["server_addresses"], [self.m.ip + ":6443"])

    def test_files_with_secrets_are_private(self):
        agent = self.c.agents[0]
        for name in ("client-kubelet.key", "serving-kubelet.key", "client-kube-proxy.key", "kubelet.kubeconfig"):
            self.assertEqual(agent.sh(f"stat -c %a {agent.data}/agent/{name}").strip(), "600", name)
        self.assertEqual(agent.sh("stat -c %a /etc/mussel/node/password").strip(), "600")
        for machine in self.c.machines:
            self.assertNotIn(TOKEN, machine.log())


class Refused(lab.ClusterCase):
    """A machine that must not get in: it says why, tries on, and has nothing of the cluster."""

    servers, agents = 1, 1
    impostors = 0

    def try_agent(self, *flags, says, name="stranger", written=False, before=None, env=None):
        machine = self.c.add_agent()
        machine.env.update(env or {})
        self.c.agents.remove(machine)
        machine.name = name
        try:
            if before:
                before(machine)
            machine.flags = [f for f in machine.flags if f not in ("--token", TOKEN)]
            machine.start("--node-name", name, *flags, ready=False)
            wait_for(f"{says!r} in the log", lambda: says in machine.log(), 20)
            self.assertTrue(machine.running(), machine.log_tail())
            for path in ("agent/client-kubelet.crt", "agent/server-ca.crt", "agent/client-kubelet.key"):
                self.assertFalse(os.path.exists(f"{machine.data}/{path}"), path)
            if not written:
                self.assertEqual(machine.sh("ls /etc/mussel/node 2>/dev/null || true"), "")
            self.assertNotIn("panicked", machine.log())
            return machine.log()
        finally:
            machine.down()

    def test_a_wrong_token(self):
        self.try_agent("--token", "wrong", says="the token is not this cluster's")

    def test_no_token(self):
        self.try_agent(says="give --token")

    def test_a_token_of_another_cluster(self):
        self.try_agent("--token", "K10" + "0" * 64 + "::server:" + TOKEN, says="is not the one that the token names")

    def test_an_unknown_bootstrap_token(self):
        self.try_agent("--token", "abcdef.0123456789abcdef", says="unknown or has expired")

    def test_a_taken_name(self):
        log = self.try_agent("--token", TOKEN, says="another machine has the name", name="agent1", written=True)
        self.assertIn("kubectl delete node agent1", log)
        self.assertEqual(self.c.ready(self.c.agents[0]), "True")

    def test_a_servers_name(self):
        self.try_agent("--token", TOKEN, says="another machine has the name", name="server1", written=True)
        self.try_agent("--token", TOKEN, says="it is the servers'", name="kubernetes", written=True)

    def test_a_clock_a_day_off(self):
        asked = self.impostor("/cacerts with the cluster's own CA, a day ago", days=-1,
                              ca=self.m.data + "/server/tls/server-ca.crt", says="ahead of the server's by 24 h")
        self.assertEqual(asked, {"GET /cacerts"})

    def test_somebody_in_between_learns_nothing(self):
        asked = self.impostor("another CA", says="is not the one that the token names")
        self.assertEqual(asked, {"GET /cacerts"})

    def test_somebody_in_between_with_the_right_ca(self):
        asked = self.impostor("the cluster's CA, without its key", ca=self.m.data + "/server/tls/server-ca.crt",
                              says="not of the cluster's CA")
        self.assertEqual(asked, {"GET /cacerts"})

    def impostor(self, what, says, days=0, ca=None):
        """An agent with the right token is led to somebody else; what that one was asked."""
        del what
        Refused.impostors += 1
        dir_, port = f"{self.m.dir}/impostor{Refused.impostors}", 9443 + Refused.impostors
        self.m.sh(f"""
            mkdir -p {dir_}; cd {dir_}
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out crt -days 9 \\
                -subj /CN=kubernetes -addext subjectAltName=DNS:kubernetes 2>/dev/null""")
        # It ends with the machine.
        self.m.spawn(sys.executable, "-c", IMPOSTOR, dir_, ca or dir_ + "/crt", days, port)
        wait_for("the impostor", lambda: self.m.exec("curl", "-sk", f"https://127.0.0.1:{port}/up"))
        token = open(self.m.data + "/server/token").read().strip()
        self.try_agent("--token", token, "--server", f"https://{self.m.ip}:{port}", says=says)
        return set(open(dir_ + "/asked").read().splitlines()) - {"GET /up"}

    def test_nobody_there(self):
        self.try_agent("--token", TOKEN, "--server", "https://192.168.101.250:6443", says="no server can be reached")

    def test_wrong_use(self):
        agent = self.c.agents[0]
        url = ["--server", "https://x:6443"]
        for flags, says in [(["--server", "http://x:6443"], "https://"), (["--server", "https://x/y"], "https://"),
                            ([*url, "--token", "K10x::y"], "parts do not fit"), ([], "--server"),
                            ([*url, "--lb-server-port", "6444"], "is taken by another program")]:
            done = agent.exec(BINARY, "agent", *agent.local(), "--lb-server-port", "7777", *flags, check=False)
            self.assertIn(done.code, (1, 2), done)
            self.assertIn(says, done.err)

    def test_another_nodes_certificate(self):
        agent = self.c.agents[0]
        agent.sh(f"cd {agent.dir} && openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout x.key "
                 "-subj /CN=x -outform DER -out x.csr 2>/dev/null")
        curl = ["curl", "-sS", "-m", "10", "--cacert", agent.data + "/agent/server-ca.crt", "--cert",
                agent.data + "/agent/client-kubelet.crt", "--key", agent.data + "/agent/client-kubelet.key",
                "--data-binary", f"@{agent.dir}/x.csr", "-H", "mussel-node-password: 0123456789abcdef"]
        url = f"https://{self.m.ip}:6443/v1-mussel/client-kubelet.crt"
        done = agent.exec(*curl, "-H", "mussel-node-name: server1", url)
        self.assertIn("may not have certificates of node", done.out)
        done = agent.exec(*curl, "-H", "mussel-node-name: agent1", url)
        self.assertIn("another machine has the name", done.out)
        done = agent.exec("curl", "-sS", "-m", "10", "--cacert", agent.data + "/agent/server-ca.crt", "--cert",
                          agent.data + "/agent/client-kubelet.crt", "--key", agent.data + "/agent/client-kubelet.key",
                          f"https://{self.m.ip}:6443/v1-mussel/server-bootstrap")
        self.assertIn("Forbidden", done.out)

    def test_versions_too_far_apart(self):
        for version, says in [("v1.37.0+mussel.1", "newer than the server's"), ("v1.32.9", "too old")]:
            done = self.m.exec("curl", "-sS", "-m", "10", "--cacert", self.m.data + "/server/tls/server-ca.crt", "-u",
                               "node:" + TOKEN, "-H", "mussel-version: " + version,
                               "https://127.0.0.1:6443/v1-mussel/config")
            self.assertIn(says, done.out)
            self.assertIn("VersionSkew", done.out)

    def test_an_agent_of_the_next_version(self):
        log = self.try_agent("--token", TOKEN, says="is newer than the server's", env={"MUSSEL_TEST_NEXT_VERSION": "1"})
        self.assertIn("upgrade the servers first", log)

    def test_what_anybody_may_see(self):
        ca = open(self.m.data + "/server/tls/server-ca.crt").read()
        self.assertEqual(self.m.exec("curl", "-sk", "https://127.0.0.1:6443/cacerts").out, ca)
        self.assertEqual(self.m.exec("curl", "-sk", "https://127.0.0.1:6443/ping").out, "pong")
        for path in ("config", "apiservers", "readyz", "server-bootstrap", "nothing", "client-kubelet.crt"):
            done = self.m.exec("curl", "-sk", "-w", "%{http_code}", f"https://127.0.0.1:6443/v1-mussel/{path}")
            self.assertTrue(done.out.endswith("401"), f"{path}: {done.out}")


class Alone(lab.ClusterCase):
    """An agent without its servers."""

    servers, agents = 1, 1

    def test_pods_come_back_without_a_server(self):
        agent = self.c.agents[0]
        self.c.pod_on(agent, "steady", script="exec sleep 424242")
        before = agent.container_pids("sleep 424242")
        self.assertEqual(self.m.stop(), 0)
        self.assertEqual(agent.stop(), 0)
        self.assertEqual(agent.container_pids("sleep 424242"), before, "a stop ends no pod")
        agent.start(ready=False)
        wait_for("the agent to go on", lambda: "no server can be reached" in agent.log(), 30)
        self.assertEqual(agent.container_pids("sleep 424242"), before, "nor does a start without a server")
        agent.stop()
        agent.killall()
        self.assertEqual(agent.container_pids("sleep 424242"), [])
        agent.start(ready=False)
        wait_for("the pod to be back", lambda: agent.container_pids("sleep 424242"), 60)
        self.m.start(ready=False)
        self.c.wait_node(agent)
        self.assertEqual(self.m.out("exec", "steady", "--", "hostname"), "steady")

    def test_the_name_is_free_again_when_the_node_is_deleted(self):
        agent = self.c.agents[0]
        self.assertIn("agent1.node-password.mussel", self.m.out("get", "secrets", "-n", "kube-system", "-o", "name"))
        agent.stop()
        self.m.kubectl("delete", "node", "agent1")
        wait_for("the password to go", lambda: "agent1.node-password" not in
                 self.m.out("get", "secrets", "-n", "kube-system", "-o", "name"))
        other = self.c.add_agent()
        other.start("--node-name", "agent1", ready=False)
        self.c.agents.remove(other)
        self.c.agents.append(other)
        wait_for("the new machine", lambda: self.c.ready(agent) == "True" and
                 self.c.node(agent)["status"]["addresses"][0]["address"] == other.ip, 60)
        agent.start(ready=False)
        wait_for("the old one to be refused", lambda: "another machine has the name" in agent.log(), 30)
        agent.stop()

    def test_z_another_name_is_another_node(self):
        # The machine that has the name since the test before this one.
        machine = self.c.agents[-1]
        machine.name = before = "agent1"
        self.c.pod_on(machine, "stays-behind", script="exec sleep 515151")
        machine.stop()
        machine.name = "renamed"
        machine.start("--node-name", "renamed", ready=False)
        self.c.wait_node(machine)
        self.assertIn(f'it joins as another node before="{before}"', machine.log())
        wait_for("what runs for the old node to end", lambda: not machine.container_pids("sleep 515151"), 60)
        self.m.kubectl("delete", "node", before)
        self.c.pod_on(machine, "anew")
        self.assertEqual(self.m.out("exec", "anew", "--", "hostname"), "anew")
        # Also when mussel starts once more: it is this name's now.
        machine.stop()
        machine.start("--node-name", "renamed", ready=False)
        self.c.wait_node(machine)
        self.assertEqual({node["metadata"]["name"] for node in self.m.json("get", "nodes")["items"]}, {"server1", "renamed"})
