//! A plan as iptables chains of the table mangle.
//!
//! There, and not in filter, because no ACCEPT of somebody else can come before it: mangle is passed first, and whole. What it
//! sees in FORWARD and INPUT is after the translation of Services, so policies are about the pods behind them.
//!
//! ```text
//! FORWARD, INPUT ─▶ MUSSEL-POLICY ─▶ MUSSEL-NPC-… a kind of pod: those that the same policies are about, in one direction
//!                                      ├▶ MUSSEL-NPR-… a policy's rules ─▶ MUSSEL-NPP-… the peers of a rule ─▶ MUSSEL-NPB-… a block
//!                                      └▶ DROP, unless one of them set the mark
//! ```
//!
//! Peers are written once for all rules that name them alike, and a pod that comes or goes changes the chains of those that name it,
//! and no other. Only the first packet of a connection comes further than the first rule.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};

use super::plan::{Direction, Namespaces, Peer, Pod, Policy, Port, PortNumber, Rule};
use crate::chains::{Chains, push};

pub const MAIN: &str = "MUSSEL-POLICY";
/// Our chains, by the beginnings of their names.
pub const OWNED_PREFIXES: [&str; 2] = [MAIN, "MUSSEL-NP"];
pub const HOOKS: [&str; 2] = ["FORWARD", "INPUT"];

/// Set on a packet while it is judged, by the rule that lets it pass; gone when it leaves our chains.
const PASS: &str = "-j MARK --set-xmark 0x8000/0x8000";
const CLEAR: &str = "-j MARK --set-xmark 0x0/0x8000";
const DROP: &str = "-m mark ! --mark 0x8000/0x8000 -j DROP";
/// iptables takes 255 characters.
const COMMENT_MAX: usize = 200;

pub fn chains(policies: &[Policy], pods: &[Pod], namespaces: &Namespaces) -> Chains {
    let mut writer = Writer { pods, namespaces, chains: Chains::new() };
    let mut main = vec!["-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN".to_owned(), CLEAR.to_owned()];
    let mut alone = Vec::new();
    let mut judged = Vec::new();
    for direction in [Direction::Egress, Direction::Ingress] {
        for pod in pods.iter().filter(|pod| pod.local) {
            let about: Vec<_> =
                policies.iter().filter_map(|policy| Some((policy, policy.about(pod, direction)?))).collect();
            if about.is_empty() {
                continue;
            }
            let kind = writer.kind(direction, pod, &about);
            let (flag, comment) = (own_flag(direction), comment(&format!("pod {}/{}", pod.namespace, pod.name)));
            judged.push(format!("{flag} {}/32 {comment} -j {kind}", pod.ip));
            alone.push(pod.ip);
        }
    }
    alone.sort();
    alone.dedup();
    // A pod always reaches itself, also by way of a Service.
    main.extend(alone.into_iter().map(|ip| format!("-s {ip}/32 -d {ip}/32 -j RETURN")));
    main.extend(judged);
    writer.chains.insert(MAIN.to_owned(), main);
    writer.chains
}

struct Writer<'a> {
    pods: &'a [Pod],
    namespaces: &'a Namespaces,
    chains: Chains,
}

impl Writer<'_> {
    /// The chain for pods that all these policies are about.
    fn kind(&mut self, direction: Direction, pod: &Pod, about: &[(&Policy, &[Rule])]) -> String {
        let rules: Vec<(String, String)> = about
            .iter()
            .filter(|(_, rules)| !rules.is_empty())
            .map(|(policy, rules)| {
                let name = format!("{}/{}", policy.namespace, policy.name);
                (self.policy(direction, policy, rules, pod), comment(&format!("policy {name}")))
            })
            .collect();
        let names: Vec<&str> = rules.iter().map(|(chain, _)| chain.as_str()).collect();
        let kind = name("MUSSEL-NPC-", &format!("{direction:?} {}", names.join(" ")));
        if !self.chains.contains_key(&kind) {
            let mut lines: Vec<String> = rules.iter().map(|(chain, comment)| format!("{comment} -j {chain}")).collect();
            lines.extend([DROP.to_owned(), CLEAR.to_owned()]);
            self.chains.insert(kind.clone(), lines);
        }
        kind
    }

    /// The chain of a policy's rules. Named ports are the pod's, so pods that number them differently have different ones.
    fn policy(&mut self, direction: Direction, policy: &Policy, rules: &[Rule], pod: &Pod) -> String {
        let mut numbers = BTreeSet::new();
        if direction == Direction::Ingress {
            for port in rules.iter().flat_map(|rule| &rule.ports) {
                if let PortNumber::Named(wanted) = &port.number {
                    numbers.extend(
                        pod.ports.iter().filter(|(name, protocol, _)| name == wanted && *protocol == port.protocol),
                    );
                }
            }
        }
        let chain = name("MUSSEL-NPR-", &format!("{direction:?} {}/{} {numbers:?}", policy.namespace, policy.name));
        if self.chains.contains_key(&chain) {
            return chain;
        }
        self.chains.insert(chain.clone(), Vec::new());
        for rule in rules {
            let peers = match rule.peers.is_empty() {
                true => None,
                false => Some(self.peers(direction, policy, &rule.peers)),
            };
            let verdict = peers.map_or_else(|| PASS.to_owned(), |peers| format!("-j {peers}"));
            if rule.ports.is_empty() {
                push(&mut self.chains, &chain, verdict.clone());
            }
            for port in &rule.ports {
                match (&port.number, direction) {
                    (PortNumber::Any, _) => push(&mut self.chains, &chain, format!("-p {} {verdict}", port.protocol)),
                    (PortNumber::Range(first, last), _) => {
                        push(&mut self.chains, &chain, format!("{} {verdict}", to_port(port.protocol, *first, *last)));
                    }
                    (PortNumber::Named(wanted), Direction::Ingress) => {
                        for (_, protocol, number) in
                            numbers.iter().filter(|(name, protocol, _)| name == wanted && *protocol == port.protocol)
                        {
                            push(
                                &mut self.chains,
                                &chain,
                                format!("{} {verdict}", to_port(protocol, *number, *number)),
                            );
                        }
                    }
                    (PortNumber::Named(wanted), Direction::Egress) => {
                        for (number, peers) in self.named(policy, rule, port, wanted) {
                            let to = to_port(port.protocol, number, number);
                            push(&mut self.chains, &chain, format!("{to} -j {peers}"));
                        }
                    }
                }
            }
        }
        chain
    }

    /// For a named port of egress: by number, those peers that call this number so. Addresses that are no pod's have no names.
    fn named(&mut self, policy: &Policy, rule: &Rule, port: &Port, wanted: &str) -> BTreeMap<u16, String> {
        let mut by_number: BTreeMap<u16, Vec<Ipv4Addr>> = BTreeMap::new();
        for pod in self.pods {
            let is_peer =
                rule.peers.is_empty() || rule.peers.iter().any(|peer| peer.is(pod, &policy.namespace, self.namespaces));
            let number = pod.ports.iter().find(|(name, protocol, _)| name == wanted && *protocol == port.protocol);
            if let (true, Some((_, _, number))) = (is_peer, number) {
                by_number.entry(*number).or_default().push(pod.ip);
            }
        }
        let chain = |(number, addresses): (u16, Vec<Ipv4Addr>)| {
            let peers: Vec<String> = addresses.iter().map(|ip| format!("-d {ip}/32 {PASS}")).collect();
            let what = format!("{} {:?} {wanted} {number}", policy.namespace, rule.peers);
            let chain = name("MUSSEL-NPP-", &what);
            self.chains.insert(chain.clone(), peers);
            (number, chain)
        };
        by_number.into_iter().map(chain).collect()
    }

    /// The chain that marks what comes from (or goes to) one of the peers.
    fn peers(&mut self, direction: Direction, policy: &Policy, peers: &[Peer]) -> String {
        let own = peers.iter().any(|peer| matches!(peer, Peer::Pods { namespaces: None, .. }));
        let namespace = if own { policy.namespace.as_str() } else { "" };
        let chain = name("MUSSEL-NPP-", &format!("{direction:?} {namespace} {peers:?}"));
        if self.chains.contains_key(&chain) {
            return chain;
        }
        let flag = flag(direction);
        let mut rules = Vec::new();
        for peer in peers {
            let Peer::Block { cidr, except } = peer else { continue };
            if except.is_empty() {
                rules.push(format!("{flag} {cidr} {PASS}"));
                continue;
            }
            let block = name("MUSSEL-NPB-", &format!("{direction:?} {cidr} {except:?}"));
            let mut inside: Vec<String> = except.iter().map(|cidr| format!("{flag} {cidr} -j RETURN")).collect();
            inside.push(PASS.to_owned());
            self.chains.insert(block.clone(), inside);
            rules.push(format!("{flag} {cidr} -j {block}"));
        }
        let meant = |pod: &&Pod| peers.iter().any(|peer| peer.is(pod, &policy.namespace, self.namespaces));
        rules.extend(self.pods.iter().filter(meant).map(|pod| format!("{flag} {}/32 {PASS}", pod.ip)));
        self.chains.insert(chain.clone(), rules);
        chain
    }
}

/// How a packet of the pod itself is matched.
fn own_flag(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "-d",
        Direction::Egress => "-s",
    }
}

/// How a packet's peer, in this direction, is matched.
fn flag(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "-s",
        Direction::Egress => "-d",
    }
}

fn to_port(protocol: &str, first: u16, last: u16) -> String {
    let ports = if first == last { first.to_string() } else { format!("{first}:{last}") };
    match protocol {
        // Kernels without the match for SCTP itself have this one.
        "sctp" => format!("-p sctp -m multiport --dports {ports}"),
        _ => format!("-p {protocol} -m {protocol} --dport {ports}"),
    }
}

fn comment(text: &str) -> String {
    // Names are lower case ASCII.
    format!("-m comment --comment \"{}\"", text.get(..COMMENT_MAX).unwrap_or(text))
}

/// A name of at most 28 characters (iptables' limit) that is the same after a restart.
fn name(prefix: &str, what: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(what.as_bytes());
    let hash: String = digest.iter().take(16).map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect();
    format!("{prefix}{hash}")
}
