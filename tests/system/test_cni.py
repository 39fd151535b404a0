"""Pods' networks by a plugin that somebody else brings: `--flannel-backend none`."""

import json

import lab
from lab import wait_for

# A veth and a route for each pod: what a plugin does at the least.
PLUGIN = r"""#!/bin/sh
set -e
cat > /dev/null
# Plugins are called for several pods at the same time.
exec 9> {state}/lock
flock 9
echo "$CNI_COMMAND $CNI_IFNAME $CNI_ARGS" >> {state}/calls
inside() {{ nsenter --net="$CNI_NETNS" ip "$@"; }}
case $CNI_COMMAND in
ADD)
    number=$(($(cat {state}/number 2>/dev/null || echo 1) + 1))
    echo $number > {state}/number
    ip link add own$number type veth peer name $CNI_IFNAME netns "$CNI_NETNS"
    ip addr add 10.77.0.1/32 dev own$number
    ip link set own$number up
    ip route add 10.77.0.$number/32 dev own$number
    inside addr add 10.77.0.$number/32 dev $CNI_IFNAME
    inside link set $CNI_IFNAME up
    inside route add 10.77.0.1 dev $CNI_IFNAME
    inside route add default via 10.77.0.1
    echo "{{\"cniVersion\": \"1.0.0\", \"ips\": [{{\"address\": \"10.77.0.$number/32\"}}]}}"
    ;;
DEL)
    [ -z "$CNI_NETNS" ] || inside link del $CNI_IFNAME 2>/dev/null || true
    ;;
esac
"""


class ForeignNetwork(lab.Case):
    shared = False

    def test_the_node_waits_for_a_plugin_and_uses_it(self):
        self.m = lab.Machine(flags=["--flannel-backend", "none"])
        self.m.sh("mkdir -p /opt && mount -t tmpfs tmpfs /opt && mkdir -p /opt/cni/bin && rm -rf /etc/cni && mkdir -p /etc/cni/net.d")
        self.m.start(ready=False)

        def ready():
            conditions = [c for node in self.m.json("get", "nodes")["items"] for c in node["status"]["conditions"]]
            return next((c for c in conditions if c["type"] == "Ready" and "cni plugin not initialized" in c["message"]), None)
        said = wait_for("the node to say what it lacks", ready, 40)
        self.assertEqual(said["status"], "False")
        state = self.m.dir + "/plugin"
        self.m.sh(f"mkdir -p {state}")
        self.m.exec("sh", "-c", "cat > /opt/cni/bin/own && chmod +x /opt/cni/bin/own", input=PLUGIN.format(state=state))
        self.m.exec("sh", "-c", "cat > /etc/cni/net.d/10-own.conflist", input=json.dumps(
            {"cniVersion": "1.0.0", "name": "own", "plugins": [{"type": "own"}]}))
        self.m.wait_ready()
        self.m.deploy("web", replicas=2)
        addresses = {pod["status"]["podIP"] for pod in self.m.json("get", "pods")["items"]}
        self.assertEqual(addresses, {"10.77.0.2", "10.77.0.3"})
        self.m.kubectl("expose", "deployment", "web", "--port=80")
        ip = self.m.json("get", "service", "web")["spec"]["clusterIP"]
        wait_for("the Service", lambda: self.m.get_url(f"http://{ip}/").startswith("web-"), 20)
        self.assertNotIn("cni0", self.m.sh("ip -br link"), "what is somebody else's is not made")
        # Pods keep what they have when mussel is restarted, and it is taken back when they go.
        self.assertEqual(self.m.stop(), 0)
        self.m.start()
        self.m.kubectl("delete", "deployment", "web")
        wait_for("the plugin to take it back", lambda: self.m.sh(f"grep -c ^DEL {state}/calls || true").strip() == "2", 30)
        calls = self.m.sh(f"cat {state}/calls").splitlines()
        self.assertEqual(sum(call.startswith("ADD") for call in calls), 2, calls)
        self.assertIn("K8S_POD_NAMESPACE=default", calls[0])
        self.assertNotIn("own2", self.m.sh("ip -br link"))


class DebiansPlugins(lab.Case):
    """bridge, host-local and portmap as Debian packages them: what they hand out is taken back."""

    shared = False

    def test_addresses_and_ports_come_and_go(self):
        self.m = lab.Machine(flags=["--flannel-backend", "none"])
        leases = self.m.dir + "/leases"
        self.m.sh("rm -rf /etc/cni && mkdir -p /etc/cni/net.d")
        self.m.exec("sh", "-c", "cat > /etc/cni/net.d/10-debian.conflist", input=json.dumps(
            {"cniVersion": "1.0.0", "name": "debian", "plugins": [
                {"type": "bridge", "bridge": "debian0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": {
                    "type": "host-local", "dataDir": leases, "ranges": [[{"subnet": "10.78.0.0/24"}]],
                    "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}]}))
        self.m.start()
        self.m.deploy("web", replicas=2)
        self.m.apply(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "door"}, "spec": {
            "terminationGracePeriodSeconds": 0, "containers": [
                {"name": "c", "image": lab.WEB, "ports": [{"containerPort": 80, "hostPort": 8088}]}]}}))
        self.m.wait("pod/door", "condition=Ready", 30)
        pods = self.m.json("get", "pods")["items"]
        addresses = {pod["status"]["podIP"] for pod in pods}
        self.assertEqual(self.leased(leases), addresses)
        self.assertEqual({address.rsplit(".", 1)[0] for address in addresses}, {"10.78.0"})
        self.m.kubectl("expose", "deployment", "web", "--port=80")
        ip = self.m.json("get", "service", "web")["spec"]["clusterIP"]
        wait_for("the Service", lambda: self.m.get_url(f"http://{ip}/").startswith("web-"), 20)
        self.assertEqual(self.m.get_url(f"http://{self.m.ip}:8088/"), "door")
        # What was handed out before a restart is taken back after it, too, and also when a pod's shim died.
        self.assertEqual(self.m.stop(), 0)
        self.m.start()
        self.assertEqual(self.m.get_url(f"http://{self.m.ip}:8088/"), "door")
        self.m.kubectl("delete", "deployment", "web")
        self.m.kubectl("delete", "pod", "door")
        wait_for("all leases to be given back", lambda: not self.leased(leases), 30)
        self.assertNotIn("8088", self.m.sh("iptables-save -t nat"))
        self.assertEqual(self.m.sh("ip -o link show type veth | grep -c 'master debian0' || true").strip(), "0")

    def leased(self, folder):
        return {name for name in self.m.sh(f"ls {folder}/debian").split() if name.startswith("10.78.")}
