//! What the scheduler knows of nodes and of the pods on them, those included that it has only just sent there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::queue::priority;
use crate::resources::{self, Resources};
use crate::term::{Namespaces, Terms};

/// A port of the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn clashes(&self, other: &Self) -> bool {
        const ANY: [&str; 2] = ["", "0.0.0.0"];
        let any = |ip: &str| ANY.contains(&ip);
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

/// A pod that takes room on a node.
#[derive(Clone, Debug)]
pub struct Placed {
    pub pod: Arc<Pod>,
    pub requests: Resources,
    pub scoring: (i64, i64),
    pub host_ports: Vec<HostPort>,
    pub terms: Option<Box<Terms>>,
}

impl Placed {
    pub fn new(pod: Arc<Pod>) -> Self {
        Self {
            requests: resources::of_pod(&pod),
            scoring: resources::for_scoring(&pod),
            host_ports: host_ports(&pod),
            terms: Terms::of(&pod),
            pod,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// `None` while pods are known of a node that is not.
    pub node: Option<Arc<Node>>,
    pub allocatable: Resources,
    pub requested: Resources,
    pub scoring: (i64, i64),
    /// By uid.
    pub pods: BTreeMap<String, Placed>,
}

impl NodeInfo {
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.as_ref()?.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    pub fn name(&self) -> &str {
        self.node.as_ref().and_then(|node| node.metadata.name.as_deref()).unwrap_or_default()
    }

    pub fn add(&mut self, placed: Placed) {
        self.requested.add(&placed.requests);
        self.scoring = (self.scoring.0 + placed.scoring.0, self.scoring.1 + placed.scoring.1);
        self.pods.insert(uid(&placed.pod).to_owned(), placed);
    }

    pub fn remove(&mut self, uid: &str) -> Option<Placed> {
        let placed = self.pods.remove(uid)?;
        self.requested.subtract(&placed.requests);
        self.scoring = (self.scoring.0 - placed.scoring.0, self.scoring.1 - placed.scoring.1);
        Some(placed)
    }
}

#[derive(Default)]
pub struct Cluster {
    pub nodes: BTreeMap<String, NodeInfo>,
    /// On which node each pod is.
    places: HashMap<String, String>,
    pub namespaces: Namespaces,
    /// Pods for which others have been told to leave a node, by uid.
    nominated: HashMap<String, (String, Placed)>,
}

impl Cluster {
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let info = self.nodes.entry(name).or_default();
        info.allocatable = Resources::of(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
        info.node = Some(node);
    }

    pub fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.nodes.get_mut(name) {
            info.node = None;
            if info.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Puts the pod on the node, wherever it was before.
    pub fn place(&mut self, pod: Arc<Pod>, node: &str) {
        self.take_away(uid(&pod));
        self.nominated.remove(uid(&pod));
        self.places.insert(uid(&pod).to_owned(), node.to_owned());
        self.nodes.entry(node.to_owned()).or_default().add(Placed::new(pod));
    }

    /// Tells whether the pod took room anywhere.
    pub fn take_away(&mut self, uid: &str) -> bool {
        let Some(node) = self.places.remove(uid) else { return false };
        if let Some(info) = self.nodes.get_mut(&node) {
            info.remove(uid);
            if info.node.is_none() && info.pods.is_empty() {
                self.nodes.remove(&node);
            }
        }
        true
    }

    pub fn placed(&self, uid: &str) -> Option<&Placed> {
        self.nodes.get(self.places.get(uid)?)?.pods.get(uid)
    }

    /// Keeps room on the node from pods that are less important than this one.
    pub fn nominate(&mut self, pod: Arc<Pod>, node: &str) {
        self.nominated.insert(uid(&pod).to_owned(), (node.to_owned(), Placed::new(pod)));
    }

    pub fn forget_nomination(&mut self, uid: &str) -> Option<Placed> {
        self.nominated.remove(uid).map(|(_, placed)| placed)
    }

    pub fn nomination(&self, uid: &str) -> Option<&str> {
        self.nominated.get(uid).map(|(node, _)| node.as_str())
    }

    /// Those less important than `than` that the node was promised to.
    pub fn less_nominated(&self, node: &str, than: &Pod) -> Vec<Arc<Pod>> {
        let theirs = self.nominated.values().filter(|(on, _)| on == node);
        theirs
            .filter(|(_, placed)| priority(&placed.pod) < priority(than))
            .map(|(_, placed)| placed.pod.clone())
            .collect()
    }

    /// The node as it will be when those have come to it that it was promised to and that go before `pod`.
    pub fn as_promised(&self, node: &NodeInfo, pod: &Pod) -> Option<NodeInfo> {
        let others = self.nominated.iter().filter(|(other, (on, placed))| {
            on == node.name() && other.as_str() != uid(pod) && priority(&placed.pod) >= priority(pod)
        });
        let mut promised = None;
        for (_, (_, placed)) in others {
            promised.get_or_insert_with(|| node.clone()).add(placed.clone());
        }
        promised
    }

    /// The nodes that exist.
    pub fn known(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|info| info.node.is_some())
    }
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let containers = pod.spec.iter().flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().chain(sidecars)
    });
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let taken = ports.filter_map(|port| {
        let number = port.host_port.filter(|port| *port > 0)?;
        Some(HostPort {
            ip: port.host_ip.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: number,
        })
    });
    taken.collect()
}
