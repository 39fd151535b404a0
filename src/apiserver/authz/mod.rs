//! May this user do that? A chain of two: the node authorizer for kubelets, then RBAC. `system:masters` may all.
//!
//! Both answer from indexes that follow the store, so that a request costs no decoding; see [`follow`].

mod escalation;
mod follow;
mod node;
mod rbac;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use mussel_store::ReadError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::encryption::Storage;
use crate::handler::{RequestInfo, UserInfo};
use crate::request::Query;
use crate::status::Status;

pub use node::node_rules;
pub use rbac::{RbacIndex, Rule, Subject};

/// Who is above the rules.
pub const MASTERS: &str = "system:masters";

/// What is asked for: the fields of a SubjectAccessReview.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub user: UserInfo,
    pub verb: String,
    pub is_resource: bool,
    pub namespace: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// The raw field selector of a list, watch or deletecollection.
    pub field_selector: String,
    /// Of non-resource requests.
    pub path: String,
}

impl Attributes {
    pub fn of(user: &UserInfo, info: &RequestInfo, query: &Query) -> Self {
        let selects = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
        let field_selector = if selects { query.get("fieldSelector").unwrap_or_default() } else { "" };
        Self {
            user: user.clone(),
            verb: info.verb.clone(),
            is_resource: info.is_resource,
            namespace: info.namespace.clone(),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            name: info.name.clone(),
            field_selector: field_selector.to_owned(),
            path: info.path.clone(),
        }
    }

    /// For a check of one verb on one resource, beside the request itself.
    pub fn resource(user: &UserInfo, verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> Self {
        Self {
            user: user.clone(),
            verb: verb.to_owned(),
            is_resource: true,
            namespace: namespace.to_owned(),
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            ..Self::default()
        }
    }

    fn combined_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// The refusal of this request, in upstream's words.
    pub fn forbidden(&self, reason: &str) -> Status {
        let user = &self.user.name;
        let mut why = if !self.is_resource {
            format!("User {user:?} cannot {} path {:?}", self.verb, self.path)
        } else {
            let place = if self.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {:?}", self.namespace)
            };
            let resource = self.combined_resource();
            format!("User {user:?} cannot {} resource {resource:?} in API group {:?} {place}", self.verb, self.group)
        };
        if !reason.is_empty() {
            why = format!("{why}: {reason}");
        }
        Status::forbidden(&self.group, &self.resource, &self.name, &why)
    }
}

/// The answer of an access review.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
}

/// A group with a leader tells a server that starts what it lacks within this.
const START_RETRY_SECONDS: u32 = 1;

/// Cheap to share; a clone answers from the same indexes.
#[derive(Clone)]
pub struct Authorizer {
    store: Storage,
    rbac: Arc<RwLock<RbacIndex>>,
    nodes: Arc<RwLock<node::NodeIndex>>,
    complete: Arc<AtomicBool>,
}

impl Authorizer {
    pub fn new(store: Storage) -> Self {
        Self { store, rbac: Arc::default(), nodes: Arc::default(), complete: Arc::default() }
    }

    /// From now on the rules are as new as the group's: what they do not allow is forbidden.
    pub fn complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Reads the indexes from the store, and keeps them up to date by tasks on `tasks` until `stop`.
    ///
    /// # Errors
    /// When the store cannot be read; nothing was started then.
    pub async fn start(&self, tasks: &TaskTracker, stop: &CancellationToken) -> Result<(), ReadError> {
        for kind in rbac::KINDS {
            let index = Arc::clone(&self.rbac);
            let prefix = format!("/registry/{}/", kind.qualified());
            let sink = move |change: follow::Change<'_>| {
                let mut index = index.write().unwrap_or_else(PoisonError::into_inner);
                match change {
                    follow::Change::Reset => index.clear(kind),
                    follow::Change::Put(key, value) => index.put(kind, key, value),
                    follow::Change::Delete(key) => index.remove(kind, key),
                    follow::Change::Done => index.aggregate(),
                }
            };
            follow::follow(self.store.clone(), prefix, sink, tasks, stop.clone()).await?;
        }
        let index = Arc::clone(&self.nodes);
        let sink = move |change: follow::Change<'_>| {
            let mut index = index.write().unwrap_or_else(PoisonError::into_inner);
            match change {
                follow::Change::Reset => index.clear(),
                follow::Change::Put(key, value) => index.put(key, value),
                follow::Change::Delete(key) => index.remove(key),
                follow::Change::Done => {}
            }
        };
        follow::follow(self.store.clone(), "/registry/pods/".to_owned(), sink, tasks, stop.clone()).await
    }

    /// Decides one request.
    pub async fn authorize(&self, attributes: &Attributes) -> Decision {
        if attributes.user.in_group(MASTERS) {
            return Decision { allowed: true, reason: String::new() };
        }
        let mut node_reason = String::new();
        if let Some(node) = attributes.user.node_name() {
            let snapshot = self.store.snapshot(mussel_store::Freshness::Local).await.ok();
            let index = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
            match index.authorize(node, attributes, snapshot.as_ref()) {
                Ok(()) => return Decision { allowed: true, reason: String::new() },
                Err(reason) => node_reason = reason,
            }
        }
        let mut decision = self.with_rbac(|index| index.authorize(attributes));
        if !decision.allowed && !node_reason.is_empty() {
            decision.reason =
                if decision.reason.is_empty() { node_reason } else { format!("{node_reason}, {}", decision.reason) };
        }
        decision
    }

    /// As [`Authorizer::authorize`], with the refusal as an error.
    ///
    /// # Errors
    /// `403 Forbidden` in upstream's words; `503` while this server has not heard yet what its group knows.
    pub async fn require(&self, attributes: &Attributes) -> Result<(), Status> {
        let decision = self.authorize(attributes).await;
        if decision.allowed {
            return Ok(());
        }
        if !self.complete.load(Ordering::Acquire) {
            return Err(Status::unavailable("the API server is starting and does not know yet who may do what")
                .with_retry_after(START_RETRY_SECONDS));
        }
        Err(attributes.forbidden(&decision.reason))
    }

    /// All rules that hold for `user` in `namespace` (empty: cluster-wide ones only), for SelfSubjectRulesReview.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        if user.in_group(MASTERS) {
            return vec![Rule::everything(), Rule::every_path()];
        }
        self.with_rbac(|index| index.rules_for(user, namespace))
    }

    fn with_rbac<T>(&self, ask: impl FnOnce(&RbacIndex) -> T) -> T {
        ask(&self.rbac.read().unwrap_or_else(PoisonError::into_inner))
    }
}
