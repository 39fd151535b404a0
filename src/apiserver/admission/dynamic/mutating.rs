//! Mutating admission policies.

use mussel_api::apply;
use mussel_api::patch;
use mussel_api::schema::{ListType, Schema, Type};
use mussel_cel::{Budget, Value};
use serde_json::Value as Json;

use super::asked::Asked;
use super::compiled::{Expression, Mutation};
use super::facts::{Known, are_met, describe};
use super::follow::{Followed, Parsed};
use super::policies::{Binding, Invocation, Policy, binding, invocations, policy};
use super::{Memory, schema_of, settle};
use crate::cel::TOTAL_COST_MAX;
use crate::cel::admission::Inputs;
use crate::registry::view::View;
use crate::status::Status;

pub struct Mutating {
    policies: Followed<Policy>,
    bindings: Followed<Binding>,
}

impl Default for Mutating {
    fn default() -> Self {
        Self {
            policies: Followed::new("mutatingadmissionpolicies.admissionregistration.k8s.io", policy),
            bindings: Followed::new("mutatingadmissionpolicybindings.admissionregistration.k8s.io", binding),
        }
    }
}

/// Why a policy did not change the object.
enum Failure {
    /// Its failure policy decides.
    Policy(String),
    Refusal(Status),
}

impl Mutating {
    /// The policies in force; `None` when there is none that is bound.
    pub fn of(&self, view: &View) -> Option<(Parsed<Policy>, Parsed<Binding>)> {
        let policies = self.policies.of(view);
        let bindings = if policies.is_empty() { return None } else { self.bindings.of(view) };
        (!bindings.is_empty()).then_some((policies, bindings))
    }

    /// Lets the policies change the object, one after the other. Returns whether one did.
    ///
    /// # Errors
    /// The first failure of a policy that is not to be ignored.
    pub fn mutate(
        &self,
        asked: &mut Asked<'_>,
        policies: &Parsed<Policy>,
        bindings: &Parsed<Binding>,
        memory: &mut Memory,
    ) -> Result<bool, Status> {
        let bindings: Vec<&Binding> = bindings.iter().map(|entry| &*entry.value).collect();
        let (due, wrong) = invocations(asked, policies.iter().map(|entry| &*entry.value), &bindings);
        let mut errors: Vec<(String, &'static str)> = Vec::new();
        for wrong in wrong {
            errors.push((text(wrong.policy, wrong.binding, &wrong.why), "Forbidden"));
        }
        let mut known = Known::default();
        let mut changed = false;
        for (at, invocation) in due.iter().enumerate() {
            let Invocation { policy, binding, .. } = invocation;
            let id = format!("policy/{}/{}/{at}", policy.name, binding.name);
            if asked.object().is_none() || !memory.calls(&id) {
                continue;
            }
            let before = asked.object().cloned();
            match apply_policy(asked, invocation, &mut known) {
                Ok(()) => {}
                Err(Failure::Refusal(status)) => return Err(status),
                Err(Failure::Policy(why)) if policy.ignores_failure => {
                    tracing::warn!(policy = policy.name, why, "mutating policy failed, failing open");
                }
                Err(Failure::Policy(why)) => errors.push((text(policy, Some(binding), &why), "Invalid")),
            }
            let is_new = before.as_ref() != asked.object();
            changed |= is_new;
            memory.called(&id, policy.reinvocable, is_new);
        }
        let Some((message, reason)) = errors.first() else { return Ok(changed) };
        let mut status = asked.forbidden("admission request denied by policy");
        status.message.clone_from(message);
        status.reason = (*reason).into();
        for (message, _) in &errors {
            status = status.with_cause("", message, "");
        }
        Err(status)
    }
}

fn text(policy: &Policy, binding: Option<&Binding>, why: &str) -> String {
    match binding {
        Some(binding) => format!("policy '{}' with binding '{}' denied request: {why}", policy.name, binding.name),
        None => format!("policy '{}' denied request: {why}", policy.name),
    }
}

fn apply_policy(asked: &mut Asked<'_>, invocation: &Invocation<'_>, known: &mut Known) -> Result<(), Failure> {
    let Invocation { policy, seen, params, .. } = invocation;
    let compiled = &policy.compiled;
    let params = Value::from_json(params);
    {
        let facts = known.get(asked, seen);
        let mut inputs = facts.inputs();
        inputs.params = &params;
        match are_met(&compiled.conditions, &inputs) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(why) => return Err(Failure::Policy(why)),
        }
    }
    let mut total = TOTAL_COST_MAX;
    for mutation in &compiled.mutations {
        // Each sees what those before have made, variables too.
        let facts = known.get(asked, seen);
        let mut inputs = facts.inputs();
        inputs.params = &params;
        let inputs = inputs.with_variables(&compiled.variables);
        let Some(object) = asked.object() else { return Ok(()) };
        let before = asked.convert(seen, object);
        let after = match mutation {
            Mutation::Apply(expression) => {
                let made = evaluate(&inputs, expression, &mut total)?;
                applied(asked, &before, &made).map_err(Failure::Policy)?
            }
            Mutation::JsonPatch(expression) => {
                let made = evaluate(&inputs, expression, &mut total)?;
                let operations = operations(&made).map_err(Failure::Policy)?;
                patch::json(&before, operations.to_string().as_bytes())
                    .map_err(|error| Failure::Policy(format!("JSON Patch: {error}")))?
            }
        };
        if after == before {
            continue;
        }
        let after = settle(asked.attributes, asked.convert_back(seen, after)).map_err(Failure::Refusal)?;
        asked.replace(after);
        known.forget();
    }
    Ok(())
}

fn evaluate(inputs: &Inputs<'_>, expression: &Expression, total: &mut u64) -> Result<Value, Failure> {
    let made = inputs.evaluate(&expression.program, total);
    made.map_err(|error| Failure::Policy(describe(&expression.source, &error)))
}

/// `object` with what an `Object{…}` says merged into it, as server-side apply does, but without owners.
fn applied(asked: &Asked<'_>, object: &Json, made: &Value) -> Result<Json, String> {
    check_names(made, "Object").map_err(|why| format!("type mismatch: {why}"))?;
    let configuration = made.to_json(&mut Budget::new(TOTAL_COST_MAX)).map_err(|error| error.to_string())?;
    let Some(schema) = schema_of(asked.attributes) else {
        return Err("error applying patch: the kind of the object has no schema".to_owned());
    };
    let mut atomics = Vec::new();
    find_atomics(&configuration, &schema, "", &mut atomics);
    if !atomics.is_empty() {
        return Err(format!(
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomics.join(", ")
        ));
    }
    Ok(apply::merge(object, &configuration, Some(&schema)))
}

/// `Object.spec{…}` stands at `spec`, and nowhere else.
fn check_names(value: &Value, expected: &str) -> Result<(), String> {
    match value {
        Value::Struct(name, fields) => {
            if &**name != expected {
                return Err(format!(
                    "unexpected type name {name:?}, expected {expected:?}, which matches field name path from root Object type"
                ));
            }
            fields.iter().try_for_each(|(field, value)| check_names(value, &format!("{expected}.{field}")))
        }
        Value::List(items) => items.iter().try_for_each(|item| check_names(item, expected)),
        Value::Map(map) => map.values().try_for_each(|value| match value {
            Value::Struct(..) => check_names(value, expected),
            _ => Ok(()),
        }),
        _ => Ok(()),
    }
}

/// What can only be replaced as a whole: to set a part of it would take away the rest.
fn find_atomics(value: &Json, schema: &Schema, path: &str, found: &mut Vec<String>) {
    match (value, schema.ty()) {
        (Json::Object(map), Type::Object) => {
            if schema.map_type_atomic() {
                found.push(path.to_owned());
            }
            for (name, value) in map {
                let below = schema.property(name).or_else(|| schema.additional_properties());
                if let Some(below) = below {
                    find_atomics(value, &below, &format!("{path}.{name}"), found);
                }
            }
        }
        (Json::Array(items), Type::Array) => {
            if schema.list_type() == ListType::Atomic {
                found.push(path.to_owned());
            }
            if let Some(below) = schema.items() {
                for (at, value) in items.iter().enumerate() {
                    find_atomics(value, &below, &format!("{path}[{at}]"), found);
                }
            }
        }
        _ => {}
    }
}

/// A list of `JSONPatch{…}` as RFC 6902 has it.
fn operations(made: &Value) -> Result<Json, String> {
    let Value::List(items) = made else { return Err("type mismatch: not a list of JSONPatch".to_owned()) };
    let mut budget = Budget::new(TOTAL_COST_MAX);
    let mut operations = Vec::new();
    for item in items.iter() {
        let mut operation = item.to_json(&mut budget).map_err(|error| error.to_string())?;
        let op = operation["op"].as_str().unwrap_or_default().to_owned();
        if let ("add" | "replace" | "test", Some(map)) = (op.as_str(), operation.as_object_mut()) {
            map.entry("value").or_insert(Json::Null);
        }
        if !matches!(op.as_str(), "add" | "replace" | "test" | "remove" | "move" | "copy") {
            return Err(format!("invalid JSONPatch operation: {op:?}"));
        }
        operations.push(operation);
    }
    Ok(operations.into())
}
