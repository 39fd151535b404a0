//! Conversion by a webhook: a `ConversionReview` with all objects goes out, and what comes back is looked at closely, since it
//! is taken for the same objects.

use std::time::Duration;

use mussel_api::custom::{Custom, WebhookConversion};
use mussel_api::object::ObjectExt;
use mussel_store::Freshness;
use serde_json::{Value, json};

use crate::Context;
use crate::registry::view::View;
use crate::status::Status;
use crate::webhook::Target;

/// Upstream's.
const TIMEOUT: Duration = Duration::from_secs(30);

const GROUP: &str = "apiextensions.k8s.io";

/// Objects of any version in that of `api_version`, in the same order.
///
/// # Errors
/// When the webhook does not answer, refuses, or returns something else than these objects.
pub async fn convert(
    context: &Context,
    custom: &Custom,
    hook: &WebhookConversion,
    api_version: &str,
    objects: Vec<Value>,
) -> Result<Vec<Value>, Status> {
    let from = objects.first().map(ObjectExt::api_version).unwrap_or_default().to_owned();
    let subject = format!("{from}, Kind={}", custom.definition.names.kind);
    let failed =
        |why: String| Status::new(500, "InternalError", format!("conversion webhook for {subject} failed: {why}"));
    let target = Target::of(&hook.client_config).map_err(|error| failed(error.to_string()))?;
    let known = hook.review_versions.iter().find(|version| matches!(version.as_str(), "v1" | "v1beta1"));
    let version = known.ok_or_else(|| failed("no supported ConversionReview version".to_owned()))?;
    let uid = uuid::Uuid::new_v4().to_string();
    let review = json!({"kind": "ConversionReview", "apiVersion": format!("{GROUP}/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects}});
    let view = View::new(context.store.snapshot(Freshness::Local).await?);
    let answer = context.conversions.post(&target, &view, &review, TIMEOUT).await;
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    let converted = objects_of(&answer, version, &uid).map_err(&failed)?;
    if converted.len() != objects.len() {
        return Err(Status::new(
            500,
            "InternalError",
            format!(
                "conversion webhook for {subject} returned {} objects, expected {}",
                converted.len(),
                objects.len()
            ),
        ));
    }
    let mut accepted = Vec::with_capacity(objects.len());
    for (at, (original, converted)) in objects.iter().zip(converted).enumerate() {
        let one = accept(original, converted, api_version).map_err(|why| {
            let message =
                format!("conversion webhook for {subject} returned invalid converted object at index {at}: {why}");
            Status::new(500, "InternalError", message)
        })?;
        accepted.push(one);
    }
    Ok(accepted)
}

/// The objects of an answer.
fn objects_of(answer: &Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let wanted = format!("{GROUP}/{version}");
    if answer.api_version() != wanted || answer.kind() != "ConversionReview" {
        return Err(format!(
            "expected webhook response of {wanted}, Kind=ConversionReview, got {}, Kind={}",
            answer.api_version(),
            answer.kind()
        ));
    }
    let response = &answer["response"];
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    // Older reviews need not repeat it.
    let their_uid = response["uid"].as_str().unwrap_or_default();
    if their_uid != uid && !(version == "v1beta1" && their_uid.is_empty()) {
        return Err(format!("expected response.uid {uid:?}, got {their_uid:?}"));
    }
    let result = &response["result"];
    match (result["status"].as_str().unwrap_or_default(), result["message"].as_str().unwrap_or_default()) {
        ("Success", _) => {}
        (status, "") => return Err(format!("response.result.status was {status:?}, not \"Success\"")),
        (_, message) => return Err(message.to_owned()),
    }
    response["convertedObjects"].as_array().cloned().ok_or_else(|| "no objects returned".to_owned())
}

/// A converted object, if it is still the object that went out. Of metadata only labels and annotations may differ.
fn accept(original: &Value, mut converted: Value, api_version: &str) -> Result<Value, String> {
    if converted.api_version() != api_version {
        return Err(format!("invalid groupVersion (expected {api_version}, received {})", converted.api_version()));
    }
    let same = |what: &str, before: &str, after: &str| {
        if before == after { Ok(()) } else { Err(format!("must have the same {what}: {before} != {after}")) }
    };
    same("kind", original.kind(), converted.kind())?;
    same("name", original.name(), converted.name())?;
    same("namespace", original.namespace(), converted.namespace())?;
    same("UID", original.uid(), converted.uid())?;
    let texts = |value: &Value| value.as_object().is_none_or(|map| map.values().all(Value::is_string));
    let mut metadata = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        let new = &converted["metadata"][field];
        if !(new.is_null() || new.is_object()) || !texts(new) {
            return Err(format!("metadata.{field}: must be a map of strings"));
        }
        if let Some(map) = metadata.as_object_mut() {
            match new.as_object().filter(|new| !new.is_empty()) {
                Some(new) => map.insert(field.to_owned(), Value::Object(new.clone())),
                None => map.remove(field),
            };
        }
    }
    converted["metadata"] = metadata;
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_only_for_what_was_asked() {
        let review = |uid: &str, result: Value| {
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
            "response": {"uid": uid, "result": result, "convertedObjects": [{}]}})
        };
        let good = json!({"status": "Success"});
        assert_eq!(objects_of(&review("u", good.clone()), "v1", "u").map(|list| list.len()), Ok(1));
        assert!(objects_of(&review("other", good.clone()), "v1", "u").is_err());
        assert!(objects_of(&review("u", good), "v1beta1", "u").is_err());
        let failure = json!({"status": "Failure", "message": "no way"});
        assert_eq!(objects_of(&review("u", failure), "v1", "u"), Err("no way".to_owned()));
    }

    #[test]
    fn a_conversion_changes_no_identity() {
        let original = json!({"apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n", "uid": "u", "generation": 4, "labels": {"a": "b"}}});
        let mut converted = json!({"apiVersion": "a/v2", "kind": "K", "metadata": {"name": "n", "uid": "u", "generation": 9, "labels": {"c": "d"}}});
        let accepted = accept(&original, converted.clone(), "a/v2").unwrap();
        assert_eq!(accepted["metadata"], json!({"name": "n", "uid": "u", "generation": 4, "labels": {"c": "d"}}));
        assert!(accept(&original, converted.clone(), "a/v3").unwrap_err().contains("invalid groupVersion"));
        converted["metadata"]["uid"] = "x".into();
        assert_eq!(accept(&original, converted, "a/v2").unwrap_err(), "must have the same UID: u != x");
    }
}
