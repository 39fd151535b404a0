//! DELETE of all objects that a selector names.

use http::StatusCode;
use mussel_api::object::ObjectExt;
use mussel_store::Freshness;
use serde_json::{Map, Value};

use super::call::Call;
use super::delete::remove;
use super::options::{DeleteOptions, ListOptions};
use super::select::Selection;
use super::{key, negotiate};
use crate::handler::Response;
use crate::status::Status;

pub async fn delete_collection(call: &Call<'_>) -> Result<Response, Status> {
    let options = DeleteOptions::of(call.request)?;
    let list = ListOptions::of(&call.request.query, false)?;
    let selection = Selection::new(&call.resource, &list)?;
    let view = call.view(Freshness::Linearizable).await?;
    let prefix = key::prefix(&call.stored_as, &call.namespace);
    let mut doomed: Vec<Value> = Vec::new();
    for (found, versioned) in view.snapshot().range(&prefix, &prefix) {
        if selection.may_match(found, &versioned.value()?, call.resource.namespaced) {
            let object = call.current(&versioned)?.object;
            if selection.matches(&object) {
                doomed.push(object);
            }
        }
    }
    let mut deleted = Vec::with_capacity(doomed.len());
    for object in doomed {
        let one =
            DeleteOptions { uid: options.uid.clone().or_else(|| Some(object.uid().to_owned())), ..options.clone() };
        match remove(call, object.name(), &one).await {
            Ok(done) => deleted.push(done.object),
            // Gone already, or replaced by another object since: not ours to delete.
            Err(status) if status.reason == "NotFound" => {}
            Err(status) if status.reason == "Conflict" && options.uid.is_none() => {}
            Err(status) => return Err(status),
        }
    }
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), call.context.store.revision().0.to_string().into());
    let list = negotiate::shape_list(&call.resource, call.form, metadata, deleted);
    negotiate::respond(StatusCode::OK, call.form, &list)
}
