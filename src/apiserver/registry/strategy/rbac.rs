//! Roles and bindings: nobody grants what they do not hold.

use futures::future::BoxFuture;
use mussel_api::object::ObjectExt;
use serde_json::Value;

use super::Rules;
use crate::registry::write::Write;
use crate::status::Status;

pub struct Roles;

impl Rules for Roles {
    fn authorize<'a>(
        &'a self,
        write: &'a Write<'_>,
        new: &'a Value,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let call = write.call;
            let authorizer = &call.context.authorizer;
            authorizer
                .may_write_role(&call.request.user, &call.resource.plural, new, old)
                .await
                .map_err(|why| call.forbidden(new.name(), &why))
        })
    }
}

pub struct Bindings;

impl Rules for Bindings {
    fn authorize<'a>(
        &'a self,
        write: &'a Write<'_>,
        new: &'a Value,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let call = write.call;
            let authorizer = &call.context.authorizer;
            authorizer
                .may_write_binding(&call.request.user, new, old)
                .await
                .map_err(|why| call.forbidden(new.name(), &why))
        })
    }
}
