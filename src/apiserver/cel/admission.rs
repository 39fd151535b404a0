//! Expressions of admission: match conditions of webhooks, and all that policies are made of.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use mussel_api::schema::Schema;
use mussel_cel::{Bindings, Budget, Env, EvalError, ObjectType, Program, Structs, Type, Value};

use super::{CALL_COST_MAX, ExpressionError, compile, environment, library, schema};

/// What expressions of one place may refer to, beside `object`, `oldObject`, `request` and `namespaceObject`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Declared {
    pub params: bool,
    pub authorizer: bool,
    /// `Object{…}` and `JSONPatch{…}` can be made.
    pub patches: bool,
}

/// An object type by its fields.
struct Shape {
    name: &'static str,
    fields: Vec<(&'static str, Type)>,
}

impl ObjectType for Shape {
    fn name(&self) -> &str {
        self.name
    }

    fn field(&self, name: &str) -> Option<Type> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, ty)| ty.clone())
    }
}

fn shape(name: &'static str, fields: Vec<(&'static str, Type)>) -> Type {
    Type::Object(Arc::new(Shape { name, fields }))
}

fn request_type() -> Type {
    let text = || Type::String;
    let kind = shape("kubernetes.GroupVersionKind", vec![("group", text()), ("version", text()), ("kind", text())]);
    let resource =
        shape("kubernetes.GroupVersionResource", vec![("group", text()), ("version", text()), ("resource", text())]);
    let user = shape(
        "kubernetes.UserInfo",
        vec![
            ("username", text()),
            ("uid", text()),
            ("groups", Type::list(text())),
            ("extra", Type::map(text(), Type::list(text()))),
        ],
    );
    shape(
        "kubernetes.AdmissionRequest",
        vec![
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", text()),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
}

fn namespace_type() -> Type {
    let text = || Type::String;
    let labels = || Type::map(text(), text());
    let metadata = shape(
        "kubernetes.NamespaceMetadata",
        vec![
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", labels()),
            ("annotations", labels()),
            ("uid", text()),
            ("creationTimestamp", Type::Timestamp),
            ("deletionGracePeriodSeconds", Type::Int),
            ("deletionTimestamp", Type::Timestamp),
            ("generation", Type::Int),
            ("resourceVersion", text()),
            ("finalizers", Type::list(text())),
        ],
    );
    let spec = shape("kubernetes.NamespaceSpec", vec![("finalizers", Type::list(text()))]);
    let condition = shape(
        "kubernetes.NamespaceCondition",
        vec![
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", Type::Timestamp),
            ("message", text()),
            ("reason", text()),
        ],
    );
    let status = shape("kubernetes.NamespaceStatus", vec![("conditions", Type::list(condition)), ("phase", text())]);
    shape("kubernetes.Namespace", vec![("metadata", metadata), ("spec", spec), ("status", status)])
}

/// A namespace as the variable `namespaceObject`.
pub fn namespace_value(namespace: &serde_json::Value) -> Value {
    let mut shown = namespace.clone();
    if let Some(metadata) = shown.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        metadata.retain(|field, _| !matches!(field.as_str(), "managedFields" | "ownerReferences" | "selfLink"));
    }
    let schema = mussel_api::schema::definition("io.k8s.api.core.v1.Namespace");
    schema::value(&shown, schema.as_ref())
}

/// `Object{…}`, `Object.spec{…}` of any depth, and `JSONPatch{…}`.
struct Patches;

impl Structs for Patches {
    fn find(&self, name: &str) -> Option<Type> {
        (name == "Object" || name.starts_with("Object.") || name == "JSONPatch").then(|| Type::opaque(name))
    }

    fn field(&self, name: &str, field: &str) -> Option<Type> {
        match (name, field) {
            ("JSONPatch", "op" | "path" | "from") => Some(Type::String),
            ("JSONPatch", "value") => Some(Type::Dyn),
            ("JSONPatch", _) => None,
            _ => Some(Type::Dyn),
        }
    }
}

/// The environment of such expressions. `variables` are those of the policy that come before.
pub fn env(declared: Declared, object: &Type, params: &Type, variables: &[(Arc<str>, Type)]) -> Env {
    static BASE: LazyLock<Env> = LazyLock::new(|| {
        let mut env = environment();
        env.declare("request", request_type());
        env.declare("namespaceObject", namespace_type());
        env
    });
    let mut env = BASE.clone();
    env.declare("object", object.clone());
    env.declare("oldObject", object.clone());
    if declared.params {
        env.declare("params", params.clone());
    }
    if declared.authorizer {
        let (authorizer, resource) = library::authorizer::types();
        env.declare("authorizer", authorizer);
        env.declare("authorizer.requestResource", resource);
    }
    if declared.patches {
        env.set_structs(Arc::new(Patches));
    }
    for (name, ty) in variables {
        env.declare(&format!("variables.{name}"), ty.clone());
    }
    env
}

/// The type of an object of a schema, for checks that look closer.
pub fn object_type(schema: &Schema) -> Type {
    schema::type_of(schema, "Object", schema::Names::Plain).unwrap_or(Type::Dyn)
}

/// The variables of a policy, compiled in their order.
#[derive(Clone, Default)]
pub struct Variables {
    /// Name, program, and how deep its evaluation goes with those it refers to.
    list: Vec<(Arc<str>, Program, usize)>,
}

impl Variables {
    /// Names and types.
    pub fn types(&self) -> Vec<(Arc<str>, Type)> {
        self.list.iter().map(|(name, program, _)| (Arc::clone(name), program.result().clone())).collect()
    }

    /// Adds a variable that may refer to those before.
    ///
    /// # Errors
    /// When its expression is none.
    pub fn add(&mut self, env: &Env, name: &str, source: &str) -> Result<(), ExpressionError> {
        let program = compile(env, source, &[])?;
        let height = program.height() + self.depth_below(&program);
        if height > Program::HEIGHT_MAX {
            return Err(ExpressionError::TooDeep);
        }
        self.list.push((name.into(), program, height));
        Ok(())
    }

    fn depth_below(&self, program: &Program) -> usize {
        let names = program.names();
        let below = self.list.iter().filter(|(name, _, _)| {
            names.iter().any(|used| used.strip_prefix("variables.").is_some_and(|used| used == &**name))
        });
        below.map(|(_, _, height)| *height).max().unwrap_or(0)
    }

    /// Whether the evaluation of `program`, variables included, fits a stack.
    pub fn are_shallow(&self, program: &Program) -> bool {
        program.height() + self.depth_below(program) <= Program::HEIGHT_MAX
    }
}

/// The values of one evaluation.
pub struct Inputs<'a> {
    pub object: &'a Value,
    pub old: &'a Value,
    pub request: &'a Value,
    pub namespace: &'a Value,
    pub params: &'a Value,
    /// `authorizer` and `authorizer.requestResource`.
    pub authorizer: Option<&'a (Value, Value)>,
    variables: Option<&'a Variables>,
    known: RefCell<HashMap<Arc<str>, Result<Value, EvalError>>>,
}

impl<'a> Inputs<'a> {
    pub fn new(object: &'a Value, old: &'a Value, request: &'a Value, namespace: &'a Value) -> Self {
        static NONE: Value = Value::Null;
        Self {
            object,
            old,
            request,
            namespace,
            params: &NONE,
            authorizer: None,
            variables: None,
            known: RefCell::default(),
        }
    }

    /// Variables are evaluated when they are first looked at, and once.
    #[must_use]
    pub fn with_variables(mut self, variables: &'a Variables) -> Self {
        self.variables = Some(variables);
        self
    }

    /// Evaluates within what is left of `total`, and takes it from there.
    ///
    /// # Errors
    /// Those of the evaluation.
    pub fn evaluate(&self, program: &Program, total: &mut u64) -> Result<Value, EvalError> {
        let given = CALL_COST_MAX.min(*total);
        let mut budget = Budget::new(given);
        let outcome = program.evaluate(self, &mut budget);
        *total -= given - budget.left();
        outcome
    }
}

impl Bindings for Inputs<'_> {
    fn get(&self, name: &str, budget: &mut Budget) -> Option<Result<Value, EvalError>> {
        Some(Ok(match name {
            "object" => self.object.clone(),
            "oldObject" => self.old.clone(),
            "request" => self.request.clone(),
            "namespaceObject" => self.namespace.clone(),
            "params" => self.params.clone(),
            "authorizer" => self.authorizer?.0.clone(),
            "authorizer.requestResource" => self.authorizer?.1.clone(),
            _ => {
                let wanted = name.strip_prefix("variables.")?;
                if let Some(known) = self.known.borrow().get(wanted) {
                    return Some(known.clone());
                }
                let (name, program, _) = self.variables?.list.iter().find(|(name, _, _)| &**name == wanted)?;
                let outcome = program.evaluate(self, budget).map_err(|error| match error {
                    EvalError::OutOfBudget => error,
                    error => EvalError::Other(format!("composited variable {name:?} fails to evaluate: {error}")),
                });
                if outcome != Err(EvalError::OutOfBudget) {
                    self.known.borrow_mut().insert(Arc::clone(name), outcome.clone());
                }
                return Some(outcome);
            }
        }))
    }
}

pub use library::authorizer::{authorizer, request_resource};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Expressions as documentation, charts and policy engines write them.
    #[test]
    fn expressions_from_the_wild_work() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "labels": {"app.kubernetes.io/name": "web", "env": "prod"},
                "annotations": {"a/b": "c"}, "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "controller": true}]},
            "spec": {"hostNetwork": false, "securityContext": {"runAsNonRoot": true},
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [
                    {"name": "a", "image": "registry.example.com/app:1.2", "ports": [{"containerPort": 80}],
                        "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "250m"}},
                        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}},
                    {"name": "b", "image": "registry.example.com/b@sha256:abc", "resources": {"limits": {"cpu": "1", "memory": "64Mi"}},
                        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}]}});
        let all = [
            "object.spec.containers.all(c, c.image.startsWith('registry.example.com/'))",
            "object.spec.containers.all(c, has(c.resources) && has(c.resources.limits) && 'cpu' in c.resources.limits)",
            "!has(object.spec.hostNetwork) || object.spec.hostNetwork == false",
            "object.spec.?securityContext.?runAsNonRoot.orValue(false) == true",
            "(object.spec.containers + object.spec.?initContainers.orValue([]) + object.spec.?ephemeralContainers.orValue([])).all(c, \
             c.?securityContext.?allowPrivilegeEscalation.orValue(true) == false)",
            "object.spec.containers.all(c, c.?securityContext.?capabilities.?drop.orValue([]).exists(d, d == 'ALL'))",
            "object.spec.containers.all(c, c.?securityContext.?capabilities.?add.orValue([]).all(a, a in ['NET_BIND_SERVICE', 'CHOWN']))",
            "object.metadata.?annotations[?'a/b'].orValue('') == 'c'",
            "has(object.metadata.labels) && 'env' in object.metadata.labels && object.metadata.labels['env'] in ['prod', 'dev']",
            "object.metadata.labels.all(key, key.matches('^[a-z./]+$'))",
            "!object.spec.containers.exists(c, c.image.endsWith(':latest'))",
            "object.spec.containers.all(c, c.image.contains('@sha256:') || c.image.split(':').size() == 2)",
            "object.spec.containers.map(c, c.name).isSorted() && object.spec.containers.filter(c, has(c.ports)).size() == 1",
            "object.spec.containers.all(c, quantity(c.resources.limits.memory).isLessThan(quantity('2Gi')))",
            "object.spec.containers.map(c, quantity(c.resources.limits.cpu).asApproximateFloat()).sum() == 1.5",
            "object.metadata.?ownerReferences.orValue([]).exists(o, o.kind == 'ReplicaSet' && o.?controller.orValue(false))",
            "!object.spec.?volumes.orValue([]).exists(v, has(v.hostPath))",
            "request.userInfo.groups.exists(g, g == 'system:masters') || request.userInfo.username.startsWith('system:')",
            "request.operation in ['CREATE', 'UPDATE'] && (request.operation != 'UPDATE' || oldObject.metadata.uid == object.metadata.uid)",
            "oldObject == null || object.spec == oldObject.spec",
            "namespaceObject.metadata.?labels[?'env'].orValue('none') == 'none'",
            "params == null || object.metadata.name.startsWith(params.prefix)",
            "string(object.spec.containers.size()) + ' containers' == '2 containers'",
            "variables.images.all(i, variables.allowed.exists(p, i.startsWith(p)))",
            "variables.images.map(i, i.find('^[^/]+')).all(h, h == 'registry.example.com')",
            "image(object.spec.containers[0].image).registry() == 'registry.example.com'",
            "object.spec.containers.exists_one(c, c.name == 'a') && object.spec.containers[0].ports[0].containerPort == 80",
            "object.spec.containers.all(i, c, c.name == ['a', 'b'][i])",
            "(has(object.metadata.generateName) ? object.metadata.generateName : object.metadata.name).size() < 64",
            "dyn(object.spec).?priority.orValue(0) <= 1000 && !('x' in object.metadata.labels)",
            "object.metadata.namespace.matches('^(default|kube-.*)$') && 'a'.matches(r'^\\w$')",
        ];
        let mut variables = Variables::default();
        for (name, source) in
            [("images", "object.spec.containers.map(c, c.image)"), ("allowed", "['registry.example.com/', 'other/']")]
        {
            let env = env(Declared::default(), &Type::Dyn, &Type::Dyn, &variables.types());
            variables.add(&env, name, source).unwrap();
        }
        let declared = Declared { params: true, authorizer: true, patches: false };
        let untyped = env(declared, &Type::Dyn, &Type::Dyn, &variables.types());
        let schema = mussel_api::schema::definition("io.k8s.api.core.v1.Pod").unwrap();
        let typed = env(declared, &object_type(&schema), &Type::Dyn, &variables.types());
        let object = Value::from_json(&pod);
        let request = Value::from_json(
            &json!({"operation": "CREATE", "userInfo": {"username": "system:admin", "groups": ["g"]}}),
        );
        let namespace = namespace_value(&json!({"metadata": {"name": "default", "labels": {}}}));
        for source in all {
            let program = compile(&untyped, source, &[Type::Bool]).unwrap_or_else(|error| panic!("{source}: {error}"));
            let inputs = Inputs::new(&object, &Value::Null, &request, &namespace).with_variables(&variables);
            let mut total = CALL_COST_MAX;
            assert_eq!(inputs.evaluate(&program, &mut total), Ok(Value::Bool(true)), "{source}");
            // Lists of different types have no sum, when their types are looked at.
            let typed = compile(&typed, source, &[Type::Bool]);
            assert_eq!(typed.is_err(), source.contains("ephemeralContainers"), "{source}: {typed:?}");
        }
    }
}
