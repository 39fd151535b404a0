//! PUT: the whole object, or the whole of one of its parts.

use http::StatusCode;
use mussel_api::object::ObjectExt;

use super::call::Call;
use super::options::WriteOptions;
use super::write::{Made, Part};
use super::{body, negotiate};
use crate::handler::Response;
use crate::status::Status;

pub async fn update(call: &Call<'_>, part: &dyn Part) -> Result<Response, Status> {
    let options = WriteOptions::of(call.request, "UpdateOptions")?;
    let request = call.request;
    let format = body::format(&request.headers)?;
    let mut object = body::decode(&request.body, format, &call.expected(), options.strictness, &request.warnings)?;
    let name = call.name();
    match object.name() {
        "" => {
            object.meta_mut().insert("name".to_owned(), name.into());
        }
        same if same == name => {}
        other => {
            return Err(Status::bad_request(format!(
                "the name of the object ({other}) does not match the name on the URL ({name})"
            )));
        }
    }
    let creates = part.subresource().is_empty() && call.resource.strategy.create_on_update;
    let make = |_: Option<&serde_json::Value>| Ok(Made::plain(object.clone()));
    let (object, created) = call.change(name, part, &options, creates, make).await?;
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    negotiate::respond(code, call.form, &negotiate::shape_object(&call.resource, call.form, object))
}
