//! Objects that pass through the API and are not stored: bindings, evictions, token requests, reviews, the options of a
//! connection. Webhooks and policies are asked about them all the same.

use mussel_api::resource::Resource;
use mussel_api::schema::Schema;
use serde_json::Value;

use super::Registry;
use super::call::{Call, stored_as};
use super::options::write_options;
use super::view::View;
use crate::admission::{Attributes, Operation};
use crate::handler::{UserInfo, Warnings};
use crate::status::Status;

/// What is to be done with such an object, and by whom.
pub struct Passing<'a> {
    pub operation: Operation,
    pub resource: &'a Resource,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub user: &'a UserInfo,
    pub dry_run: bool,
    pub warnings: &'a Warnings,
    pub schema: Option<&'a Schema>,
    pub options: &'a (dyn Fn() -> Value + Sync),
}

impl Registry {
    /// Lets webhooks and policies change and refuse `object`.
    ///
    /// # Errors
    /// Their refusal.
    pub async fn pass(&self, passing: &Passing<'_>, view: &View, object: &mut Value) -> Result<(), Status> {
        let stored_as = stored_as(passing.resource);
        let attributes = Attributes {
            operation: passing.operation,
            resource: passing.resource,
            stored_as: &stored_as,
            subresource: passing.subresource,
            namespace: passing.namespace,
            name: passing.name,
            user: passing.user,
            dry_run: passing.dry_run,
            old: None,
            view,
            warnings: passing.warnings,
            config: &self.context.config,
            context: &self.context,
            schema: passing.schema,
            options: passing.options,
            generated: false,
            is_virtual: true,
            face: None,
        };
        self.admission.mutate(&attributes, object).await?;
        self.admission.validate(&attributes, Some(object)).await?;
        Ok(())
    }
}

impl Call<'_> {
    /// The same for an object that is created at a subresource of this call's resource.
    ///
    /// # Errors
    /// As there.
    pub async fn pass(
        &self,
        name: &str,
        subresource: &str,
        dry_run: bool,
        schema: &Schema,
        view: &View,
        object: &mut Value,
    ) -> Result<(), Status> {
        let passing = Passing {
            operation: Operation::Create,
            resource: &self.resource,
            subresource,
            namespace: &self.namespace,
            name,
            user: &self.request.user,
            dry_run,
            warnings: &self.request.warnings,
            schema: Some(schema),
            options: &|| write_options(&self.request.query, "CreateOptions"),
        };
        self.registry.pass(&passing, view, object).await
    }
}
