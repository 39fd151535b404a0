//! Gives every Node its part of the Pod addresses.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Mutex;

use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use mussel_client::{EventType, Informer, Recorder, WorkQueue, reference};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow_keys};
use crate::error::{Error, Outcome};

/// An IPv4 network, cut into equal parts for nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    base: u32,
    prefix: u8,
    node_prefix: u8,
}

impl Network {
    /// `None` for text that is no IPv4 network, and for parts bigger than the whole.
    fn parse(cidr: &str, node_prefix: u8) -> Option<Self> {
        let (address, prefix) = cidr.split(',').map(str::trim).find(|c| !c.contains(':'))?.split_once('/')?;
        let (address, prefix): (Ipv4Addr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        if prefix > node_prefix || node_prefix > 32 {
            return None;
        }
        let mask = u32::MAX.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
        Some(Self { base: u32::from(address) & mask, prefix, node_prefix })
    }

    fn parts(&self) -> u64 {
        1 << (self.node_prefix - self.prefix)
    }

    fn part(&self, index: u64) -> String {
        let step = u64::from(self.base) + (index << (32 - self.node_prefix));
        format!("{}/{}", Ipv4Addr::from(u32::try_from(step).unwrap_or(self.base)), self.node_prefix)
    }

    fn first_free(&self, used: &BTreeSet<String>) -> Option<String> {
        (0..self.parts()).map(|index| self.part(index)).find(|cidr| !used.contains(cidr))
    }
}

struct Controller {
    client: Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    network: Network,
    /// Given out in this term; the informer may not show them yet.
    given: Mutex<Vec<(String, String)>>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let config = &context.config;
    let Some(network) = Network::parse(&config.cluster_cidr, config.node_cidr_mask) else {
        tracing::error!(
            cidr = config.cluster_cidr,
            mask = config.node_cidr_mask,
            "cluster cidr cannot be cut into node cidrs"
        );
        return stop.cancelled().await;
    };
    let nodes = context.informers.of::<Node>();
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        recorder: context.recorder("cidrAllocator"),
        nodes: nodes.clone(),
        network,
        given: Mutex::default(),
    };
    tokio::join!(follow_keys(nodes.clone(), queue.clone(), stop.clone()), async {
        tokio::select! {
            () = stop.cancelled() => return,
            () = nodes.synced() => (),
        }
        // One at a time: two passes must not give out the same part.
        control::work("nodeipam", queue.clone(), 1, stop.clone(), |key| controller.reconcile(key)).await;
    });
}

impl Controller {
    async fn reconcile(&self, (_, name): Key) -> Outcome {
        let Some(node) = self.nodes.get("", &name) else {
            self.given.lock().unwrap_or_else(std::sync::PoisonError::into_inner).retain(|(n, _)| *n != name);
            return Ok(None);
        };
        if cidrs(&node).next().is_some() {
            return Ok(None);
        }
        // Read anew, and not from the informer: whoever led before us may have given something out that it does not show yet.
        let api: Api<Node> = Api::all(self.client.clone());
        let nodes = api.list(&ListParams::default()).await?.items;
        if nodes.iter().all(|n| n.metadata.name.as_deref() != Some(&name) || cidrs(n).next().is_some()) {
            return Ok(None);
        }
        let free = {
            let mut given = self.given.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // A Node that was deleted and made again gets what it had.
            given.retain(|(n, cidr)| *n == name || !nodes.iter().any(|node| cidrs(node).any(|used| used == *cidr)));
            let free = choose(self.network, &name, &nodes, &given);
            given.retain(|(n, _)| *n != name);
            given.extend(free.iter().map(|cidr| (name.clone(), cidr.clone())));
            free
        };
        let Some(cidr) = free else {
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            self.recorder.event(reference(&*node), EventType::Normal, "CIDRNotAvailable", message);
            return Err(Error::Unfinished("no free part of the cluster cidr".to_owned()));
        };
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}});
        match api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => Ok(None),
            Err(error) => {
                self.given.lock().unwrap_or_else(std::sync::PoisonError::into_inner).retain(|(n, _)| *n != name);
                Err(error.into())
            }
        }
    }
}

/// A part that no other node has and that none was promised; what `name` itself was promised before, if that is still free.
fn choose(network: Network, name: &str, nodes: &[Node], given: &[(String, String)]) -> Option<String> {
    let others = nodes.iter().filter(|node| node.metadata.name.as_deref() != Some(name)).flat_map(cidrs);
    let promised = given.iter().filter(|(node, _)| node != name).map(|(_, cidr)| cidr.clone());
    let used: BTreeSet<String> = others.chain(promised).collect();
    let before = given.iter().find(|(node, _)| node == name).map(|(_, cidr)| cidr);
    before.filter(|cidr| !used.contains(*cidr)).cloned().or_else(|| network.first_free(&used))
}

fn cidrs(node: &Node) -> impl Iterator<Item = String> + use<> {
    let spec = node.spec.clone().unwrap_or_default();
    spec.pod_cidrs.into_iter().flatten().chain(spec.pod_cidr).filter(|cidr| !cidr.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_given_out_in_order() {
        let network = Network::parse("10.42.7.0/16", 24).unwrap();
        assert_eq!(network.parts(), 256);
        let mut used = BTreeSet::new();
        for expected in ["10.42.0.0/24", "10.42.1.0/24", "10.42.2.0/24"] {
            let part = network.first_free(&used).unwrap();
            assert_eq!(part, expected);
            used.insert(part);
        }
        used.remove("10.42.1.0/24");
        assert_eq!(network.first_free(&used).unwrap(), "10.42.1.0/24");
        let tiny = Network::parse("10.0.0.0/24", 24).unwrap();
        assert_eq!(tiny.first_free(&["10.0.0.0/24".to_owned()].into()), None);
        assert_eq!(Network::parse("10.0.0.0/24", 16), None);
    }

    #[test]
    fn no_two_nodes_get_the_same() {
        let network = Network::parse("10.42.0.0/16", 24).unwrap();
        let node = |name: &str, cidr: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}))
                .unwrap()
        };
        let nodes = [node("a", "10.42.0.0/24"), node("b", "10.42.1.0/24")];
        let promise = |name: &str, cidr: &str| (name.to_owned(), cidr.to_owned());
        let chosen = |name, given: &[(String, String)]| choose(network, name, &nodes, given).unwrap();
        assert_eq!(chosen("c", &[]), "10.42.2.0/24");
        assert_eq!(chosen("c", &[promise("d", "10.42.2.0/24")]), "10.42.3.0/24", "promised to another");
        assert_eq!(chosen("c", &[promise("c", "10.42.7.0/24")]), "10.42.7.0/24", "promised to it before");
        assert_eq!(chosen("c", &[promise("c", "10.42.1.0/24")]), "10.42.2.0/24", "somebody else gave it away");
    }
}
