//! One request to one resource: what every verb needs to know of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use mussel_api::custom::Custom;
use mussel_api::object::{self, ObjectExt};
use mussel_api::resource::Resource;
use mussel_api::schema::{self, Schema};
use mussel_store::{Freshness, Precondition, Revision};
use serde_json::Value;

use super::body::Expected;
use super::negotiate::{self, Form};
use super::strategy::{self, Rules};
use super::view::View;
use super::{Registry, convert, key};
use crate::Context;
use crate::custom::{self, crd_key};
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
    schema: SchemaOf,
    /// How objects are stored: `pods`, `deployments.apps`.
    pub stored_as: String,
    pub rules: &'static dyn Rules,
    /// Objects are taken as they lie in the store, and nobody is asked: no admission, no conversion. For the end of a kind.
    pub raw: bool,
    /// The definition of the custom resource is no longer what it was when the request came.
    outdated: AtomicBool,
}

/// Where the schema of a resource comes from.
enum SchemaOf {
    BuiltIn(Schema),
    Custom(Custom),
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
        let schema = match &resource.custom {
            Some(custom) => SchemaOf::Custom(custom.clone()),
            None => SchemaOf::BuiltIn(registry.schema(&resource)?),
        };
        let stored_as = stored_as(&resource);
        let rules = strategy::rules(&resource, &stored_as);
        let namespace = if resource.namespaced { request.info.namespace.clone() } else { String::new() };
        let context = &registry.context;
        let outdated = AtomicBool::new(false);
        let raw = false;
        Ok(Self { registry, context, resource, request, namespace, form, schema, stored_as, rules, raw, outdated })
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

    /// What objects of the resource are made of. That of a custom kind is read at the first use, which most of what is
    /// asked of one is not: nobody who only watches needs it.
    pub fn schema(&self) -> &Schema {
        match &self.schema {
            SchemaOf::BuiltIn(schema) => schema,
            SchemaOf::Custom(custom) => &custom.compiled().schema,
        }
    }

    pub fn name(&self) -> &str {
        &self.request.info.name
    }

    pub fn key(&self, name: &str) -> Bytes {
        key::object(&self.stored_as, &self.namespace, name)
    }

    pub fn expected(&self) -> Expected<'_> {
        Expected {
            api_version: self.resource.api_version(),
            kind: &self.resource.kind,
            schema: self.schema(),
            custom: self.resource.custom.as_ref(),
        }
    }

    pub async fn view(&self, freshness: Freshness) -> Result<View, Status> {
        Ok(View::new(self.context.store.snapshot(freshness).await?))
    }

    /// The object in `view`, in the served version.
    pub async fn find(&self, view: &View, name: &str) -> Result<Option<Current>, Status> {
        let Some(versioned) = view.snapshot().get(&self.key(name)) else { return Ok(None) };
        let (stored, revision) = (versioned.value()?, versioned.revision);
        let mut stale = versioned.is_stale();
        drop(versioned);
        let object = object::decode(&stored, revision.0).map_err(Status::internal)?;
        let object = match &self.resource.custom {
            _ if self.raw => object,
            Some(custom) if custom.is_current(&stored, revision.0) => {
                stale |= !custom.is_storage();
                object
            }
            Some(custom) => {
                stale = true;
                custom::convert::served(self.context, custom, vec![object]).await?.remove(0)
            }
            None => convert::from_storage(&self.resource, object),
        };
        Ok(Some(Current { object, revision, stale }))
    }

    /// Whether stored bytes are what is served.
    pub fn serves_stored(&self, stored: &[u8], revision: Revision) -> bool {
        match &self.resource.custom {
            Some(custom) => custom.is_current(stored, revision.0),
            None => convert::needed(&self.resource).is_none(),
        }
    }

    /// Whether what is stored may be served only after somebody else was asked: a conversion webhook.
    pub fn asks(&self) -> bool {
        self.resource.custom.as_ref().is_some_and(custom::convert::asks)
    }

    /// A stored object in the served version; for kinds that ask nobody.
    pub fn current(&self, versioned: &Versioned<'_>) -> Result<Value, Status> {
        let stored = versioned.value()?;
        let object = object::decode(&stored, versioned.revision.0).map_err(Status::internal)?;
        Ok(match &self.resource.custom {
            Some(custom) if custom.is_current(&stored, versioned.revision.0) => object,
            Some(custom) => custom::convert::served_now(custom, object),
            None => convert::from_storage(&self.resource, object),
        })
    }

    /// The stored form of an object in the served version.
    pub async fn encode(&self, object: &Value) -> Result<Bytes, Status> {
        if self.raw {
            return Ok(object::encode(object));
        }
        if let Some(custom) = self.resource.custom.as_ref().filter(|custom| !custom.is_storage()) {
            let stored = custom::convert::stored(self.context, custom, object.clone()).await?;
            return Ok(object::encode(&stored));
        }
        if convert::needed(&self.resource).is_some() {
            return Ok(object::encode(&convert::to_storage(&self.resource, object.clone())));
        }
        Ok(object::encode(object))
    }

    /// What has to hold for a custom object to be written: its definition is still the one at hand.
    pub fn definition_holds(&self) -> Option<Precondition> {
        let custom = self.resource.custom.as_ref()?;
        Some(Precondition::At(crd_key(&custom.definition.name), Revision(custom.revision)))
    }

    /// The definition did not hold. The request has to be worked on again.
    pub fn outdated(&self) -> Status {
        self.outdated.store(true, Ordering::Relaxed);
        self.server_timeout("write")
    }

    pub fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
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
        _ => match &resource.custom {
            Some(custom) => custom.select_field(object, field),
            None => (resource.strategy.select_field)(object, field),
        },
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
