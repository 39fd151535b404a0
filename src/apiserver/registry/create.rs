//! POST of a new object.

use http::StatusCode;
use mussel_api::object::ObjectExt;

use super::call::Call;
use super::options::WriteOptions;
use super::write::Made;
use super::{body, negotiate};
use crate::handler::Response;
use crate::status::Status;

pub async fn create(call: &Call<'_>) -> Result<Response, Status> {
    if call.resource.namespaced && call.namespace.is_empty() {
        return Err(Status::bad_request("an empty namespace may not be set during creation"));
    }
    let options = WriteOptions::of(call.request, "CreateOptions")?;
    let format = body::format(&call.request.headers)?;
    let request = call.request;
    let mut object = body::decode(&request.body, format, &call.expected(), options.strictness, &request.warnings)?;
    // Only requests of server-side apply bring managed fields worth keeping.
    if let Some(metadata) = object.get_mut("metadata").and_then(|metadata| metadata.as_object_mut()) {
        metadata.remove("uid");
    }
    let object = call.create(Made::plain(object), &options).await?;
    tracing::debug!(resource = %call.stored_as, namespace = %call.namespace, name = object.name(), "created");
    let shaped = negotiate::shape_object(&call.resource, call.form, object);
    negotiate::respond(StatusCode::CREATED, call.form, &shaped)
}
