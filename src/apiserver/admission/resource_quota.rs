//! ResourceQuotas: what a namespace may hold and ask for in all.
//!
//! What is used is counted from the objects themselves at the moment of the request, not taken from the quota's status:
//! the count is then right whether or not the quota controller has caught up.

use mussel_api::object::{self, ObjectExt};
use mussel_api::quantity::Quantity;
use mussel_api::quota::{Amounts, amounts, in_scope, is_over, usage};
use mussel_store::{Precondition, Revision, Txn};
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::registry::key;
use crate::status::Status;

pub struct ResourceQuota;

/// Names that bound what containers ask for; a pod must then say how much it wants.
const COMPUTE: [&str; 6] = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object.filter(|_| may_take(attributes)) else { return Ok(()) };
        for quota in attributes.view.list("resourcequotas", attributes.namespace) {
            check(attributes, &quota, object)?;
        }
        Ok(())
    }

    /// Two creations must not both take the last of a quota: each writes the quota's status too, and the second one is
    /// refused by the store and counts again.
    fn reserve(&self, attributes: &Attributes<'_>, object: &Value, txn: &mut Txn) -> Result<(), Status> {
        if !may_take(attributes) {
            return Ok(());
        }
        for mut quota in attributes.view.list("resourcequotas", attributes.namespace) {
            let taken = check(attributes, &quota, object)?;
            if taken.is_empty() {
                continue;
            }
            let revision = quota.resource_version().parse().map_err(Status::internal)?;
            let key = key::object("resourcequotas", attributes.namespace, quota.name());
            if !quota["status"].is_object() {
                quota["status"] = json!({});
            }
            quota["status"]["hard"] = quota["spec"]["hard"].clone();
            for (name, amount) in taken {
                quota["status"]["used"][name] = amount.to_string().into();
            }
            txn.preconditions.push(Precondition::At(key.clone(), Revision(revision)));
            txn.puts.push((key, object::encode(&quota)));
        }
        Ok(())
    }
}

/// Whether the request can take something: what is new does, and of what is there, claims, services and resized pods.
fn may_take(attributes: &Attributes<'_>) -> bool {
    let takes = match attributes.operation {
        Operation::Create => attributes.subresource.is_empty(),
        Operation::Update => matches!(
            (attributes.stored_as, attributes.subresource),
            ("services" | "persistentvolumeclaims", "") | ("pods", "resize")
        ),
        Operation::Delete | Operation::Connect => false,
    };
    takes && !attributes.namespace.is_empty()
}

/// What is in use of the names that the object takes something of, when it is there.
///
/// # Errors
/// When that is more than the quota allows.
fn check(attributes: &Attributes<'_>, quota: &Value, object: &Value) -> Result<Amounts, Status> {
    let kind = attributes.stored_as;
    let hard: Amounts = amounts(&quota["spec"]["hard"]);
    if !in_scope(quota, kind, object) {
        return Ok(Amounts::new());
    }
    let mut wanted = usage(kind, object);
    wanted.retain(|name, _| hard.contains_key(name));
    if kind == "pods" {
        let missing = unspecified(&hard, object);
        if !missing.is_empty() {
            let why = format!("failed quota: {}: must specify {}", quota.name(), missing.join("; "));
            return Err(attributes.forbidden(&why));
        }
    }
    if let Some(old) = attributes.old {
        for (name, amount) in usage(kind, old) {
            if let Some(wanted) = wanted.get_mut(&name) {
                *wanted -= amount;
            }
        }
    }
    wanted.retain(|_, amount| *amount > Quantity::ZERO);
    if wanted.is_empty() {
        return Ok(wanted);
    }
    let mut used = Amounts::new();
    for other in attributes.view.list(kind, attributes.namespace) {
        if in_scope(quota, kind, &other) && !is_over(kind, &other) {
            for (name, amount) in usage(kind, &other) {
                *used.entry(name).or_default() += amount;
            }
        }
    }
    let in_use = |name: &String| used.get(name).copied().unwrap_or(Quantity::ZERO);
    let exceeded: Vec<&String> =
        wanted.iter().filter(|(name, amount)| in_use(name) + **amount > hard[*name]).map(|(name, _)| name).collect();
    if exceeded.is_empty() {
        return Ok(wanted.iter().map(|(name, amount)| (name.clone(), in_use(name) + *amount)).collect());
    }
    let print = |amount: &dyn Fn(&String) -> Quantity| {
        let list = exceeded.iter().map(|name| format!("{name}={}", amount(name)));
        list.collect::<Vec<_>>().join(",")
    };
    let limited: Vec<String> = exceeded
        .iter()
        .map(|name| format!("{name}={}", quota["spec"]["hard"][name.as_str()].as_str().unwrap_or_default()))
        .collect();
    Err(attributes.forbidden(&format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        quota.name(),
        print(&|name| wanted[name]),
        print(&in_use),
        limited.join(",")
    )))
}

/// `cpu for: a,b`: what containers leave open although the quota bounds it.
fn unspecified(hard: &Amounts, pod: &Value) -> Vec<String> {
    let mut missing = Vec::new();
    for bound in COMPUTE.into_iter().filter(|name| hard.contains_key(*name)) {
        let (field, name) = match bound.split_once('.') {
            Some((field, name)) => (field, name),
            None => ("requests", bound),
        };
        let lists = ["containers", "initContainers"].into_iter();
        let containers = lists.flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
        let open: Vec<&str> = containers
            .filter(|container| container["resources"][field][name].is_null())
            .filter_map(|container| container["name"].as_str())
            .collect();
        if !open.is_empty() {
            missing.push(format!("{bound} for: {}", open.join(",")));
        }
    }
    missing.sort();
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bounded_must_be_said() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}}, {"name": "b"}]}});
        let hard = amounts(&json!({"cpu": "1", "limits.memory": "1Gi", "pods": "3"}));
        assert_eq!(unspecified(&hard, &pod), ["cpu for: b", "limits.memory for: a,b"]);
    }
}
