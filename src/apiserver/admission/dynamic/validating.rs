//! Validating admission policies.

use mussel_cel::Value;

use super::asked::Asked;
use super::facts::{Known, are_met, describe};
use super::follow::{Followed, Parsed};
use super::policies::{Binding, Invocation, Policy, binding, invocations, policy};
use crate::cel::{MESSAGE_BYTES_MAX, TOTAL_COST_MAX};
use crate::registry::view::View;
use crate::status::Status;

pub struct Validating {
    policies: Followed<Policy>,
    bindings: Followed<Binding>,
}

impl Default for Validating {
    fn default() -> Self {
        Self {
            policies: Followed::new("validatingadmissionpolicies.admissionregistration.k8s.io", policy),
            bindings: Followed::new("validatingadmissionpolicybindings.admissionregistration.k8s.io", binding),
        }
    }
}

/// A validation that a request does not pass.
struct Denial {
    message: String,
    /// `None`: `Invalid`.
    reason: Option<String>,
}

impl Denial {
    fn failure(message: String) -> Self {
        Self { message, reason: None }
    }
}

impl Validating {
    /// The policies in force; `None` when there is none that is bound.
    pub fn of(&self, view: &View) -> Option<(Parsed<Policy>, Parsed<Binding>)> {
        let policies = self.policies.of(view);
        let bindings = if policies.is_empty() { return None } else { self.bindings.of(view) };
        (!bindings.is_empty()).then_some((policies, bindings))
    }

    /// Evaluates the policies that a request calls for. Returns whether there were any.
    ///
    /// # Errors
    /// The first denial.
    pub fn validate(
        &self,
        asked: &Asked<'_>,
        policies: &Parsed<Policy>,
        bindings: &Parsed<Binding>,
    ) -> Result<bool, Status> {
        let bindings: Vec<&Binding> = bindings.iter().map(|entry| &*entry.value).collect();
        let (due, wrong) = invocations(asked, policies.iter().map(|entry| &*entry.value), &bindings);
        let any = !due.is_empty();
        // In the order of their names, as upstream finds them: policies first, then bindings.
        let mut denied: Vec<(&Policy, Option<&Binding>, Denial)> =
            wrong.into_iter().map(|wrong| (wrong.policy, wrong.binding, Denial::failure(wrong.why))).collect();
        let mut known = Known::default();
        for invocation in &due {
            let Invocation { policy, binding, .. } = invocation;
            for denial in evaluate(asked, invocation, &mut known) {
                for action in &binding.actions {
                    match action.as_str() {
                        "Deny" => {
                            let Denial { message, reason } = &denial;
                            let denial = Denial { message: message.clone(), reason: reason.clone() };
                            denied.push((policy, Some(binding), denial));
                        }
                        "Warn" => asked.attributes.warnings.add(format!(
                            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                            policy.name, binding.name, denial.message
                        )),
                        // There is no audit log to write to.
                        _ => tracing::info!(
                            policy = policy.name,
                            binding = binding.name,
                            message = denial.message,
                            "validation failed"
                        ),
                    }
                }
            }
        }
        denied.sort_by(|(a, ..), (b, ..)| a.name.cmp(&b.name));
        match denied.into_iter().next() {
            None => Ok(any),
            Some((policy, binding, denial)) => Err(refusal(asked, policy, binding, denial)),
        }
    }
}

fn refusal(asked: &Asked<'_>, policy: &Policy, binding: Option<&Binding>, denial: Denial) -> Status {
    let message = match binding {
        Some(binding) => format!(
            "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {}",
            policy.name, binding.name, denial.message
        ),
        None => format!("ValidatingAdmissionPolicy '{}' denied request: {}", policy.name, denial.message),
    };
    let reason = denial.reason.unwrap_or_else(|| "Invalid".to_owned());
    let mut status = asked.forbidden(&message);
    status.code = match reason.as_str() {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    status.reason = reason.into();
    status.with_cause("", &message, "")
}

/// The validations that the request does not pass.
fn evaluate(asked: &Asked<'_>, invocation: &Invocation<'_>, known: &mut Known) -> Vec<Denial> {
    let Invocation { policy, seen, params, .. } = invocation;
    let compiled = &policy.compiled;
    let facts = known.get(asked, seen);
    let params = Value::from_json(params);
    let mut inputs = facts.inputs();
    inputs.params = &params;
    // What fails denies, unless failures are to be ignored.
    let failure = |message: String| {
        if policy.ignores_failure {
            tracing::debug!(policy = policy.name, message, "failed evaluation ignored");
            None
        } else {
            Some(Denial::failure(message))
        }
    };
    match are_met(&compiled.conditions, &inputs) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(why) => return failure(why).into_iter().collect(),
    }
    let inputs = inputs.with_variables(&compiled.variables);
    let mut total = TOTAL_COST_MAX;
    let mut denials = Vec::new();
    for validation in &compiled.validations {
        match inputs.evaluate(&validation.program, &mut total) {
            Ok(Value::Bool(true)) => {}
            Ok(_) => {
                let own = validation.message_program.as_ref().and_then(|program| {
                    let made = inputs.evaluate(program, &mut total).inspect_err(|error| {
                        tracing::debug!(policy = policy.name, %error, "message expression failed");
                    });
                    let text = made.ok()?.as_str()?.trim().to_owned();
                    (!text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n')).then_some(text)
                });
                let message = own.unwrap_or_else(|| match validation.message.trim() {
                    "" => format!("failed expression: {}", validation.expression.trim()),
                    message => message.to_owned(),
                });
                denials.push(Denial { message, reason: validation.reason.clone() });
            }
            Err(error) => {
                denials.extend(failure(describe(&validation.expression, &error)));
                if error == mussel_cel::EvalError::OutOfBudget {
                    break;
                }
            }
        }
    }
    for (key, program, source) in &compiled.annotations {
        match inputs.evaluate(program, &mut total) {
            Ok(value) => {
                let text = value.as_str().map(str::trim).unwrap_or_default();
                if !text.is_empty() {
                    tracing::debug!(policy = policy.name, key, "audit annotation");
                }
            }
            Err(error) => denials.extend(failure(describe(source, &error))),
        }
    }
    denials
}
