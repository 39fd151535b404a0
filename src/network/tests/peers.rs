//! Pods of several nodes, each a network namespace with the real thing in it, over real links.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use mussel_client::Informers;
use mussel_network::backend::Backend;
use mussel_network::host;
use mussel_network::peers::{self, Peers};
use mussel_network::pods::{AddRequest, Config, Owner, PodNetwork};
use mussel_network::uplink::Uplink;
use nix::sched::{CloneFlags, setns, unshare};
use support::api::Api;
use support::{Sandbox, ask, may_make_networks};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

fn sh(script: &str) -> String {
    let done = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A network namespace, for a node or for what lies between nodes.
struct Machine {
    netns: OwnedFd,
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            sh("ip link set lo up");
            std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
        };
        Self { netns: thread::spawn(make).join().unwrap(), dir: tempfile::tempdir().unwrap() }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let netns = self.netns.try_clone().unwrap();
        let body = move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::spawn(body).join().unwrap()
    }

    fn sh(&self, script: &str) -> String {
        let script = script.to_owned();
        self.run(move || sh(&script))
    }
}

/// Two links with a router between them.
fn world() -> Machine {
    let world = Machine::new();
    world.sh("ip link add left type bridge && ip addr add 192.0.2.254/24 dev left && ip link set left up
        ip link add right type bridge && ip addr add 198.51.100.254/24 dev right && ip link set right up
        echo 1 > /proc/sys/net/ipv4/ip_forward");
    world
}

/// A machine on one of the links. It ends when dropped.
struct TestNode {
    name: &'static str,
    machine: Machine,
    pod: Sandbox,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl TestNode {
    fn new(world: &Machine, name: &'static str, link: &str, ip: &str) -> Self {
        let machine = Machine::new();
        let netns = format!("/proc/{}/fd/{}", std::process::id(), machine.netns.as_raw_fd());
        world.sh(&format!(
            "ip link add to-{name} type veth peer name eth0 netns {netns}
            ip link set to-{name} master {link} up"
        ));
        let router = format!("{}.254", ip.rsplit_once('.').unwrap().0);
        machine.sh(&format!("ip link set eth0 up; ip addr add {ip}/24 dev eth0; ip route add default via {router}"));
        Self { name, machine, pod: Sandbox::new(), running: None }
    }

    /// What a node does: pods, and routes to those of the others. Returns when the pod is attached.
    fn start(&mut self, api: &Api, backend: Backend, ip: &str, pod_cidr: &str) {
        let (api, name, ip) = (api.clone(), self.name, ip.parse::<IpAddr>().unwrap());
        let (dir, pod, cidr) = (self.machine.dir.path().to_owned(), self.pod.path(), pod_cidr.parse().unwrap());
        let netns = self.machine.netns.try_clone().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (ready, is_ready) = mpsc::channel();
        let body = move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                host::tune_kernel();
                let uplink = Uplink::find(None, ip).await.unwrap();
                let pods = PodNetwork::open(Config {
                    run_dir: dir.clone(),
                    bridge: "cni0".to_owned(),
                    mtu: backend.pod_mtu(uplink.mtu, uplink.ip),
                    cluster_cidr: "10.42.0.0/16".parse().unwrap(),
                    lent_ports: Default::default(),
                    policies: None,
                });
                let pods = pods.unwrap();
                pods.set_pod_cidr(cidr).await.unwrap();
                let (sandbox_id, owner) = (name.to_owned(), Owner::default());
                let request = AddRequest { sandbox_id, netns: pod, host_ports: Vec::new(), owner };
                pods.add(&request).await.unwrap();
                let informers = Informers::new(api.client(), stopped.clone());
                let config = peers::Config {
                    node_name: name.to_owned(),
                    backend,
                    cluster_cidr: "10.42.0.0/16".parse().unwrap(),
                    uplink,
                    external_ip: None,
                    kept: dir.join("kept/peers.json"),
                };
                ready.send(()).unwrap();
                Peers::new(config, informers.of::<Node>(), api.client()).run(stopped).await;
            });
        };
        let thread = thread::spawn(body);
        is_ready.recv().unwrap();
        self.running = Some((stop, thread));
    }

    fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.cancel();
            thread.join().unwrap();
        }
    }

    fn has(&self, what: &str, line: &str) -> bool {
        self.machine.sh(what).lines().any(|found| found.contains(line))
    }

    /// Waits until the node's pod gets an answer from the address.
    fn reaches(&self, address: &'static str) -> String {
        let mut answer = String::new();
        until(&format!("{} to reach {address}", self.name), || match self.pod.run(move || ask(address)) {
            Ok(text) => {
                answer = text;
                true
            }
            Err(_) => false,
        });
        answer
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some((stop, _)) = self.running.take() {
            stop.cancel();
        }
    }
}

/// Sends what fills many packets, and counts what arrives at the other pod.
fn send_much(from: &TestNode, to: &TestNode, address: &str) -> usize {
    const BYTES: usize = 1 << 20;
    let listener = to.pod.run(|| TcpListener::bind(("0.0.0.0", 9000)).unwrap());
    let counting = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.len()
    });
    let address: SocketAddr = address.parse().unwrap();
    from.pod.run(move || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.write_all(&vec![7; BYTES]).unwrap();
    });
    counting.join().unwrap()
}

#[test]
fn pods_of_all_nodes_reach_each_other_by_vxlan() {
    if !may_make_networks() {
        return;
    }
    let (world, api) = (world(), Api::new());
    let mut a = TestNode::new(&world, "a", "left", "192.0.2.1");
    let mut b = TestNode::new(&world, "b", "left", "192.0.2.2");
    let mut c = TestNode::new(&world, "c", "right", "198.51.100.3");
    for (node, cidr, ip) in [
        (&mut a, "10.42.0.0/24", "192.0.2.1"),
        (&mut b, "10.42.1.0/24", "192.0.2.2"),
        (&mut c, "10.42.2.0/24", "198.51.100.3"),
    ] {
        node.pod.serve(80, node.name);
        api.put(node.name, cidr);
        node.start(&api, Backend::Vxlan, ip, cidr);
    }
    // Pods see each other's own addresses, on one link and over the router.
    assert_eq!(a.reaches("10.42.1.2:80"), "b 10.42.0.2");
    assert_eq!(a.reaches("10.42.2.2:80"), "c 10.42.0.2");
    assert_eq!(c.reaches("10.42.0.2:80"), "a 10.42.2.2");
    assert_eq!(a.machine.run(|| ask("10.42.2.2:80")).unwrap(), "c 10.42.0.0", "a node reaches pods of others");
    let listener = c.machine.run(|| TcpListener::bind(("0.0.0.0", 81)).unwrap());
    thread::spawn(move || listener.accept().unwrap().0.write_all(b"node").unwrap());
    assert_eq!(a.reaches("198.51.100.3:81"), "node", "a pod reaches other nodes");
    assert_eq!(send_much(&a, &c, "10.42.2.2:9000"), 1 << 20, "also with packets of full size");
    assert!(a.has("ip link show flannel.1", "mtu 1450") && a.has("ip link show cni0", "mtu 1450"));

    // A node that moves: the others follow its annotation.
    let mac = api.annotation("c", "backend-data").unwrap();
    assert!(mac.starts_with("{\"VNI\":1,\"VtepMAC\":\""), "{mac}");
    assert_eq!(api.annotation("c", "public-ip").unwrap(), "198.51.100.3");
    c.stop();
    c.machine.sh("ip addr flush dev eth0; ip addr add 198.51.100.33/24 dev eth0
        ip route add default via 198.51.100.254");
    c.start(&api, Backend::Vxlan, "198.51.100.33", "10.42.2.0/24");
    until("the new address to be known", || a.has("bridge fdb show dev flannel.1", "dst 198.51.100.33"));
    assert_eq!(a.reaches("10.42.2.2:80"), "c 10.42.0.2");

    // What others break is mended: the kernel tells.
    a.machine.sh("ip route del 10.42.1.0/24");
    assert_eq!(a.reaches("10.42.1.2:80"), "b 10.42.0.2");
    a.machine.sh("ip link del flannel.1");
    assert_eq!(a.reaches("10.42.2.2:80"), "c 10.42.0.2");

    // Gone while b looked away, and another's route that looks like ours.
    b.stop();
    assert!(
        b.has("ip route", "10.42.2.0/24 via 10.42.2.0 dev flannel.1 proto 109 onlink"),
        "routes outlive the process"
    );
    assert_eq!(b.reaches("10.42.2.2:80"), "c 10.42.1.2");
    b.machine.sh(
        "ip route add 10.42.77.0/24 via 192.0.2.1; bridge fdb add 02:00:00:00:00:77 dst 192.0.2.77 dev flannel.1 self",
    );
    api.delete("c");
    until("the route to be gone", || !a.has("ip route", "10.42.2.0/24"));
    b.start(&api, Backend::Vxlan, "192.0.2.2", "10.42.1.0/24");
    until("the stale route to be gone", || !b.has("ip route", "10.42.2.0/24"));
    until("the stale entry to be gone", || !b.has("bridge fdb show dev flannel.1", "192.0.2.77"));
    assert!(!b.has("bridge fdb show dev flannel.1", "198.51.100.33"));
    assert!(b.has("ip route", "10.42.77.0/24 via 192.0.2.1"), "another's route stays");
    assert_eq!(b.reaches("10.42.0.2:80"), "a 10.42.1.2");

    // A start without a server: as it was last.
    b.stop();
    b.machine.sh("ip link del flannel.1");
    api.set_down(true);
    b.start(&api, Backend::Vxlan, "192.0.2.2", "10.42.1.0/24");
    assert_eq!(b.reaches("10.42.0.2:80"), "a 10.42.1.2");
    api.set_down(false);

    b.stop();
    let errors = b.machine.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let errors = runtime.block_on(host::cleanup("cni0"));
        errors.iter().map(ToString::to_string).collect::<Vec<_>>()
    });
    assert_eq!(errors, Vec::<String>::new());
    let left = b.machine.sh("ip route; ip -br link");
    assert!(!left.contains("10.42.0.") && !left.contains("flannel") && left.contains("10.42.77.0/24"), "{left}");
    a.stop();
}

#[test]
fn host_gw_routes_by_the_link_and_says_what_it_cannot_reach() {
    if !may_make_networks() {
        return;
    }
    let (world, api) = (world(), Api::new());
    let mut a = TestNode::new(&world, "a", "left", "192.0.2.1");
    let mut b = TestNode::new(&world, "b", "left", "192.0.2.2");
    let mut c = TestNode::new(&world, "c", "right", "198.51.100.3");
    for (node, cidr, ip) in [
        (&mut a, "10.42.0.0/24", "192.0.2.1"),
        (&mut b, "10.42.1.0/24", "192.0.2.2"),
        (&mut c, "10.42.2.0/24", "198.51.100.3"),
    ] {
        node.pod.serve(80, node.name);
        api.put(node.name, cidr);
        node.start(&api, Backend::HostGw, ip, cidr);
    }
    assert_eq!(a.reaches("10.42.1.2:80"), "b 10.42.0.2");
    assert_eq!(b.reaches("10.42.0.2:80"), "a 10.42.1.2");
    assert_eq!(a.machine.run(|| ask("10.42.1.2:80")).unwrap(), "b 192.0.2.1");
    assert_eq!(send_much(&a, &b, "10.42.1.2:9000"), 1 << 20);
    assert!(a.has("ip link show cni0", "mtu 1500"), "nothing is taken from the packets");
    until("c to be known", || api.annotation("c", "public-ip").is_some());
    assert!(!a.has("ip route", "10.42.2.0/24") && !a.has("ip -br link", "flannel"));

    // The kernel drops routes of an interface that goes down; they come back with it.
    a.machine.sh("ip link set eth0 down");
    a.machine.sh("ip link set eth0 up; ip route add default via 192.0.2.254");
    assert_eq!(a.reaches("10.42.1.2:80"), "b 10.42.0.2");

    // The other backend takes over what this one made.
    for (node, cidr, ip) in [
        (&mut a, "10.42.0.0/24", "192.0.2.1"),
        (&mut b, "10.42.1.0/24", "192.0.2.2"),
        (&mut c, "10.42.2.0/24", "198.51.100.3"),
    ] {
        node.stop();
        node.start(&api, Backend::Vxlan, ip, cidr);
    }
    assert_eq!(c.reaches("10.42.0.2:80"), "a 10.42.2.2");
    until("the old route to be replaced", || !a.has("ip route", "10.42.1.0/24 via 192.0.2.2"));
    assert_eq!(a.reaches("10.42.1.2:80"), "b 10.42.0.2");
}

#[test]
fn a_range_that_changes_leaves_nothing_of_the_old_one() {
    if !may_make_networks() {
        return;
    }
    let (world, api) = (world(), Api::new());
    let mut a = TestNode::new(&world, "a", "left", "192.0.2.1");
    let mut b = TestNode::new(&world, "b", "left", "192.0.2.2");
    api.put("a", "10.42.0.0/24");
    api.put("b", "10.42.1.0/24");
    a.pod.serve(80, "a");
    a.start(&api, Backend::Vxlan, "192.0.2.1", "10.42.0.0/24");
    b.start(&api, Backend::Vxlan, "192.0.2.2", "10.42.1.0/24");
    assert_eq!(b.reaches("10.42.0.2:80"), "a 10.42.1.2");
    // Deleted, its range given to another, and registered anew.
    b.stop();
    api.delete("b");
    api.put("b", "10.42.9.0/24");
    b.start(&api, Backend::Vxlan, "192.0.2.2", "10.42.9.0/24");
    until("the new range to be routed", || a.has("ip route", "10.42.9.0/24 via 10.42.9.0 dev flannel.1"));
    until("the old one not to be", || !a.has("ip route", "10.42.1.0/24"));
    let addresses = b.machine.sh("ip -br -4 addr");
    assert!(addresses.contains("10.42.9.1/24") && addresses.contains("10.42.9.0/32"), "{addresses}");
    assert!(!addresses.contains("10.42.1."), "{addresses}");
}

#[test]
fn an_uplink_is_found_by_address_by_name_and_by_route() {
    if !may_make_networks() {
        return;
    }
    let machine = Machine::new();
    machine.sh("ip link add one type bridge && ip addr add 192.0.2.1/24 dev one && ip link set one up mtu 1400
        ip link add two type bridge && ip addr add 198.51.100.1/24 dev two && ip link set two up
        ip route add default via 198.51.100.254");
    let find = |interface: Option<&'static str>, ip: &str| {
        let ip = ip.parse().unwrap();
        machine.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let found = runtime.block_on(Uplink::find(interface, ip));
            found
                .map(|uplink| format!("{} {} {}", uplink.name, uplink.ip, uplink.mtu))
                .map_err(|error| error.to_string())
        })
    };
    assert_eq!(find(None, "192.0.2.1").unwrap(), "one 192.0.2.1 1400");
    assert_eq!(find(Some("two"), "192.0.2.1").unwrap(), "two 198.51.100.1 1500");
    // Another machine translates this one's address.
    assert_eq!(find(None, "203.0.113.5").unwrap(), "two 198.51.100.1 1500");
    assert_eq!(find(Some("three"), "192.0.2.1").unwrap_err(), "interface three does not exist");
}
