//! What both kinds of policy have in common: what they are about, what binds them, and their parameters.

use mussel_api::object::ObjectExt;
use mussel_api::selector::LabelSelector;
use serde_json::Value;

use super::asked::{Asked, Seen};
use super::compiled::{self, Compiled};
use super::rules::{Rule, Selectors};
use crate::custom;
use crate::registry::call::stored_as;
use crate::registry::convert;
use crate::status::Status;

/// Parameters that one binding may select.
const PARAMS_MAX: usize = 1000;

/// A `MatchResources`, parsed.
pub struct Constraints {
    rules: Vec<Rule>,
    exclude: Vec<Rule>,
    selectors: Selectors,
    equivalent: bool,
}

impl Constraints {
    fn of(resources: &Value) -> Self {
        Self {
            rules: Rule::all_of(&resources["resourceRules"]),
            exclude: Rule::all_of(&resources["excludeResourceRules"]),
            selectors: Selectors::of(resources),
            equivalent: resources["matchPolicy"] != "Exact",
        }
    }

    /// How the request is seen through these; `None` when it is not meant. Without rules all are.
    ///
    /// # Errors
    /// When a selector is none, or the namespace does not exist.
    fn seen(&self, asked: &Asked<'_>) -> Result<Option<Seen>, Status> {
        if asked.seen_by(&self.exclude, self.equivalent).is_some() {
            return Ok(None);
        }
        let seen =
            if self.rules.is_empty() { Some(asked.as_made()) } else { asked.seen_by(&self.rules, self.equivalent) };
        match seen {
            Some(seen) if self.selectors.matches(asked)? => Ok(Some(seen)),
            _ => Ok(None),
        }
    }
}

/// A policy, parsed and compiled.
pub struct Policy {
    pub name: String,
    constraints: Constraints,
    /// API version and kind.
    param_kind: Option<(String, String)>,
    pub compiled: Compiled,
    /// Why it cannot be used.
    pub broken: Option<String>,
    pub ignores_failure: bool,
    pub reinvocable: bool,
}

pub fn policy(object: &Value) -> Policy {
    let spec = &object["spec"];
    let (compiled, errors) = compiled::policy(object);
    let kind = &spec["paramKind"];
    let text = |field: &str| kind[field].as_str().unwrap_or_default().to_owned();
    Policy {
        name: object.name().to_owned(),
        constraints: Constraints::of(&spec["matchConstraints"]),
        param_kind: kind.is_object().then(|| (text("apiVersion"), text("kind"))),
        compiled,
        broken: errors.first().map(|error| error.detail.clone()),
        ignores_failure: spec["failurePolicy"] == "Ignore",
        reinvocable: spec["reinvocationPolicy"] == "IfNeeded",
    }
}

/// A binding, parsed.
pub struct Binding {
    pub name: String,
    pub policy: String,
    /// `Deny`, `Warn`, `Audit`.
    pub actions: Vec<String>,
    constraints: Option<Constraints>,
    params: Option<ParamRef>,
}

struct ParamRef {
    name: String,
    namespace: String,
    selector: Option<Result<LabelSelector, String>>,
    denies_without: bool,
}

pub fn binding(object: &Value) -> Binding {
    let spec = &object["spec"];
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let reference = &spec["paramRef"];
    let selector = &reference["selector"];
    Binding {
        name: object.name().to_owned(),
        policy: text(spec, "policyName"),
        actions: super::rules::texts(&spec["validationActions"]),
        constraints: spec["matchResources"].is_object().then(|| Constraints::of(&spec["matchResources"])),
        params: reference.is_object().then(|| ParamRef {
            name: text(reference, "name"),
            namespace: text(reference, "namespace"),
            selector: selector
                .is_object()
                .then(|| LabelSelector::from_value(Some(selector)).map_err(|error| error.to_string())),
            denies_without: reference["parameterNotFoundAction"] != "Allow",
        }),
    }
}

/// One evaluation that a request calls for.
pub struct Invocation<'p> {
    pub policy: &'p Policy,
    pub binding: &'p Binding,
    pub seen: Seen,
    /// `Null` without parameters.
    pub params: Value,
}

/// A policy, or its binding, that cannot be evaluated; its failure policy is `Fail`.
pub struct Misconfigured<'p> {
    pub policy: &'p Policy,
    pub binding: Option<&'p Binding>,
    pub why: String,
}

/// What a request calls for, in the order of the policies' and bindings' names.
pub fn invocations<'p>(
    asked: &Asked<'_>,
    policies: impl Iterator<Item = &'p Policy>,
    bindings: &[&'p Binding],
) -> (Vec<Invocation<'p>>, Vec<Misconfigured<'p>>) {
    let (mut due, mut wrong) = (Vec::new(), Vec::new());
    for policy in policies {
        let mut fail = |binding: Option<&'p Binding>, why: String| {
            if policy.ignores_failure {
                tracing::warn!(policy = policy.name, why, "admission policy ignored");
                return;
            }
            let what = if binding.is_some() { "binding" } else { "policy" };
            wrong.push(Misconfigured { policy, binding, why: format!("failed to configure {what}: {why}") });
        };
        let bound: Vec<&&Binding> = bindings.iter().filter(|binding| binding.policy == policy.name).collect();
        if bound.is_empty() {
            continue;
        }
        let seen = match policy.constraints.seen(asked) {
            Ok(Some(seen)) => seen,
            Ok(None) => continue,
            Err(status) => {
                fail(None, status.message);
                continue;
            }
        };
        if let Some(why) = &policy.broken {
            fail(None, why.clone());
            continue;
        }
        for binding in bound {
            match binding.constraints.as_ref().map(|constraints| constraints.seen(asked)) {
                None | Some(Ok(Some(_))) => {}
                Some(Ok(None)) => continue,
                Some(Err(status)) => {
                    fail(Some(binding), status.message);
                    continue;
                }
            }
            match params(asked, policy, binding) {
                Ok(found) => due.extend(found.into_iter().map(|params| Invocation {
                    policy,
                    binding,
                    seen: seen.clone(),
                    params,
                })),
                Err(why) => fail(Some(binding), why),
            }
        }
    }
    (due, wrong)
}

/// The parameters that a binding names; one `Null` when it names none.
fn params(asked: &Asked<'_>, policy: &Policy, binding: &Binding) -> Result<Vec<Value>, String> {
    let (Some((api_version, kind)), Some(reference)) = (&policy.param_kind, &binding.params) else {
        return Ok(vec![Value::Null]);
    };
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let context = asked.attributes.context;
    let row = context.catalog.by_kind(group, version, kind);
    let row = row.ok_or_else(|| format!("paramKind kind `{api_version}, Kind={kind}` not known"))?;
    let namespace = match (row.namespaced, reference.namespace.as_str()) {
        (false, "") => "",
        (false, _) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
        (true, "") if asked.namespace.is_empty() || asked.is_namespace() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned()
            );
        }
        (true, "") => asked.namespace,
        (true, named) => named,
    };
    let view = asked.attributes.view;
    let stored = stored_as(&row);
    let found: Vec<Value> = match &reference.selector {
        None => view.get(&stored, namespace, &reference.name).into_iter().collect(),
        Some(Err(why)) => return Err(why.clone()),
        Some(Ok(selector)) => {
            view.list(&stored, namespace).filter(|object| selector.matches(object.labels())).take(PARAMS_MAX).collect()
        }
    };
    if found.is_empty() && reference.denies_without {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    let served = |object| match &row.custom {
        // One whose versions are converted by a webhook is taken as it is stored.
        Some(kind) if custom::convert::asks(kind) => object,
        Some(kind) => custom::convert::served_now(kind, object),
        None => convert::from_storage(&row, object),
    };
    Ok(found.into_iter().map(served).collect())
}
