//! What is done with an authorized request: REST verbs over the store.
//!
//! [`Registry::handle`] turns a request into a [`call::Call`] and hands it to the file of its verb or subresource. Every
//! write goes the way of [`write`]; what is particular to a kind is in [`strategy`].

mod bindings;
pub mod body;
pub mod call;
pub mod convert;
mod create;
mod delete;
mod delete_collection;
mod evictions;
mod expiry;
mod get;
pub mod key;
mod list;
pub mod names;
pub mod negotiate;
pub mod options;
pub mod passing;
mod patch;
pub mod purge;
mod reviews;
mod scale;
pub mod select;
mod service_account_tokens;
mod shared;
mod start;
mod strategy;
mod update;
pub mod view;
mod watch;
pub mod write;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use mussel_api::resource::Resource;
use mussel_api::schema::{self, Schema};

use self::call::Call;
use self::strategy::certificates::Approval;
use self::strategy::namespaces::Finalize;
use self::strategy::pods::{EphemeralContainers, Resize};
use self::write::{Main, Part, StatusPart};
use crate::Context;
use crate::admission::{Chain, type_check};
use crate::custom;
use crate::handler::{Request, Response};
use crate::status::Status;

pub struct Registry {
    context: Arc<Context>,
    admission: Chain,
    events: Arc<shared::SharedEvents>,
    /// Held by creations that take something of which there is only so much: addresses, ports, quota.
    reservations: tokio::sync::Mutex<()>,
    /// Schemas of what was asked for so far, by definition name.
    schemas: RwLock<HashMap<String, Schema>>,
}

impl Registry {
    pub fn new(context: Arc<Context>) -> Self {
        let admission = Chain::new(&context.config);
        Self {
            context,
            admission,
            events: Arc::default(),
            reservations: Default::default(),
            schemas: RwLock::default(),
        }
    }

    /// Writes the objects that every cluster has. Called once, before `/readyz` turns green.
    ///
    /// # Errors
    /// When the store does not take them.
    pub async fn start(&self) -> Result<(), Status> {
        start::bootstrap(self).await?;
        expiry::start(&self.context);
        type_check::start(&self.context);
        Ok(())
    }

    /// Does what the request asks for.
    ///
    /// # Errors
    /// The refusal, as the client is to see it.
    pub async fn handle(&self, resource: Arc<Resource>, request: Request) -> Result<Response, Status> {
        if let Some(review) = reviews::Review::of(&resource) {
            return review.answer(self, &resource, &request).await;
        }
        if resource.custom.is_some() {
            return self.handle_custom(resource, &request).await;
        }
        let response = self.handle_once(&Call::new(self, Arc::clone(&resource), &request)?).await?;
        let info = &request.info;
        if resource.qualified() == custom::RESOURCE && matches!(info.verb.as_str(), "update" | "patch") {
            // What was changed is in force for whoever changed it. That it takes long is no failure of the write.
            let _ = custom::renew(&self.context, &info.name).await;
        }
        Ok(response)
    }

    /// A custom resource may change its definition under a request; then the request is worked on again, by the new one.
    async fn handle_custom(&self, mut resource: Arc<Resource>, request: &Request) -> Result<Response, Status> {
        let info = &request.info;
        for _ in 0..write::ATTEMPTS_MAX {
            let Some(custom) = resource.custom.clone() else { break };
            if custom.terminating && info.verb == "create" {
                let mut status = Status::method_not_supported(&resource.group, &resource.plural, "create");
                status.message = "create not allowed while custom resource definition is terminating".to_owned();
                return Err(status);
            }
            if let Some(warning) = &custom.version().deprecation {
                request.warnings.add(warning.as_str());
            }
            let call = Call::new(self, Arc::clone(&resource), request)?;
            let outcome = self.handle_once(&call).await;
            if !call.is_outdated() {
                return outcome;
            }
            custom::renew(&self.context, &custom.definition.name).await?;
            resource = custom::find(&self.context, &info.group, &info.version, &info.resource).await?;
        }
        Err(Status::server_timeout(&resource.group, &resource.plural, &info.verb))
    }

    async fn handle_once(&self, call: &Call<'_>) -> Result<Response, Status> {
        let info = &call.request.info;
        match (&*call.stored_as, info.subresource.as_str()) {
            ("componentstatuses", "") => reviews::component_statuses(call),
            ("bindings", "") => bindings::create(call, None).await,
            (_, "") => self.object(call).await,
            (_, "status") => self.part(call, &StatusPart).await,
            ("pods", "binding") => bindings::create(call, Some(&info.name)).await,
            ("pods", "eviction") => evictions::create(call).await,
            ("pods", "ephemeralcontainers") => self.part(call, &EphemeralContainers).await,
            ("pods", "resize") => self.part(call, &Resize).await,
            ("namespaces", "finalize") => self.part(call, &Finalize).await,
            ("certificatesigningrequests.certificates.k8s.io", "approval") => self.part(call, &Approval).await,
            ("serviceaccounts", "token") => service_account_tokens::create(call).await,
            (_, "scale") => scale::handle(call).await,
            _ => Err(Status::unknown_resource()),
        }
    }

    async fn object(&self, call: &Call<'_>) -> Result<Response, Status> {
        match call.request.info.verb.as_str() {
            "get" => get::get(call).await,
            "list" => list::list(call).await,
            "watch" => watch::watch(call).await,
            "create" => create::create(call).await,
            "update" => update::update(call, &Main).await,
            "patch" => patch::patch(call, &Main).await,
            "delete" => delete::delete(call).await,
            "deletecollection" => delete_collection::delete_collection(call).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn part(&self, call: &Call<'_>, part: &dyn Part) -> Result<Response, Status> {
        match call.request.info.verb.as_str() {
            "get" => get::get(call).await,
            "update" => update::update(call, part).await,
            "patch" => patch::patch(call, part).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    /// The schema of a built-in resource.
    fn schema(&self, resource: &Resource) -> Result<Schema, Status> {
        let known = self.schemas.read().unwrap_or_else(PoisonError::into_inner).get(&*resource.schema).cloned();
        if let Some(schema) = known {
            return Ok(schema);
        }
        let name = &resource.schema;
        let schema = schema::definition(name).ok_or_else(|| Status::internal(format_args!("no schema for {name}")))?;
        let mut schemas = self.schemas.write().unwrap_or_else(PoisonError::into_inner);
        schemas.insert(name.to_string(), schema.clone());
        Ok(schema)
    }
}
