//! Objects in, chains out.

use std::sync::Arc;

use serde_json::{Value, json};

use super::gate::{LocalPod, LocalPods};
use super::plan;
use super::rules::{self, MAIN};
use crate::chains::Chains;

/// Four pods: web and db on this node in `a`, a client elsewhere in `a`, and one in `b`.
fn world() -> Vec<Value> {
    let pod = |namespace: &str, name: &str, node: &str, ip: &str, port: u16| {
        json!({"metadata": {"name": name, "namespace": namespace, "uid": name, "labels": {"app": name}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"podIP": ip, "phase": "Running"}})
    };
    vec![
        pod("a", "web", "here", "10.42.0.2", 80),
        pod("a", "db", "here", "10.42.0.3", 5432),
        pod("a", "client", "there", "10.42.1.2", 8080),
        pod("b", "stranger", "there", "10.42.1.3", 80),
    ]
}

fn chains_of(policies: Vec<Value>, pods: Vec<Value>, attached: &LocalPods) -> Chains {
    fn read<K: serde::de::DeserializeOwned>(values: Vec<Value>) -> Vec<Arc<K>> {
        values.into_iter().map(|value| Arc::new(serde_json::from_value(value).unwrap())).collect()
    }
    let namespaces = ["a", "b"].map(|name| json!({"metadata": {"name": name, "labels": {"team": name}}}));
    let pods = plan::pods("here", &read(pods), attached);
    let policies = plan::policies(&read(policies));
    rules::chains(&policies, &pods, &plan::namespaces(&read(namespaces.into())))
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "a"}, "spec": spec})
}

/// What happens to a connection, by following the chains as the kernel does.
fn passes(chains: &Chains, from: &str, to: &str, protocol: &str, port: u16) -> bool {
    let mut mark = false;
    let packet = Packet { from, to, protocol, port };
    walk(chains, MAIN, &packet, &mut mark)
}

struct Packet<'a> {
    from: &'a str,
    to: &'a str,
    protocol: &'a str,
    port: u16,
}

/// `false`: dropped.
fn walk(chains: &Chains, chain: &str, packet: &Packet<'_>, mark: &mut bool) -> bool {
    for rule in &chains[chain] {
        let words: Vec<&str> = rule.split(' ').collect();
        let after = |flag: &str| words.iter().position(|word| *word == flag).map(|at| words[at + 1]);
        let inside = |cidr: &str, ip: &str| cidr.parse::<crate::cidr::Cidr>().unwrap().contains(ip.parse().unwrap());
        let port = after("--dport").or(after("--dports")).is_none_or(|ports| {
            let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
            (first.parse().unwrap()..=last.parse().unwrap()).contains(&packet.port)
        });
        let matches = after("-s").is_none_or(|cidr| inside(cidr, packet.from))
            && after("-d").is_none_or(|cidr| inside(cidr, packet.to))
            && after("-p").is_none_or(|protocol| protocol == packet.protocol)
            && port
            && !rule.contains("--ctstate")
            && !(rule.contains("! --mark") && *mark);
        if !matches {
            continue;
        }
        match after("-j").unwrap() {
            "DROP" => return false,
            "RETURN" => return true,
            "MARK" => *mark = rule.contains("--set-xmark 0x8000"),
            next => {
                if !walk(chains, next, packet, mark) {
                    return false;
                }
            }
        }
    }
    true
}

const WEB: &str = "10.42.0.2";
const DB: &str = "10.42.0.3";
const CLIENT: &str = "10.42.1.2";
const STRANGER: &str = "10.42.1.3";
const OUTSIDE: &str = "192.0.2.7";

#[track_caller]
fn check(policies: Vec<Value>, expected: &[(&str, &str, &str, u16, bool)]) {
    let chains = chains_of(policies, world(), &LocalPods::new());
    for (from, to, protocol, port, pass) in expected {
        assert_eq!(passes(&chains, from, to, protocol, *port), *pass, "{from} to {to} {protocol} {port}: {chains:#?}");
    }
}

#[test]
fn nobody_is_told_apart_without_policies_about_them() {
    check(Vec::new(), &[(CLIENT, WEB, "tcp", 80, true)]);
    let other = policy("other", json!({"podSelector": {"matchLabels": {"app": "none"}}, "policyTypes": ["Ingress"]}));
    check(vec![other], &[(CLIENT, WEB, "tcp", 80, true), (WEB, OUTSIDE, "udp", 53, true)]);
}

#[test]
fn a_policy_without_rules_keeps_everybody_out_and_answers_no_question_of_the_other_direction() {
    let deny = policy("deny", json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
    check(
        vec![deny],
        &[
            (CLIENT, WEB, "tcp", 80, false),
            (WEB, DB, "tcp", 5432, false),
            (WEB, WEB, "tcp", 80, true),
            (WEB, OUTSIDE, "tcp", 443, true),
        ],
    );
    let deny = policy("deny", json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]}));
    check(
        vec![deny],
        &[
            (WEB, OUTSIDE, "tcp", 443, false),
            (WEB, DB, "tcp", 5432, false),
            (DB, OUTSIDE, "tcp", 443, true),
            (CLIENT, WEB, "tcp", 80, true),
        ],
    );
}

#[test]
fn policies_add_up() {
    let about = json!({"matchLabels": {"app": "web"}});
    let from = |app: &str| json!([{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]);
    let policies = vec![
        policy("deny", json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
        policy("client", json!({"podSelector": about, "ingress": from("client"), "policyTypes": ["Ingress"]})),
        policy("db", json!({"podSelector": about, "ingress": from("db"), "policyTypes": ["Ingress"]})),
    ];
    check(
        policies,
        &[
            (CLIENT, WEB, "tcp", 80, true),
            (DB, WEB, "udp", 9, true),
            (STRANGER, WEB, "tcp", 80, false),
            (CLIENT, DB, "tcp", 80, false),
        ],
    );
}

#[test]
fn peers_are_pods_of_namespaces_or_blocks_of_addresses() {
    let with = |peers: Value| {
        vec![policy("p", json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": peers}]}))]
    };
    let team = json!({"matchLabels": {"team": "b"}});
    let stranger = json!({"matchLabels": {"app": "stranger"}});
    check(
        with(json!([{"podSelector": {}}])),
        &[(CLIENT, WEB, "tcp", 1, true), (STRANGER, WEB, "tcp", 1, false), (OUTSIDE, WEB, "tcp", 1, false)],
    );
    check(
        with(json!([{"namespaceSelector": team}])),
        &[(CLIENT, WEB, "tcp", 1, false), (STRANGER, WEB, "tcp", 1, true)],
    );
    check(
        with(json!([{"namespaceSelector": team, "podSelector": {"matchLabels": {"app": "client"}}}])),
        &[(CLIENT, WEB, "tcp", 1, false), (STRANGER, WEB, "tcp", 1, false)],
    );
    check(
        with(json!([{"namespaceSelector": {}, "podSelector": stranger}])),
        &[(CLIENT, WEB, "tcp", 1, false), (STRANGER, WEB, "tcp", 1, true)],
    );
    check(
        with(json!([{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.4/30"]}}])),
        &[("192.0.2.8", WEB, "tcp", 1, true), (OUTSIDE, WEB, "tcp", 1, false), (CLIENT, WEB, "tcp", 1, false)],
    );
    // What one block leaves out, another peer may let in.
    check(
        with(
            json!([{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"]}}, {"ipBlock": {"cidr": "192.0.2.7/32"}}]),
        ),
        &[(OUTSIDE, WEB, "tcp", 1, true), ("192.0.2.8", WEB, "tcp", 1, false), (STRANGER, WEB, "tcp", 1, true)],
    );
    // There are no such addresses here: this is for nobody, and not for everybody.
    check(with(json!([{"ipBlock": {"cidr": "2001:db8::/32"}}])), &[(CLIENT, WEB, "tcp", 1, false)]);
}

#[test]
fn ports_have_numbers_ranges_protocols_and_names() {
    let with = |ports: Value| {
        vec![policy("p", json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]}))]
    };
    check(
        with(json!([{"port": 80, "protocol": "TCP"}])),
        &[(CLIENT, WEB, "tcp", 80, true), (CLIENT, WEB, "tcp", 81, false), (CLIENT, WEB, "udp", 80, false)],
    );
    check(
        with(json!([{"port": 80, "endPort": 90, "protocol": "SCTP"}])),
        &[(CLIENT, WEB, "sctp", 85, true), (CLIENT, WEB, "sctp", 91, false), (CLIENT, WEB, "tcp", 85, false)],
    );
    check(with(json!([{"protocol": "UDP"}])), &[(CLIENT, WEB, "udp", 9, true), (CLIENT, WEB, "tcp", 9, false)]);
    // Each pod's own number.
    check(
        with(json!([{"port": "http"}])),
        &[
            (CLIENT, WEB, "tcp", 80, true),
            (CLIENT, DB, "tcp", 5432, true),
            (CLIENT, WEB, "tcp", 5432, false),
            (CLIENT, DB, "tcp", 80, false),
        ],
    );
    let out =
        json!([{"to": [{"podSelector": {}}, {"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": "http"}]}]);
    check(
        vec![policy("p", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": out}))],
        &[
            (WEB, CLIENT, "tcp", 8080, true),
            (WEB, CLIENT, "tcp", 80, false),
            (WEB, DB, "tcp", 5432, true),
            (WEB, STRANGER, "tcp", 80, false),
            (WEB, OUTSIDE, "tcp", 80, false),
        ],
    );
}

#[test]
fn both_ends_have_to_let_a_connection_pass() {
    let about = |app: &str| json!({"matchLabels": {"app": app}});
    let out = policy(
        "out",
        json!({"podSelector": about("web"), "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": about("db")}]}]}),
    );
    let none = policy("in", json!({"podSelector": about("db"), "policyTypes": ["Ingress"]}));
    check(vec![out.clone()], &[(WEB, DB, "tcp", 1, true)]);
    check(vec![out, none], &[(WEB, DB, "tcp", 1, false)]);
}

#[test]
fn types_that_are_not_said_are_those_with_rules() {
    let spec = json!({"podSelector": {}, "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}]});
    check(
        vec![policy("p", spec)],
        &[(WEB, OUTSIDE, "udp", 53, true), (WEB, OUTSIDE, "tcp", 443, false), (CLIENT, WEB, "tcp", 80, false)],
    );
    check(
        vec![policy("p", json!({"podSelector": {}}))],
        &[(WEB, OUTSIDE, "tcp", 443, true), (CLIENT, WEB, "tcp", 80, false)],
    );
}

#[test]
fn a_pod_is_covered_before_the_api_knows_its_address() {
    let deny = policy("deny", json!({"podSelector": {"matchLabels": {"app": "new"}}, "policyTypes": ["Ingress"]}));
    let new = LocalPod {
        namespace: "a".to_owned(),
        name: "new".to_owned(),
        uid: "new".to_owned(),
        labels: [("app".to_owned(), "new".to_owned())].into(),
        ip: "10.42.0.9".parse().unwrap(),
    };
    let attached = LocalPods::from([("sandbox".to_owned(), new)]);
    let chains = chains_of(vec![deny.clone()], world(), &attached);
    assert!(!passes(&chains, CLIENT, "10.42.0.9", "tcp", 80));
    // An address that a finished pod had is the new one's, and nobody else's.
    let mut pods = world();
    pods[0]["status"]["podIP"] = json!("10.42.0.9");
    let chains = chains_of(vec![deny], pods, &attached);
    assert!(!passes(&chains, CLIENT, "10.42.0.9", "tcp", 80));
}

#[test]
fn pods_in_the_nodes_network_and_finished_ones_are_no_peers() {
    let mut pods = world();
    pods[2]["spec"]["hostNetwork"] = json!(true);
    pods[3]["status"]["phase"] = json!("Succeeded");
    let open =
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"namespaceSelector": {}}]}]});
    let chains = chains_of(vec![policy("p", open)], pods, &LocalPods::new());
    assert!(passes(&chains, DB, WEB, "tcp", 80));
    assert!(!passes(&chains, CLIENT, WEB, "tcp", 80) && !passes(&chains, STRANGER, WEB, "tcp", 80));
}

#[test]
fn rules_grow_with_pods_and_policies_and_not_with_their_product() {
    let pods: Vec<Value> = (0..500)
        .map(|n: u32| {
            let (node, ip) = (if n < 100 { "here" } else { "there" }, format!("10.42.{}.{}", n / 200, n % 200 + 2));
            json!({"metadata": {"name": format!("p{n}"), "namespace": "a", "uid": format!("{n}"),
                "labels": {"app": format!("app{}", n % 50)}},
                "spec": {"nodeName": node, "containers": []}, "status": {"podIP": ip, "phase": "Running"}})
        })
        .collect();
    let policies: Vec<Value> = (0..50)
        .map(|n: u32| {
            policy(
                &format!("p{n}"),
                json!({"podSelector": {"matchLabels": {"app": format!("app{n}")}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}, {"port": 443}]}],
                "egress": [{"to": [{"podSelector": {}}]}, {"ports": [{"port": 53, "protocol": "UDP"}]}]}),
            )
        })
        .collect();
    let chains = chains_of(policies, pods, &LocalPods::new());
    let rules: usize = chains.values().map(Vec::len).sum();
    // 500 peers for each direction, three rules for each local pod, a few for each policy.
    assert!(rules < 2 * 500 + 3 * 100 + 50 * 12, "{rules}");
    assert!(chains.keys().all(|name| name.len() <= 28));
}
