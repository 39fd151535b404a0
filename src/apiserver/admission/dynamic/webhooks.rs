//! Admission webhooks: who is called, in which order, and what their answers mean.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mussel_api::field::Path;
use mussel_api::patch;
use serde_json::Value;

use super::asked::{Asked, Seen};
use super::compiled::{Conditions, webhook_conditions};
use super::facts::{Known, are_met};
use super::follow::{Followed, Parsed};
use super::rules::{Rule, Selectors, texts};
use super::{Memory, settle};
use crate::status::{Cause, Details, Status};
use crate::webhook::{CallError, Client, Target, TargetError};

/// Warnings that one answer may add.
const WARNINGS_MAX: usize = 32;
const WARNING_BYTES_MAX: usize = 4096;

/// One webhook of a configuration, parsed.
pub struct Hook {
    /// Unique: the configuration's name, and the webhook's within it.
    id: String,
    name: String,
    target: Result<Target, TargetError>,
    rules: Vec<Rule>,
    selectors: Selectors,
    equivalent: bool,
    ignores_failure: bool,
    has_no_side_effects: bool,
    reinvocable: bool,
    timeout: Duration,
    conditions: Conditions,
    /// Why the conditions cannot be used.
    broken: Option<String>,
    /// The version of the review: the first one listed that we speak.
    version: Option<&'static str>,
}

impl Hook {
    fn of(configuration: &str, hook: &Value) -> Self {
        let name = hook["name"].as_str().unwrap_or_default();
        let (conditions, errors) = webhook_conditions(hook, &Path::root());
        let known = |version: &String| ["v1", "v1beta1"].into_iter().find(|known| known == version);
        Self {
            id: format!("{configuration}/{name}"),
            name: name.to_owned(),
            target: Target::of(&hook["clientConfig"]),
            rules: Rule::all_of(&hook["rules"]),
            selectors: Selectors::of(hook),
            equivalent: hook["matchPolicy"] != "Exact",
            ignores_failure: hook["failurePolicy"] == "Ignore",
            has_no_side_effects: matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")),
            reinvocable: hook["reinvocationPolicy"] == "IfNeeded",
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30)),
            conditions,
            broken: errors.first().map(ToString::to_string),
            version: texts(&hook["admissionReviewVersions"]).iter().find_map(known),
        }
    }
}

/// The webhooks of one configuration.
fn parse(configuration: &Value) -> Vec<Hook> {
    let name = configuration["metadata"]["name"].as_str().unwrap_or_default();
    configuration["webhooks"].as_array().into_iter().flatten().map(|hook| Hook::of(name, hook)).collect()
}

pub struct Webhooks {
    pub mutating: Followed<Vec<Hook>>,
    pub validating: Followed<Vec<Hook>>,
    client: Client,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            mutating: Followed::new("mutatingwebhookconfigurations.admissionregistration.k8s.io", parse),
            validating: Followed::new("validatingwebhookconfigurations.admissionregistration.k8s.io", parse),
            client: Client::default(),
        }
    }
}

/// Why a webhook's call did not let the request pass.
enum Failure {
    /// It could not be asked; its failure policy decides.
    Call(String),
    /// It said no, or the request cannot be completed.
    Refusal(Status),
}

/// What a webhook that allows the request wants.
struct Answer {
    patch: Option<Vec<u8>>,
}

impl Webhooks {
    /// Calls the mutating webhooks one after the other. Returns whether one changed the object.
    pub async fn mutate(
        &self,
        asked: &mut Asked<'_>,
        hooks: &Parsed<Vec<Hook>>,
        memory: &mut Memory,
    ) -> Result<bool, Status> {
        let mut changed = false;
        let mut known = Known::default();
        for hook in hooks.iter().flat_map(|entry| entry.value.iter()) {
            let Some(seen) = concerns(hook, asked, &mut known)? else { continue };
            if !memory.calls(&hook.id) {
                continue;
            }
            let outcome = self.call(hook, &seen, asked, true).await;
            let outcome = outcome.and_then(|answer| match answer.patch {
                Some(patch) => patched(hook, &seen, asked, &patch).map_err(Failure::Refusal),
                None => Ok(None),
            });
            let is_new = matches!(&outcome, Ok(Some(_)));
            memory.called(&hook.id, hook.reinvocable, is_new);
            match outcome {
                Ok(None) => {}
                Ok(Some(object)) => {
                    asked.replace(object);
                    known.forget();
                    changed = true;
                }
                Err(failure) => judge(hook, failure)?,
            }
        }
        Ok(changed)
    }

    /// Calls the validating webhooks side by side. Returns whether there were any.
    pub async fn validate(&self, asked: &mut Asked<'_>, hooks: &Parsed<Vec<Hook>>) -> Result<bool, Status> {
        let mut concerned = Vec::new();
        let mut known = Known::default();
        for hook in hooks.iter().flat_map(|entry| entry.value.iter()) {
            if let Some(seen) = concerns(hook, asked, &mut known)? {
                concerned.push((hook, seen));
            }
        }
        let asked = &*asked;
        let calls = concerned.iter().map(|(hook, seen)| async move {
            match self.call(hook, seen, asked, false).await {
                Ok(_) => Ok(()),
                Err(failure) => judge(hook, failure),
            }
        });
        for outcome in futures::future::join_all(calls).await {
            outcome?;
        }
        Ok(!concerned.is_empty())
    }

    async fn call(&self, hook: &Hook, seen: &Seen, asked: &Asked<'_>, mutating: bool) -> Result<Answer, Failure> {
        if asked.attributes.dry_run && !hook.has_no_side_effects {
            let why = format!("admission webhook {:?} does not support dry run", hook.name);
            return Err(Failure::Refusal(Status::bad_request(why)));
        }
        let Some(version) = hook.version else {
            let why = "could not create admission objects: webhook does not accept known AdmissionReview versions \
                       (v1, v1beta1)";
            return Err(Failure::Call(why.to_owned()));
        };
        let target =
            hook.target.as_ref().map_err(|error| Failure::Call(format!("could not get REST client: {error}")))?;
        let uid = uuid::Uuid::new_v4().to_string();
        let review = asked.review(seen, version, &uid);
        let answer = self.client.post(target, asked.attributes.view, &review, hook.timeout).await;
        let answer = answer.map_err(|error| match error {
            CallError::Target(error) => Failure::Call(format!("failed to call webhook: {error}")),
            error => Failure::Call(format!("failed to call webhook: {error}")),
        })?;
        let response = verify(&answer, version, &uid, mutating)
            .map_err(|why| Failure::Call(format!("received invalid webhook response: {why}")))?;
        for warning in response["warnings"].as_array().into_iter().flatten().take(WARNINGS_MAX) {
            let text = warning.as_str().unwrap_or_default();
            let end = text.floor_char_boundary(WARNING_BYTES_MAX);
            asked.attributes.warnings.add(&text[..end]);
        }
        if response["allowed"] != true {
            return Err(Failure::Refusal(denied(&hook.name, &response["status"])));
        }
        let patch = response["patch"].as_str().filter(|patch| mutating && !patch.is_empty());
        let patch = patch.map(|patch| STANDARD.decode(patch)).transpose();
        let patch = patch.map_err(|error| Failure::Call(format!("received invalid webhook response: {error}")))?;
        Ok(Answer { patch })
    }
}

/// How the webhook sees the request; `None` when it has nothing to do with it.
fn concerns(hook: &Hook, asked: &Asked<'_>, known: &mut Known) -> Result<Option<Seen>, Status> {
    let Some(seen) = asked.seen_by(&hook.rules, hook.equivalent) else { return Ok(None) };
    if !hook.selectors.matches(asked)? {
        return Ok(None);
    }
    let met = match &hook.broken {
        Some(why) => Err(why.clone()),
        None if hook.conditions.list.is_empty() => Ok(true),
        None => {
            let facts = known.get(asked, &seen);
            are_met(&hook.conditions, &facts.inputs())
        }
    };
    match met {
        Ok(true) => Ok(Some(seen)),
        Ok(false) => Ok(None),
        Err(why) if hook.ignores_failure => {
            tracing::warn!(webhook = hook.name, why, "failed evaluating match conditions, not called");
            Ok(None)
        }
        Err(why) => Err(asked.forbidden(&why)),
    }
}

/// Lets pass what the failure policy lets pass.
fn judge(hook: &Hook, failure: Failure) -> Result<(), Status> {
    match failure {
        Failure::Refusal(status) => Err(status),
        Failure::Call(why) if hook.ignores_failure => {
            tracing::warn!(webhook = hook.name, why, "failed calling webhook, failing open");
            Ok(())
        }
        Failure::Call(why) => {
            tracing::warn!(webhook = hook.name, why, "failed calling webhook, failing closed");
            Err(Status::internal(format_args!("failed calling webhook {:?}: {why}", hook.name)))
        }
    }
}

/// The `response` of a review that is what was asked for.
fn verify<'a>(review: &'a Value, version: &str, uid: &str, mutating: bool) -> Result<&'a Value, String> {
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    let has_patch = response["patch"].as_str().is_some_and(|patch| !patch.is_empty());
    let patch_type = response["patchType"].as_str();
    if version == "v1" {
        let answered = response["uid"].as_str().unwrap_or_default();
        if answered != uid {
            return Err(format!("expected response.uid={uid:?}, got {answered:?}"));
        }
        let text = |field: &str| review[field].as_str().unwrap_or_default();
        if text("apiVersion") != "admission.k8s.io/v1" || text("kind") != "AdmissionReview" {
            return Err(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
                text("apiVersion"),
                text("kind")
            ));
        }
        match (mutating, has_patch, patch_type) {
            (true, true, None) => return Err("webhook returned response.patch but not response.patchType".to_owned()),
            (true, false, Some(_)) => {
                return Err("webhook returned response.patchType but not response.patch".to_owned());
            }
            (false, true, _) => return Err("validating webhook may not return response.patch".to_owned()),
            (false, _, Some(_)) => return Err("validating webhook may not return response.patchType".to_owned()),
            _ => {}
        }
    }
    match patch_type {
        Some(other) if other != "JSONPatch" => Err(format!("webhook returned invalid response.patchType of {other:?}")),
        _ => Ok(response),
    }
}

/// The object after the patch; `None` when it is as before.
fn patched(hook: &Hook, seen: &Seen, asked: &Asked<'_>, patch: &[u8]) -> Result<Option<Value>, Status> {
    if serde_json::from_slice::<Value>(patch).is_ok_and(|patch| patch.as_array().is_some_and(Vec::is_empty)) {
        return Ok(None);
    }
    let Some(object) = asked.object() else {
        return Err(Status::internal(format_args!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        )));
    };
    let before = asked.convert(seen, object);
    let after = patch::json(&before, patch).map_err(Status::internal)?;
    if after == before {
        return Ok(None);
    }
    let after = settle(asked.attributes, asked.convert_back(seen, after))?;
    Ok((after != *object).then_some(after))
}

/// The refusal of a webhook, as upstream passes it on.
fn denied(name: &str, status: &Value) -> Status {
    let text = |field: &str| status[field].as_str().filter(|text| !text.is_empty());
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| (400..=599).contains(code)).unwrap_or(400);
    let by = format!("admission webhook {name:?} denied the request");
    let message = match (text("message"), text("reason")) {
        (Some(message), _) => format!("{by}: {message}"),
        (None, Some(reason)) => format!("{by}: {reason}"),
        (None, None) => format!("{by} without explanation"),
    };
    let mut refusal = Status::new(code, "", message);
    refusal.reason = text("reason").unwrap_or_default().to_owned().into();
    let details = &status["details"];
    if details.is_object() {
        let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
        let causes = details["causes"].as_array().into_iter().flatten().map(|cause| Cause {
            reason: text(cause, "reason"),
            message: text(cause, "message"),
            field: text(cause, "field"),
        });
        refusal = refusal.with_details(Details {
            name: text(details, "name"),
            group: text(details, "group"),
            kind: text(details, "kind"),
            uid: text(details, "uid"),
            causes: causes.collect(),
            retry_after_seconds: details["retryAfterSeconds"]
                .as_u64()
                .and_then(|seconds| u32::try_from(seconds).ok())
                .unwrap_or(0),
        });
    }
    refusal
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn refusals_are_passed_on_as_upstream_does() {
        let table = [
            (
                json!({"message": "no", "code": 418, "reason": "Teapot"}),
                418,
                "Teapot",
                "admission webhook \"a\" denied the request: no",
            ),
            (json!({"reason": "why"}), 400, "why", "admission webhook \"a\" denied the request: why"),
            (json!({"code": 200}), 400, "", "admission webhook \"a\" denied the request without explanation"),
            (Value::Null, 400, "", "admission webhook \"a\" denied the request without explanation"),
        ];
        for (status, code, reason, message) in table {
            let refusal = denied("a", &status);
            assert_eq!((refusal.code, &*refusal.reason, &*refusal.message), (code, reason, message));
        }
    }

    #[test]
    fn answers_have_to_be_of_the_question() {
        let answer = |response: Value| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        let good = answer(json!({"uid": "u", "allowed": true}));
        assert!(verify(&good, "v1", "u", true).is_ok());
        assert_eq!(verify(&good, "v1", "v", true).unwrap_err(), "expected response.uid=\"v\", got \"u\"");
        assert_eq!(verify(&json!({}), "v1", "u", true).unwrap_err(), "webhook response was absent");
        let patch = answer(json!({"uid": "u", "allowed": true, "patch": "W10="}));
        assert!(verify(&patch, "v1", "u", true).unwrap_err().contains("patchType"));
        assert!(verify(&patch, "v1", "u", false).unwrap_err().contains("may not return"));
        assert!(verify(&json!({"response": {"allowed": true}}), "v1beta1", "u", true).is_ok());
    }
}
