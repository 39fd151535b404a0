//! One request to one resource: what every verb needs to know of it.

use std::sync::Arc;

use bytes::Bytes;
use mussel_api::object::{self, ObjectExt};
use mussel_api::resource::Resource;
use mussel_api::schema::{self, Schema};
use mussel_store::{Freshness, Revision};
use serde_json::Value;

use super::body::Expected;
use super::negotiate::{self, Form};
use super::strategy::{self, Rules};
use super::view::View;
use super::{Registry, convert, key};
use crate::Context;
use crate::encryption::Versioned;
use crate::handler::Request;
use crate::status::Status;

/// A request, resolved.
pub struct Call<'a> {
    pub registry: &'a Registry,
    pub context: &'a Arc<Context>,
    pub resource: Arc<Resource>,
    pub request: &'a Request,
    /// Empty for cluster-scoped resources, and for requests across namespaces.
    pub namespace: String,
    pub form: Form,
    pub schema: Schema,
    /// How objects are stored: `pods`, `deployments.apps`.
    pub stored_as: String,
    pub rules: &'static dyn Rules,
}

/// An object as it is in the store.
pub struct Current {
    /// In the served version, with its `resourceVersion`.
    pub object: Value,
    pub revision: Revision,
    /// It would be stored otherwise now: with another key, or none.
    pub stale: bool,
}

impl<'a> Call<'a> {
    pub fn new(registry: &'a Registry, resource: Arc<Resource>, request: &'a Request) -> Result<Self, Status> {
        let form = negotiate::negotiate(&request.headers, &request.query)?;
        Self::within(registry, resource, request, form)
    }

    fn within(
        registry: &'a Registry,
        resource: Arc<Resource>,
        request: &'a Request,
        form: Form,
    ) -> Result<Self, Status> {
        let schema = registry.schema(&resource)?;
        let stored_as = stored_as(&resource);
        let rules = strategy::rules(&stored_as);
        let namespace = if resource.namespaced { request.info.namespace.clone() } else { String::new() };
        Ok(Self { registry, context: &registry.context, resource, request, namespace, form, schema, stored_as, rules })
    }

    /// The same request, turned to another resource: an eviction that deletes a pod.
    pub fn on(&self, group: &str, version: &str, plural: &str) -> Result<Self, Status> {
        let resource = self.context.catalog.by_plural(group, version, plural).ok_or_else(Status::unknown_resource)?;
        let mut call = Self::within(self.registry, resource, self.request, self.form)?;
        if call.resource.namespaced {
            call.namespace.clone_from(&self.namespace);
        }
        Ok(call)
    }

    pub fn name(&self) -> &str {
        &self.request.info.name
    }

    pub fn key(&self, name: &str) -> Bytes {
        key::object(&self.stored_as, &self.namespace, name)
    }

    pub fn expected(&self) -> Expected<'_> {
        Expected { api_version: self.resource.api_version(), kind: &self.resource.kind, schema: &self.schema }
    }

    pub async fn view(&self, freshness: Freshness) -> Result<View, Status> {
        Ok(View::new(self.context.store.snapshot(freshness).await?))
    }

    /// The object in `view`, in the served version.
    pub fn find(&self, view: &View, name: &str) -> Result<Option<Current>, Status> {
        view.snapshot().get(&self.key(name)).map(|versioned| self.current(&versioned)).transpose()
    }

    pub fn current(&self, versioned: &Versioned<'_>) -> Result<Current, Status> {
        let object = object::decode(&versioned.value()?, versioned.revision.0).map_err(Status::internal)?;
        let object = convert::from_storage(&self.resource, object);
        Ok(Current { object, revision: versioned.revision, stale: versioned.is_stale() })
    }

    /// The stored form of an object in the served version.
    pub fn encode(&self, object: &Value) -> Bytes {
        if convert::needed(&self.resource).is_some() {
            object::encode(&convert::to_storage(&self.resource, object.clone()))
        } else {
            object::encode(object)
        }
    }

    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(&self.resource.group, &self.resource.plural, name)
    }

    pub fn modified(&self, name: &str) -> Status {
        Status::modified(&self.resource.group, &self.resource.plural, name)
    }

    pub fn conflict(&self, name: &str, why: &str) -> Status {
        Status::conflict(&self.resource.group, &self.resource.plural, name, why)
    }

    pub fn forbidden(&self, name: &str, why: &str) -> Status {
        Status::forbidden(&self.resource.group, &self.resource.plural, name, why)
    }

    pub fn invalid(&self, name: &str, errors: &mussel_api::field::FieldErrors) -> Status {
        Status::invalid(&self.resource.group, &self.resource.kind, name, errors)
    }

    /// The value of a field that selectors may name.
    pub fn select_field(&self, object: &Value, field: &str) -> Option<String> {
        select_field(&self.resource, object, field)
    }
}

/// The value of a field that selectors may name; `None` when they may not.
pub fn select_field(resource: &Resource, object: &Value, field: &str) -> Option<String> {
    match field {
        "metadata.name" => Some(object.name().to_owned()),
        "metadata.namespace" => Some(object.namespace().to_owned()),
        _ => (resource.strategy.select_field)(object, field),
    }
}

/// The first part of the storage keys of a resource.
pub fn stored_as(resource: &Resource) -> String {
    match resource.storage {
        Some(("", _)) => resource.plural.to_string(),
        Some((group, _)) => format!("{}.{group}", resource.plural),
        None => resource.qualified(),
    }
}

/// The schema of a built-in definition that must exist.
pub fn definition(name: &str) -> Result<Schema, Status> {
    schema::definition(name).ok_or_else(|| Status::internal(format_args!("no schema for {name}")))
}
