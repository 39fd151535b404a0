//! `pods/eviction`: a deletion that respects disruption budgets.

use http::StatusCode;
use mussel_api::object::ObjectExt;
use mussel_api::selector::LabelSelector;
use mussel_store::{Freshness, Txn};
use serde_json::{Value, json};

use super::body::{self, Expected};
use super::call::{Call, Current, definition};
use super::delete::remove;
use super::negotiate;
use super::options::{DeleteOptions, WriteOptions};
use super::strategy::pods::set_condition;
use super::write::{ATTEMPTS_MAX, now};
use crate::handler::Response;
use crate::status::Status;

/// Evictions that wait for the budget's controller are tried again after so long.
const RETRY_SECONDS: u32 = 10;

/// More than this many evictions in flight mean that the budget's controller does not work.
const DISRUPTED_MAX: usize = 2000;

pub async fn create(call: &Call<'_>) -> Result<Response, Status> {
    let request = call.request;
    let name = call.name();
    let options = WriteOptions::of(request, "CreateOptions")?;
    let format = body::format(&request.headers)?;
    let schema = definition("io.k8s.api.policy.v1.Eviction")?;
    let mut expected =
        Expected { api_version: "policy/v1".to_owned(), kind: "Eviction", schema: &schema, custom: None };
    // The older version has the same fields.
    let parsed = mussel_api::decode::parse(&request.body, format).unwrap_or_default();
    if parsed["apiVersion"] == "policy/v1beta1" {
        expected.api_version = "policy/v1beta1".to_owned();
    }
    let mut eviction = body::decode(&request.body, format, &expected, options.strictness, &request.warnings)?;
    if !eviction.name().is_empty() && eviction.name() != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let view = call.view(Freshness::Linearizable).await?;
    call.pass(name, "eviction", options.dry_run, &schema, &view, &mut eviction).await?;
    let mut delete = DeleteOptions::from_value(&eviction["deleteOptions"], options.dry_run)?;

    loop {
        let view = call.view(Freshness::Linearizable).await?;
        let pod = call.find(&view, name).await?.ok_or_else(|| call.not_found(name))?.object;
        if delete.uid.is_none() {
            delete.uid = Some(pod.uid().to_owned());
        }
        if can_ignore_budget(&pod) {
            break;
        }
        let budgets: Vec<Value> =
            view.list("poddisruptionbudgets.policy", &call.namespace).filter(|budget| covers(budget, &pod)).collect();
        let budget = match budgets.as_slice() {
            [] => break,
            [one] => one,
            _ => {
                return Err(Status::new(
                    500,
                    "InternalError",
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        let is_ready = is_ready(&pod);
        if !is_ready && unhealthy_may_go(budget) {
            break;
        }
        let mut budget = budget.clone();
        charge(&mut budget, name)?;
        if delete.dry_run {
            break;
        }
        let budgets = call.on("policy", "v1", "poddisruptionbudgets")?;
        let Ok(revision) = budget.resource_version().parse() else {
            return Err(Status::internal("budget without version"));
        };
        let revision = mussel_store::Revision(revision);
        if budgets.replace(budget.name(), revision, &budget, Txn::default()).await?.is_some() {
            break;
        }
    }
    if !delete.dry_run {
        mark(call, name, &delete).await?;
    }
    remove(call, name, &delete).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    negotiate::respond(StatusCode::CREATED, call.form, &status)
}

/// Says in the Pod's status that it does not end by itself, so that a Job's failure policy can tell.
async fn mark(call: &Call<'_>, name: &str, delete: &DeleteOptions) -> Result<(), Status> {
    for _ in 0..ATTEMPTS_MAX {
        let view = call.view(Freshness::Linearizable).await?;
        let Current { object: mut pod, revision, .. } =
            call.find(&view, name).await?.ok_or_else(|| call.not_found(name))?;
        let another = delete.uid.as_deref().is_some_and(|uid| uid != pod.uid());
        if another || pod.is_deleting() || matches!(pod.str_at("status.phase"), "Succeeded" | "Failed") {
            // The deletion itself says what is wrong, if anything.
            return Ok(());
        }
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastTransitionTime": now(), "observedGeneration": pod.generation()});
        set_condition(&mut pod, condition);
        if call.replace(name, revision, &pod, Txn::default()).await?.is_some() {
            return Ok(());
        }
    }
    Err(call.server_timeout("evict"))
}

/// Pods that are over, were never run or are going anyway do not count.
fn can_ignore_budget(pod: &Value) -> bool {
    pod.is_deleting() || matches!(pod.str_at("status.phase"), "Succeeded" | "Failed" | "Pending")
}

fn covers(budget: &Value, pod: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    !selector.is_null()
        && LabelSelector::from_value(Some(selector)).is_ok_and(|selector| selector.matches(pod.labels()))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// By the budget's policy, pods that are not healthy may be evicted whatever the budget.
fn unhealthy_may_go(budget: &Value) -> bool {
    if budget.str_at("spec.unhealthyPodEvictionPolicy") == "AlwaysAllow" {
        return true;
    }
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0
}

/// Takes one disruption from the budget for this pod.
fn charge(budget: &mut Value, pod: &str) -> Result<(), Status> {
    let name = budget.name().to_owned();
    let refuse = |cause: &str, retry: u32| {
        let status =
            Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", retry);
        status.with_cause("DisruptionBudget", cause, "")
    };
    let observed = budget["status"]["observedGeneration"].as_i64().unwrap_or(0);
    if observed < budget.generation() {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refuse(&cause, RETRY_SECONDS));
    }
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return Err(Status::forbidden("policy", "poddisruptionbudgets", &name, "pdb disruptions allowed is negative"));
    }
    let disrupted = budget["status"]["disruptedPods"].as_object().map_or(0, serde_json::Map::len);
    if disrupted > DISRUPTED_MAX {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden("policy", "poddisruptionbudgets", &name, why));
    }
    if allowed == 0 {
        let cause = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        );
        return Err(refuse(&cause, 0));
    }
    let status = &mut budget["status"];
    status["disruptionsAllowed"] = (allowed - 1).into();
    if !status["disruptedPods"].is_object() {
        status["disruptedPods"] = json!({});
    }
    status["disruptedPods"][pod] = now().into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_charged_until_it_is_spent() {
        let mut budget = json!({"metadata": {"name": "b", "generation": 2},
            "status": {"observedGeneration": 1, "disruptionsAllowed": 1, "desiredHealthy": 2, "currentHealthy": 3}});
        assert_eq!(charge(&mut budget, "p").unwrap_err().code, 429);
        budget["status"]["observedGeneration"] = 2.into();
        charge(&mut budget, "p").unwrap();
        assert_eq!(budget["status"]["disruptionsAllowed"], 0);
        let refusal = charge(&mut budget, "q").unwrap_err();
        assert_eq!(refusal.message, "Cannot evict pod as it would violate the pod's disruption budget.");
        let cause = &refusal.details.unwrap().causes[0];
        assert_eq!(cause.message, "The disruption budget b needs 2 healthy pods and has 3 currently");
    }
}
