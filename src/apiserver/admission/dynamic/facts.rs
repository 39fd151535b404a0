//! A request as expressions see it.

use std::sync::Arc;

use mussel_cel::{EvalError, Value};

use super::asked::{Asked, Seen};
use super::compiled::Conditions;
use crate::authz;
use crate::cel::CONDITIONS_COST_MAX;
use crate::cel::admission::{Inputs, authorizer, namespace_value, request_resource};

/// The variables of a request, made once for all who ask.
pub struct Facts {
    pub object: Value,
    pub old: Value,
    pub request: Value,
    pub namespace: Value,
    pub authorizer: (Value, Value),
}

impl Facts {
    pub fn new(asked: &Asked<'_>, seen: &Seen) -> Self {
        let shown = |object: Option<&serde_json::Value>| {
            object.map_or(Value::Null, |object| Value::from_json(&asked.convert(seen, object)))
        };
        let attributes = asked.attributes;
        // A namespace is not in itself.
        let namespace = if asked.is_namespace() || asked.namespace.is_empty() {
            None
        } else {
            attributes.view.get("namespaces", "", asked.namespace)
        };
        let rights = &attributes.context.authorizer;
        let resource = authz::Attributes {
            subresource: asked.subresource.to_owned(),
            ..authz::Attributes::resource(
                attributes.user,
                "",
                &attributes.resource.group,
                &attributes.resource.plural,
                attributes.namespace,
                asked.name,
            )
        };
        Self {
            object: shown(asked.object()),
            old: shown(asked.old()),
            request: Value::from_json(&asked.request(seen)),
            namespace: namespace.map_or(Value::Null, |namespace| namespace_value(&namespace)),
            authorizer: (authorizer(rights, attributes.user), request_resource(rights, resource)),
        }
    }

    pub fn inputs(&self) -> Inputs<'_> {
        let mut inputs = Inputs::new(&self.object, &self.old, &self.request, &self.namespace);
        inputs.authorizer = Some(&self.authorizer);
        inputs
    }
}

/// Whether all conditions are met. One that is not decides, whatever the others are; otherwise a failure is one.
///
/// # Errors
/// What could not be evaluated.
pub fn are_met(conditions: &Conditions, inputs: &Inputs<'_>) -> Result<bool, String> {
    let mut total = CONDITIONS_COST_MAX;
    let mut failures = Vec::new();
    for condition in &conditions.list {
        match inputs.evaluate(&condition.program, &mut total) {
            Ok(Value::Bool(false)) => return Ok(false),
            Ok(_) => {}
            Err(error) => failures.push(describe(&condition.source, &error)),
        }
    }
    match failures.as_slice() {
        [] => Ok(true),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// A failed evaluation in upstream's words.
pub fn describe(source: &str, error: &EvalError) -> String {
    match error {
        EvalError::OutOfBudget => {
            "validation failed due to running out of cost budget, no further validation rules will be run".to_owned()
        }
        error => format!("expression '{source}' resulted in error: {error}"),
    }
}

/// Facts by how a request is seen.
#[derive(Default)]
pub struct Known(Vec<(Seen, Arc<Facts>)>);

impl Known {
    pub fn get(&mut self, asked: &Asked<'_>, seen: &Seen) -> Arc<Facts> {
        if let Some((_, facts)) = self.0.iter().find(|(known, _)| known.place == seen.place) {
            return Arc::clone(facts);
        }
        let facts = Arc::new(Facts::new(asked, seen));
        self.0.push((seen.clone(), Arc::clone(&facts)));
        facts
    }

    /// The object is another one now.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}
