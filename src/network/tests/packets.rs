//! The pod network and the service proxy with a real kernel and real packets, in a network namespace of their own.

mod support;

use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use mussel_client::informer::Informer;
use mussel_network::host;
use mussel_network::iptables::Iptables;
use mussel_network::pods::{AddRequest, Config, HostPort, Owner, PodNetwork, Protocol};
use mussel_network::proxy::{self, Proxy};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use support::{Sandbox, ask, ask_udp, in_new_network};

fn network(dir: &tempfile::TempDir) -> PodNetwork {
    let config = Config {
        run_dir: dir.path().to_owned(),
        bridge: "cni0".to_owned(),
        mtu: 1500,
        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
        lent_ports: Default::default(),
        policies: None,
    };
    PodNetwork::open(config).unwrap()
}

fn request(id: &str, sandbox: &Sandbox, host_ports: Vec<HostPort>) -> AddRequest {
    AddRequest { sandbox_id: id.to_owned(), netns: sandbox.path(), host_ports, owner: Owner::default() }
}

#[test]
fn pods_reach_each_other_the_node_and_their_host_ports() {
    in_new_network(async || {
        let dir = tempfile::tempdir().unwrap();
        let pods = network(&dir);
        assert!(pods.status().is_err(), "no pod CIDR yet");
        pods.set_pod_cidr("10.42.0.0/24".parse().unwrap()).await.unwrap();
        let (a, b) = (Sandbox::new(), Sandbox::new());
        let port = |host_ip: Option<IpAddr>| HostPort {
            protocol: Protocol::Tcp,
            host_port: 8888,
            container_port: 80,
            host_ip,
        };
        let first = pods.add(&request("a", &a, vec![port(None)])).await.unwrap();
        let second = pods.add(&request("b", &b, Vec::new())).await.unwrap();
        assert_eq!((first.ip.to_string(), second.ip.to_string()), ("10.42.0.2".into(), "10.42.0.3".into()));
        assert_eq!(pods.add(&request("a", &a, Vec::new())).await.unwrap(), first, "a repeat changes nothing");
        assert!(pods.add(&request("c", &b, vec![port(None)])).await.is_err(), "the host port is taken");

        a.serve(80, "a");
        assert_eq!(b.run(|| ask("10.42.0.2:80")).unwrap(), "a 10.42.0.3", "pods see each other's own address");
        assert_eq!(ask("10.42.0.2:80").unwrap(), "a 10.42.0.1", "the node reaches pods");
        assert!(b.run(|| ask("10.42.0.1:8888")).unwrap().starts_with("a "), "host port from another pod");
        assert!(a.run(|| ask("10.42.0.1:8888")).unwrap().starts_with("a "), "host port from the pod itself");
        assert!(ask("10.42.0.1:8888").unwrap().starts_with("a "), "host port from the node");

        // A process that starts anew finds what is there.
        let pods = network(&dir);
        pods.set_pod_cidr("10.42.0.0/24".parse().unwrap()).await.unwrap();
        assert_eq!(pods.attachments().await.len(), 2);
        assert!(ask("10.42.0.1:8888").unwrap().starts_with("a "), "host ports outlive a restart");

        pods.del("a").await.unwrap();
        pods.del("a").await.unwrap();
        assert!(ask("10.42.0.1:8888").is_err());
        pods.retain(|_| false).await;
        assert_eq!(pods.attachments().await.len(), 0);
        let errors = host::cleanup("cni0").await;
        assert!(errors.is_empty(), "{errors:?}");
        let saved = Iptables::find().unwrap().save("nat").await.unwrap();
        assert!(!saved.contains("MUSSEL"), "{saved}");
    });
}

fn objects<K: mussel_client::informer::Kind>(objects: Vec<Value>) -> Informer<K> {
    Informer::fixed(objects.into_iter().map(|object| serde_json::from_value(object).unwrap()))
}

/// Runs the proxy over the given objects until `check` is through.
async fn with_proxy(services: Vec<Value>, slices: Vec<Value>, check: impl FnOnce() + Send + 'static) {
    let config = proxy::Config {
        node_name: "a".to_owned(),
        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
        local_addresses: Default::default(),
        node_addresses: Vec::new(),
        lent_ports: Default::default(),
        iptables: Iptables::find().unwrap(),
    };
    let proxy = Proxy::new(config, objects::<Service>(services), objects::<EndpointSlice>(slices));
    let stop = CancellationToken::new();
    let running = tokio::task::LocalSet::new();
    let (done, is_done) = mpsc::channel::<()>();
    let checker = {
        let netns: OwnedFd = std::fs::File::open("/proc/thread-self/ns/net").unwrap().into();
        let stop = stop.clone();
        thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            let _stop = stop.drop_guard();
            let _ = is_done.recv();
            check();
        })
    };
    running
        .run_until(async {
            let running = tokio::task::spawn_local(proxy.run(stop.clone()));
            // The rules are in force when the last jump is.
            let iptables = Iptables::find().unwrap();
            let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
            while !iptables.save("filter").await.unwrap().contains("-A OUTPUT -m conntrack") {
                assert!(tokio::time::Instant::now() < deadline, "rules are not loaded");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done.send(()).unwrap();
            running.await.unwrap();
        })
        .await;
    checker.join().unwrap();
}

#[test]
fn services_answer() {
    in_new_network(async || {
        let dir = tempfile::tempdir().unwrap();
        let pods = network(&dir);
        pods.set_pod_cidr("10.42.0.0/24".parse().unwrap()).await.unwrap();
        let dns = ["10.43.0.10".parse().unwrap()];
        host::prepare(pods.iptables(), "10.43.0.0/16".parse().unwrap(), &dns, true).await.unwrap();
        let (a, b) = (Sandbox::new(), Sandbox::new());
        pods.add(&request("a", &a, Vec::new())).await.unwrap();
        pods.add(&request("b", &b, Vec::new())).await.unwrap();
        a.serve(8080, "a");
        b.serve(8080, "b");

        let service = |name: &str, ip: &str, more: Value| {
            let mut spec = json!({"clusterIP": ip, "ports": [{"port": 80, "protocol": "TCP"}]});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})
        };
        let slice = |name: &str, ips: &[&str]| {
            let endpoints: Vec<_> = ips.iter().map(|ip| json!({"addresses": [ip]})).collect();
            json!({"metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
        };
        let node_port = json!({"type": "NodePort",
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
        let sticky = json!({"sessionAffinity": "ClientIP"});
        let services = vec![
            service("web", "10.43.0.7", node_port),
            service("sticky", "10.43.0.8", sticky),
            service("empty", "10.43.0.9", json!({})),
        ];
        let both = ["10.42.0.2", "10.42.0.3"];
        let slices = vec![slice("web", &both), slice("sticky", &both)];
        let check = move || {
            let mut seen: Vec<_> = (0..40).map(|_| ask("10.43.0.7:80").unwrap().remove(0)).collect();
            seen.sort();
            seen.dedup();
            assert_eq!(seen, ['a', 'b'], "both pods answer");
            let mut seen: Vec<_> = (0..20).map(|_| ask("10.43.0.8:80").unwrap().remove(0)).collect();
            seen.dedup();
            assert_eq!(seen.len(), 1, "a client stays with its pod");
            assert_eq!(ask("10.43.0.9:80").unwrap_err(), std::io::ErrorKind::ConnectionRefused);
            assert_eq!(ask("10.43.0.99:80").unwrap_err(), std::io::ErrorKind::ConnectionRefused, "no such Service");
            assert_eq!(a.run(|| ask("10.43.0.99:80")).unwrap_err(), std::io::ErrorKind::ConnectionRefused);
            assert!(ask("10.42.0.1:30080").is_ok(), "node port on the node's address");
            assert!(ask("127.0.0.1:30080").is_ok(), "node port on loopback");
            for _ in 0..8 {
                assert!(a.run(|| ask("10.43.0.7:80")).is_ok(), "from a pod, also when it is its own endpoint");
                assert!(b.run(|| ask("10.42.0.1:30080")).is_ok(), "node port from a pod");
            }
        };
        with_proxy(services, slices, check).await;
    });
}

#[test]
fn a_udp_client_that_goes_on_reaches_the_endpoint_that_is_left() {
    in_new_network(async || {
        let dir = tempfile::tempdir().unwrap();
        let pods = network(&dir);
        pods.set_pod_cidr("10.42.0.0/24".parse().unwrap()).await.unwrap();
        host::prepare(pods.iptables(), "10.43.0.0/16".parse().unwrap(), &[], true).await.unwrap();
        let (a, b) = (Sandbox::new(), Sandbox::new());
        pods.add(&request("a", &a, Vec::new())).await.unwrap();
        pods.add(&request("b", &b, Vec::new())).await.unwrap();
        a.serve_udp(5353, "a");
        b.serve_udp(5353, "b");
        let service = json!({"metadata": {"name": "dns", "namespace": "default"}, "spec": {"clusterIP": "10.43.0.7",
            "type": "NodePort", "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]}});
        let slice = |ip: &str| {
            json!({"metadata": {"name": "dns", "namespace": "default", "labels": {"kubernetes.io/service-name": "dns"}},
                "addressType": "IPv4", "endpoints": [{"addresses": [ip]}],
                "ports": [{"name": "", "port": 5353, "protocol": "UDP"}]})
        };
        let client = || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket
        };
        let (inner, outer) = (client(), client());
        // UDP may lose a question, most of all while rules are replaced: it is asked again.
        let asked = move |inner: &UdpSocket, outer: &UdpSocket| {
            [ask_udp(inner, "10.43.0.7:53"), ask_udp(outer, "10.42.0.1:30053")].map(Result::ok)
        };
        let (first, second) = (inner.try_clone().unwrap(), outer.try_clone().unwrap());
        let leads_to = |flows: [Option<String>; 2], pod: &str| flows.iter().all(|flow| flow.as_deref() == Some(pod));
        let check = move || {
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while !leads_to(asked(&first, &second), "a") {
                assert!(std::time::Instant::now() < deadline, "nobody answers");
            }
        };
        with_proxy(vec![service.clone()], vec![slice("10.42.0.2")], check).await;
        // Another process, which knows nothing of the endpoints that were.
        let check = move || {
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while !leads_to(asked(&inner, &outer), "b") {
                assert!(std::time::Instant::now() < deadline, "the flows still lead to a");
            }
        };
        with_proxy(vec![service], vec![slice("10.42.0.3")], check).await;
    });
}
