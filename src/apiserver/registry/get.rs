//! GET of one object.

use http::StatusCode;
use mussel_api::object;
use mussel_store::{Freshness, Revision};

use super::call::Call;
use super::negotiate;
use crate::handler::{Body, Response};
use crate::status::Status;

pub async fn get(call: &Call<'_>) -> Result<Response, Status> {
    let version = call.request.query.get("resourceVersion").unwrap_or_default();
    let freshness = match version {
        "" => Freshness::Linearizable,
        "0" => Freshness::Local,
        text => {
            let wanted: u64 = text.parse().map_err(|_| {
                Status::bad_request(format!(
                    "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                ))
            })?;
            super::list::reach(call.context, Revision(wanted)).await?;
            Freshness::Local
        }
    };
    let view = call.view(freshness).await?;
    let name = call.name();
    if call.form.is_plain() {
        let versioned = view.snapshot().get(&call.key(name)).ok_or_else(|| call.not_found(name))?;
        let stored = versioned.value()?;
        if call.serves_stored(&stored, versioned.revision) {
            let bytes = object::with_resource_version(&stored, versioned.revision.0);
            return Ok(negotiate::response(StatusCode::OK, "application/json", Body::from(bytes)));
        }
    }
    let current = call.find(&view, name).await?.ok_or_else(|| call.not_found(name))?;
    negotiate::respond(StatusCode::OK, call.form, &negotiate::shape_object(&call.resource, call.form, current.object))
}
