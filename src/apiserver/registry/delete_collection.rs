//! DELETE of all objects that a selector names.

use http::StatusCode;
use mussel_api::object::{self, ObjectExt};
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
    let mut unconverted: Vec<Value> = Vec::new();
    for (found, versioned) in view.snapshot().range(&prefix, &prefix) {
        if !selection.may_match(found, &versioned.value()?, call.resource.namespaced) {
            continue;
        }
        if call.asks() {
            unconverted.push(object::decode(&versioned.value()?, versioned.revision.0).map_err(Status::internal)?);
            continue;
        }
        let object = call.current(&versioned)?;
        if selection.matches(&object) {
            doomed.push(object);
        }
    }
    if let Some(custom) = call.resource.custom.as_ref().filter(|_| !unconverted.is_empty()) {
        let converted = crate::custom::convert::served(call.context, custom, unconverted).await?;
        doomed.extend(converted.into_iter().filter(|object| selection.matches(object)));
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
