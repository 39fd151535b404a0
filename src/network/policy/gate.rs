//! Holds a new pod back until the policies that are about it are in force, and knows who the pods of this node are.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use mussel_client::informer::Informer;
use tokio::sync::watch;
use tokio::time;

use super::plan::Labels;
use crate::pods::Attachment;

/// Loading rules takes well under a second; what does not happen within this does not happen.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// A pod of this node, as its sandbox was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: Labels,
    pub ip: Ipv4Addr,
}

/// By sandbox.
pub type LocalPods = BTreeMap<String, LocalPod>;

#[derive(Debug, thiserror::Error)]
#[error("the network policies of namespace {namespace} are not in force yet")]
pub struct NotInForce {
    namespace: String,
}

#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    policies: Informer<NetworkPolicy>,
    attached: watch::Sender<Attached>,
    /// The last change of `attached` that the rules in force take into account.
    in_force: watch::Sender<Option<u64>>,
}

#[derive(Clone, Debug, Default)]
pub struct Attached {
    pub pods: Arc<LocalPods>,
    pub change: u64,
}

impl Gate {
    pub fn new(policies: Informer<NetworkPolicy>) -> Self {
        let (attached, in_force) = (watch::Sender::new(Attached::default()), watch::Sender::new(None));
        Self(Arc::new(Inner { policies, attached, in_force }))
    }

    pub fn attach(&self, attachment: &Attachment) {
        // Pods have addresses of one family.
        let IpAddr::V4(ip) = attachment.ip else { return };
        let owner = &attachment.owner;
        let pod = LocalPod {
            namespace: owner.namespace.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            labels: owner.labels.clone(),
            ip,
        };
        self.change(|pods| drop(pods.insert(attachment.sandbox_id.clone(), pod)));
    }

    pub fn detach(&self, sandbox_id: &str) {
        self.change(|pods| drop(pods.remove(sandbox_id)));
    }

    fn change(&self, change: impl FnOnce(&mut LocalPods)) {
        self.0.attached.send_modify(|attached| {
            change(Arc::make_mut(&mut attached.pods));
            attached.change += 1;
        });
    }

    /// Returns when the rules for a pod that was attached are in force. At once when its namespace has no policies.
    ///
    /// # Errors
    /// When they are not in time: rather no pod than one that everybody reaches.
    pub async fn covered(&self, namespace: &str) -> Result<(), NotInForce> {
        let wanted = self.0.attached.borrow().change;
        if time::timeout(WAIT_MAX, self.0.policies.synced()).await.is_err() {
            // A node that has ever heard of policies knows them from its disk.
            tracing::warn!(
                namespace,
                "no server has told yet whether there are network policies; starting a pod without"
            );
            return Ok(());
        }
        if self.0.policies.list_in(namespace).is_empty() {
            return Ok(());
        }
        let mut in_force = self.0.in_force.subscribe();
        let reached = in_force.wait_for(|done| done.is_some_and(|done| done >= wanted));
        match time::timeout(WAIT_MAX, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(NotInForce { namespace: namespace.to_owned() }),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Attached> {
        self.0.attached.subscribe()
    }

    pub(super) fn attached(&self) -> Attached {
        self.0.attached.borrow().clone()
    }

    pub(super) fn set_in_force(&self, change: Option<u64>) {
        self.0.in_force.send_replace(change);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pods::Owner;

    fn gate() -> Gate {
        let policy = json!({"metadata": {"name": "deny", "namespace": "a"}, "spec": {"podSelector": {}}});
        Gate::new(Informer::fixed([serde_json::from_value(policy).unwrap()]))
    }

    fn attachment(namespace: &str, sandbox_id: &str) -> Attachment {
        Attachment {
            sandbox_id: sandbox_id.to_owned(),
            ip: "10.42.0.2".parse().unwrap(),
            mac: String::new(),
            veth: String::new(),
            host_ports: Vec::new(),
            owner: Owner { namespace: namespace.to_owned(), ..Owner::default() },
        }
    }

    #[tokio::test]
    async fn a_pod_waits_for_the_rules_about_it() {
        let gate = gate();
        gate.attach(&attachment("b", "b"));
        gate.covered("b").await.unwrap();
        gate.attach(&attachment("a", "a"));
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.covered("a").await }
        });
        // Rules of before the pod was attached are not enough.
        gate.set_in_force(Some(1));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        gate.set_in_force(Some(gate.attached().change));
        waiting.await.unwrap().unwrap();
        gate.detach("a");
        assert_eq!(gate.attached().pods.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn rather_no_pod_than_one_without_its_policies() {
        let gate = gate();
        gate.attach(&attachment("a", "a"));
        let refused = gate.covered("a").await.unwrap_err();
        assert_eq!(refused.to_string(), "the network policies of namespace a are not in force yet");
    }
}
