//! Custom objects between the versions of their kind.
//!
//! An object is stored as it was written. One that was written by another schema than is in force now is pruned and defaulted
//! on its way out of the store, by the schema of the version it is stored in; then converted to the version that is asked for.

use mussel_api::custom::{self, Conversion, Custom};
use mussel_api::object::ObjectExt;
use serde_json::Value;

use super::webhook;
use crate::Context;
use crate::status::Status;

/// Stored objects as this version serves them.
///
/// # Errors
/// When the kind's conversion webhook fails.
pub async fn served(context: &Context, custom: &Custom, mut objects: Vec<Value>) -> Result<Vec<Value>, Status> {
    let mut foreign = Vec::new();
    for (at, object) in objects.iter_mut().enumerate() {
        renew(custom, object);
        if object.api_version() != custom.api_version() {
            foreign.push(at);
        }
    }
    convert(context, custom, &mut objects, &foreign, custom.index).await?;
    Ok(objects)
}

/// The same for a kind whose conversion asks nobody.
pub fn served_now(custom: &Custom, mut object: Value) -> Value {
    renew(custom, &mut object);
    if object.api_version() != custom.api_version() {
        object["apiVersion"] = custom.api_version().into();
        prune(&mut object, &custom.compiled().props);
    }
    object
}

/// Whether conversion is somebody else's.
pub fn asks(custom: &Custom) -> bool {
    custom.definition.conversion != Conversion::None
}

/// What the schema of its own version makes of a stored object today.
fn renew(custom: &Custom, object: &mut Value) {
    if let Some(index) = custom.index_of(object) {
        let props = &custom.definition.compiled(index).props;
        prune(object, props);
        custom::default(object, props);
    }
}

/// An object of this version, as it is to be stored.
///
/// # Errors
/// As [`served`].
pub async fn stored(context: &Context, custom: &Custom, object: Value) -> Result<Value, Status> {
    let mut objects = vec![object];
    if !custom.is_storage() {
        convert(context, custom, &mut objects, &[0], custom.definition.storage).await?;
    }
    Ok(objects.remove(0))
}

/// Converts those of `objects` that `which` names to the version at `target`.
async fn convert(
    context: &Context,
    custom: &Custom,
    objects: &mut [Value],
    which: &[usize],
    target: usize,
) -> Result<(), Status> {
    if which.is_empty() {
        return Ok(());
    }
    let api_version = &custom.definition.versions[target].api_version;
    match &custom.definition.conversion {
        Conversion::None => {
            for at in which {
                objects[*at]["apiVersion"] = api_version.as_str().into();
            }
        }
        Conversion::Webhook(hook) => {
            let given = which.iter().map(|at| objects[*at].clone()).collect();
            let converted = webhook::convert(context, custom, hook, api_version, given).await?;
            for (at, object) in which.iter().zip(converted) {
                objects[*at] = object;
            }
        }
    }
    let props = &custom.definition.compiled(target).props;
    for at in which {
        prune(&mut objects[*at], props);
    }
    Ok(())
}

/// What the schema does not know goes; metadata of embedded objects that is not right stays as it is.
fn prune(object: &mut Value, props: &custom::Props) {
    if let Err(error) = custom::coerce(object, props) {
        tracing::debug!(%error, name = object.name(), "an embedded object in the store has bad metadata");
    }
}
