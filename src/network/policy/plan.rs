//! Decides who may talk to this node's pods, and to whom they may. Pure: equal objects give equal plans.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod as PodObject};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as LabelSelectorSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mussel_api::selector::LabelSelector;

use super::gate::LocalPods;
use crate::cidr::Cidr;

pub type Labels = BTreeMap<String, String>;
/// Labels of namespaces, by name.
pub type Namespaces = BTreeMap<String, Labels>;

/// A pod with an address of its own. Those in the node's network are the node, and no policy is about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub ip: Ipv4Addr,
    /// Runs on this node.
    pub local: bool,
    /// Ports with names: name, protocol, number.
    pub ports: Vec<(String, &'static str, u16)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Egress,
    Ingress,
}

#[derive(Debug)]
pub struct Policy {
    pub namespace: String,
    pub name: String,
    selector: LabelSelector,
    /// `None`: says nothing about the direction. An empty list: nothing may pass.
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

#[derive(Debug)]
pub struct Rule {
    /// Empty: every port and protocol.
    pub ports: Vec<Port>,
    /// Empty: everybody.
    pub peers: Vec<Peer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub protocol: &'static str,
    pub number: PortNumber,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortNumber {
    Any,
    Range(u16, u16),
    Named(String),
}

#[derive(Debug)]
pub enum Peer {
    Pods {
        /// `None`: the policy's own.
        namespaces: Option<LabelSelector>,
        pods: LabelSelector,
    },
    Block {
        cidr: Cidr,
        except: Vec<Cidr>,
    },
}

impl Policy {
    /// The rules for a direction, if the policy is about this pod in that direction.
    pub fn about(&self, pod: &Pod, direction: Direction) -> Option<&[Rule]> {
        let rules = match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        let rules = rules.as_deref()?;
        (self.namespace == pod.namespace && self.selector.matches_map(&pod.labels)).then_some(rules)
    }
}

impl Peer {
    /// Whether the pod is meant, as a peer of a policy in `namespace`.
    pub fn is(&self, pod: &Pod, namespace: &str, namespaces: &Namespaces) -> bool {
        let Self::Pods { namespaces: chosen, pods } = self else { return false };
        let there = match chosen {
            None => pod.namespace == namespace,
            Some(selector) => namespaces.get(&pod.namespace).is_some_and(|labels| selector.matches_map(labels)),
        };
        there && pods.matches_map(&pod.labels)
    }
}

pub fn policies(objects: &[Arc<NetworkPolicy>]) -> Vec<Policy> {
    let mut policies: Vec<Policy> = objects.iter().filter_map(|object| policy(object)).collect();
    policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    policies
}

fn policy(object: &NetworkPolicy) -> Option<Policy> {
    let spec = object.spec.as_ref()?;
    let named = |wanted: &str| spec.policy_types.iter().flatten().any(|given| given == wanted);
    // Defaulted when written (Ingress, and Egress when there are egress rules); so it is for one that is not.
    let defaulted = spec.policy_types.as_ref().is_none_or(Vec::is_empty);
    let rule = |ports: &Option<Vec<NetworkPolicyPort>>, peers: &Option<Vec<NetworkPolicyPeer>>| Rule {
        ports: ports.iter().flatten().map(port).collect(),
        peers: peers.iter().flatten().filter_map(peer).collect(),
    };
    // A rule whose peers are all of a kind that is not known here must not become one for everybody.
    let known = |rule: &Rule, peers: &Option<Vec<NetworkPolicyPeer>>| {
        !rule.peers.is_empty() || peers.as_ref().is_none_or(Vec::is_empty)
    };
    let ingress = spec.ingress.iter().flatten().map(|given| (rule(&given.ports, &given.from), &given.from));
    let egress = spec.egress.iter().flatten().map(|given| (rule(&given.ports, &given.to), &given.to));
    let keep = |(rule, peers): (Rule, &Option<Vec<NetworkPolicyPeer>>)| known(&rule, peers).then_some(rule);
    Some(Policy {
        namespace: object.metadata.namespace.clone()?,
        name: object.metadata.name.clone()?,
        selector: spec.pod_selector.as_ref().map_or_else(LabelSelector::everything, selector),
        ingress: (defaulted || named("Ingress")).then(|| ingress.filter_map(keep).collect()),
        egress: (named("Egress") || defaulted && spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()))
            .then(|| egress.filter_map(keep).collect()),
    })
}

/// A selector that cannot be read picks nothing: validation keeps such ones out.
fn selector(spec: &LabelSelectorSpec) -> LabelSelector {
    LabelSelector::from_spec(spec).unwrap_or_else(|_| LabelSelector::nothing())
}

fn port(port: &NetworkPolicyPort) -> Port {
    let number = |number: i32| u16::try_from(number).unwrap_or_default();
    Port {
        protocol: protocol(port.protocol.as_deref()),
        number: match &port.port {
            None => PortNumber::Any,
            Some(IntOrString::Int(first)) => PortNumber::Range(number(*first), number(port.end_port.unwrap_or(*first))),
            Some(IntOrString::String(name)) => PortNumber::Named(name.clone()),
        },
    }
}

/// `None` for addresses of a family that the pod network does not have.
fn peer(peer: &NetworkPolicyPeer) -> Option<Peer> {
    if let Some(block) = &peer.ip_block {
        let v4 = |text: &str| text.parse::<Cidr>().ok().filter(|cidr| cidr.address().is_ipv4());
        let except = block.except.iter().flatten().filter_map(|text| v4(text)).collect();
        return Some(Peer::Block { cidr: v4(&block.cidr)?, except });
    }
    Some(Peer::Pods {
        namespaces: peer.namespace_selector.as_ref().map(selector),
        pods: peer.pod_selector.as_ref().map_or_else(LabelSelector::everything, selector),
    })
}

fn protocol(text: Option<&str>) -> &'static str {
    match text {
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        _ => "tcp",
    }
}

pub fn namespaces(objects: &[Arc<Namespace>]) -> Namespaces {
    let labels = |namespace: &Arc<Namespace>| {
        Some((namespace.metadata.name.clone()?, namespace.metadata.labels.clone().unwrap_or_default()))
    };
    objects.iter().filter_map(labels).collect()
}

/// All pods of the cluster that have an address: as the API knows them, and those of this node as they are attached, which
/// is known before the API hears of it and also when no server answers.
pub fn pods(node_name: &str, objects: &[Arc<PodObject>], attached: &LocalPods) -> Vec<Pod> {
    let mut by_ip: BTreeMap<Ipv4Addr, Pod> = BTreeMap::new();
    let mut by_name: BTreeMap<(&str, &str), &PodObject> = BTreeMap::new();
    for object in objects {
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        by_name.insert((namespace, object.metadata.name.as_deref().unwrap_or_default()), object);
        let (Some(spec), Some(status)) = (&object.spec, &object.status) else { continue };
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let Some(ip) = status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()) else { continue };
        if over || spec.host_network == Some(true) {
            continue;
        }
        let local = spec.node_name.as_deref() == Some(node_name);
        // Of two that claim an address, the one that goes has only not been forgotten yet.
        if object.metadata.deletion_timestamp.is_some() && by_ip.contains_key(&ip) {
            continue;
        }
        by_ip.insert(ip, pod(object, ip, local));
    }
    for attached in attached.values() {
        let object = by_name.get(&(attached.namespace.as_str(), attached.name.as_str()));
        let found = match object.filter(|object| object.metadata.uid.as_deref() == Some(attached.uid.as_str())) {
            Some(object) => pod(object, attached.ip, true),
            None => Pod {
                namespace: attached.namespace.clone(),
                name: attached.name.clone(),
                labels: attached.labels.clone(),
                ip: attached.ip,
                local: true,
                ports: Vec::new(),
            },
        };
        by_ip.insert(attached.ip, found);
    }
    by_ip.into_values().collect()
}

fn pod(object: &PodObject, ip: Ipv4Addr, local: bool) -> Pod {
    let spec = object.spec.iter();
    // Containers that are started before the others and stay have ports as well.
    let containers = spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
        let number = u16::try_from(port.container_port).ok()?;
        Some((port.name.clone().filter(|name| !name.is_empty())?, protocol(port.protocol.as_deref()), number))
    });
    Pod {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        ip,
        local,
        ports: ports.collect(),
    }
}
