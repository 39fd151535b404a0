//! Admission by what is in the store: webhooks and policies.
//!
//! The order is upstream's: mutating policies, then mutating webhooks by the name of their configuration; after
//! validation, validating policies, then validating webhooks side by side. Configurations are read from the snapshot the
//! request is decided on, so that a request after a write of a configuration meets it, on every server; parsed and
//! compiled ones are kept by revision ([`follow`]).
//!
//! Objects of this machinery are never subject to it: what locks everybody out can always be removed.

mod asked;
pub mod compiled;
mod facts;
mod follow;
mod mutating;
mod policies;
mod rules;
mod validating;
mod webhooks;

use std::collections::HashSet;
use std::sync::Arc;

use mussel_api::custom;
use mussel_api::decode::{self, Strictness};
use mussel_api::resource::{self, Resource};
use mussel_api::schema::{self, Schema};
use serde_json::Value;

use self::asked::Asked;
use self::mutating::Mutating;
use self::validating::Validating;
use self::webhooks::Webhooks;
use super::{Attributes, Operation};
use crate::status::Status;

/// Who decides beside the built-in plugins.
pub struct Dynamic {
    webhooks: Webhooks,
    mutating: Mutating,
    validating: Validating,
    mutating_policies: bool,
    validating_policies: bool,
    mutating_webhooks: bool,
    validating_webhooks: bool,
}

/// What one request has met so far, over the two rounds of mutation.
#[derive(Default)]
pub struct Memory {
    /// The second round: only those that asked for it are called again.
    again: bool,
    /// Who is to be called again when something changes after it.
    reinvocable: HashSet<String>,
    /// Who is called again.
    due: HashSet<String>,
    changed: bool,
    asked: bool,
    /// The object at the end of the first round.
    output: Option<Value>,
}

impl Memory {
    /// Whether `id` is called in this round.
    fn calls(&self, id: &str) -> bool {
        !self.again || self.due.contains(id)
    }

    /// Whether anybody was called.
    pub fn asked(&self) -> bool {
        self.asked
    }

    /// `id` was called.
    fn called(&mut self, id: &str, reinvocable: bool, changed: bool) {
        self.asked = true;
        if changed {
            self.changed = true;
            self.due.extend(self.reinvocable.drain());
        }
        if reinvocable {
            self.reinvocable.insert(id.to_owned());
        }
    }

    /// A round begins. What the built-in plugins changed since the last one, those who asked for it see, too.
    fn begin(&mut self, object: &Value) {
        if self.output.take().is_some_and(|output| output != *object) {
            self.due.extend(self.reinvocable.drain());
        }
    }

    /// A round is over. Returns whether there is another one.
    fn turn(&mut self, object: &Value) -> bool {
        let again = self.changed && !self.again;
        if again {
            self.output = Some(object.clone());
        }
        self.again = true;
        self.changed = false;
        again
    }
}

impl Dynamic {
    /// `is_enabled` tells of upstream's plugin names.
    pub fn new(is_enabled: impl Fn(&str) -> bool) -> Self {
        Self {
            webhooks: Webhooks::default(),
            mutating: Mutating::default(),
            validating: Validating::default(),
            mutating_policies: is_enabled("MutatingAdmissionPolicy"),
            validating_policies: is_enabled("ValidatingAdmissionPolicy"),
            mutating_webhooks: is_enabled("MutatingAdmissionWebhook"),
            validating_webhooks: is_enabled("ValidatingAdmissionWebhook"),
        }
    }

    /// Changes `object`. Returns whether a second round is due, before which the built-in plugins run again.
    pub async fn mutate(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Value,
        memory: &mut Memory,
    ) -> Result<bool, Status> {
        if is_exempt(attributes.resource) {
            return Ok(false);
        }
        let view = attributes.view;
        let hooks = self.mutating_webhooks.then(|| self.webhooks.mutating.of(view));
        let hooks = hooks.filter(|hooks| !hooks.is_empty());
        let policies = self.mutating_policies && attributes.operation != Operation::Delete;
        let policies = policies.then(|| self.mutating.of(view)).flatten();
        let policies = policies.filter(|_| !is_review(attributes.resource));
        if hooks.is_none() && policies.is_none() {
            return Ok(false);
        }
        memory.begin(object);
        let shown = show(attributes, object);
        let mut asked = Asked::new(attributes, Some(&shown));
        let mut changed = false;
        if let Some((policies, bindings)) = policies {
            changed |= self.mutating.mutate(&mut asked, &policies, &bindings, memory)?;
        }
        if let Some(hooks) = hooks {
            changed |= self.webhooks.mutate(&mut asked, &hooks, memory).await?;
        }
        if let (true, Some(new)) = (changed, asked.object().cloned()) {
            take(attributes, object, new);
        }
        Ok(memory.turn(object))
    }

    /// Returns whether anybody was asked.
    pub async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<bool, Status> {
        if is_exempt(attributes.resource) {
            return Ok(false);
        }
        let view = attributes.view;
        let hooks = self.validating_webhooks.then(|| self.webhooks.validating.of(view));
        let hooks = hooks.filter(|hooks| !hooks.is_empty());
        let policies = self.validating_policies.then(|| self.validating.of(view)).flatten();
        let policies = policies.filter(|_| !is_review(attributes.resource));
        if hooks.is_none() && policies.is_none() {
            return Ok(false);
        }
        let shown = object.map(|object| show(attributes, object));
        let mut asked = Asked::new(attributes, shown.as_ref());
        let mut any = false;
        if let Some((policies, bindings)) = policies {
            any |= self.validating.validate(&asked, &policies, &bindings)?;
        }
        if let Some(hooks) = hooks {
            any |= self.webhooks.validate(&mut asked, &hooks).await?;
        }
        Ok(any)
    }
}

/// Questions of the machinery itself, which policies are not asked about.
fn is_review(resource: &Resource) -> bool {
    matches!(&*resource.group, "authentication.k8s.io" | "authorization.k8s.io")
}

fn is_exempt(resource: &Resource) -> bool {
    resource.group == "admissionregistration.k8s.io"
}

/// The object as those who are asked see it.
fn show(attributes: &Attributes<'_>, object: &Value) -> Value {
    let mut shown = match attributes.face {
        Some(face) => face.show(object),
        None => object.clone(),
    };
    // The server made this name up, and may make up another.
    if attributes.generated
        && let Some(metadata) = shown.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.remove("name");
    }
    shown
}

/// The inverse of [`show`].
fn take(attributes: &Attributes<'_>, object: &mut Value, mut shown: Value) {
    if attributes.generated && shown["metadata"]["name"].as_str().unwrap_or_default().is_empty() {
        shown["metadata"]["name"] = object["metadata"]["name"].clone();
    }
    match attributes.face {
        Some(face) => face.take(object, &shown),
        None => *object = shown,
    }
}

/// A changed object, as if it had come in this form: types checked, unknown fields gone, defaults set.
fn settle(attributes: &Attributes<'_>, object: Value) -> Result<Value, Status> {
    if let (Some(custom), None) = (&attributes.resource.custom, attributes.face) {
        let props = &custom.compiled().props;
        let mut object = decode::check_custom(object, props, Strictness::Ignore).map_err(Status::internal)?.object;
        custom::default(&mut object, props);
        return Ok(object);
    }
    let Some(schema) = schema_of(attributes) else { return Ok(object) };
    let mut object = decode::check(object, &schema, Strictness::Ignore).map_err(Status::internal)?.object;
    if attributes.face.is_none() && !attributes.is_virtual {
        (attributes.resource.strategy.default)(&mut object);
    }
    Ok(object)
}

/// The schema of what is shown.
fn schema_of(attributes: &Attributes<'_>) -> Option<Schema> {
    if attributes.face.is_none() {
        return attributes.schema.cloned();
    }
    let (group, version, kind) = attributes.resource.subresource(attributes.subresource)?.kind?;
    schema::definition(&resource::schema_name(group, version, kind))
}

/// Other resources that serve the same objects: `events` and `events.k8s.io`, the versions of a custom resource.
fn equivalents(attributes: &Attributes<'_>) -> Vec<Arc<Resource>> {
    let own = attributes.resource;
    let rows = attributes.context.catalog.all();
    let same = |row: &Arc<Resource>| {
        crate::registry::call::stored_as(row) == attributes.stored_as
            && (row.group != own.group || row.version != own.version)
            && (attributes.subresource.is_empty() || row.subresource(attributes.subresource).is_some())
    };
    rows.into_iter().filter(same).collect()
}
