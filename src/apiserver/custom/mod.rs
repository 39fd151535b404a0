//! CustomResourceDefinitions in force.
//!
//! - [`follow`]: every server follows the CRDs in the store by its own watch, and replaces the custom part of its catalog.
//! - [`conditions`]: what the conditions of a CRD should say. Pure.
//! - [`keeper`]: on the leader, writes conditions and accepted names, and removes the objects of deleted CRDs. Acceptance of
//!   names is a transaction with all CRDs of the group among its preconditions, so it is right whoever does it.
//! - [`convert`]: objects between the versions of their kind, and what a changed schema makes of stored ones.
//! - [`webhook`]: conversion by somebody else's program.
//! - [`rules`]: where rules in CEL will be checked.
//!
//! What holds: a write of a custom object has the revision of its CRD among its preconditions. So nothing is written by a
//! schema that is no longer in force, and nothing appears after its CRD is gone, whichever server the write goes through.
//! "Not found" for a resource is said only after a look into the store: a server that lags behind catches up first.

pub mod conditions;
pub mod convert;
mod follow;
mod keeper;
pub mod rules;
mod webhook;

use std::sync::Arc;

use bytes::Bytes;
use mussel_api::custom::{self, Custom, Definition, Names};
use mussel_api::object::ObjectExt;
use mussel_api::resource::Resource;
use mussel_api::validation::{self, Approval};
use mussel_store::Freshness;
use serde_json::Value;

pub use self::follow::start as start_following;
pub use self::keeper::run as run_keeper;

use crate::Context;
use crate::registry::key;
use crate::status::Status;

/// The resource that CRDs themselves are.
pub const RESOURCE: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// Holds up the deletion of a CRD until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// A CRD, as far as the server has to know it without looking into the store.
pub struct Entry {
    pub name: String,
    /// Of the CRD object.
    pub revision: u64,
    pub group: String,
    /// What it wants to be called, and what it is.
    pub names: Names,
    pub accepted: Names,
    pub status: Value,
    pub approval: Approval,
    pub deleting: bool,
    pub finalizers: Vec<String>,
    /// What is in force; `None` until the CRD is established.
    pub definition: Option<Arc<Definition>>,
    /// One for each version, served or not.
    rows: Vec<Arc<Resource>>,
}

impl Entry {
    /// Reads a stored CRD. A definition that is still the same is taken over from `before`, with all that was made of it.
    pub fn new(stored: &Bytes, revision: u64, before: Option<&Self>) -> Option<Self> {
        let crd: Value = serde_json::from_slice(stored).ok()?;
        let name = crd.name().to_owned();
        let mut definition = None;
        if conditions::is_true(&crd["status"], "Established") {
            match Definition::of(&crd, stored.clone(), revision) {
                Ok(new) => {
                    let known = before.and_then(|before| before.definition.as_ref());
                    let known = known.filter(|known| known.fingerprint == new.fingerprint);
                    definition = Some(known.map_or_else(|| Arc::new(new), Arc::clone));
                }
                Err(error) => tracing::error!(crd = name, %error, "a custom resource definition is left out"),
            }
        }
        let deleting = crd.is_deleting();
        let rows = definition.iter().flat_map(|definition| custom::rows(definition, revision, deleting));
        Some(Self {
            revision,
            group: crd.str_at("spec.group").to_owned(),
            names: Names::of(&crd["spec"]["names"]),
            accepted: Names::of(&crd["status"]["acceptedNames"]),
            status: crd["status"].clone(),
            approval: validation::crd_approval(&crd),
            deleting,
            finalizers: crd.finalizers().into_iter().map(str::to_owned).collect(),
            rows: rows.map(Arc::new).collect(),
            definition,
            name,
        })
    }

    pub fn served(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.rows.iter().filter(|row| row.custom.as_ref().is_some_and(|custom| custom.version().served))
    }

    /// The row of the version that objects are stored in.
    pub fn storage_row(&self) -> Option<&Arc<Resource>> {
        self.rows.iter().find(|row| row.custom.as_ref().is_some_and(Custom::is_storage))
    }
}

/// The key of a CRD.
pub fn crd_key(name: &str) -> Bytes {
    key::object(RESOURCE, "", name)
}

/// The row of a resource; where the catalog has none, after a look into the store.
///
/// # Errors
/// 404 when there is none.
pub async fn find(context: &Context, group: &str, version: &str, plural: &str) -> Result<Arc<Resource>, Status> {
    if let Some(row) = context.catalog.by_plural(group, version, plural) {
        return Ok(row);
    }
    if !group.contains('.') {
        return Err(Status::unknown_resource());
    }
    renew(context, &format!("{plural}.{group}")).await?;
    context.catalog.by_plural(group, version, plural).ok_or_else(Status::unknown_resource)
}

/// Waits until the catalog has the CRD of this name as the store has it now.
///
/// # Errors
/// When the store does not answer, or the catalog does not come that far.
pub async fn renew(context: &Context, crd: &str) -> Result<(), Status> {
    let snapshot = context.store.snapshot(Freshness::Linearizable).await?;
    match snapshot.get(&crd_key(crd)) {
        Some(versioned) => context.catalog.reach(crd, versioned.revision.0).await,
        None => Ok(()),
    }
}
