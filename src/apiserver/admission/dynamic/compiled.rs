//! The expressions of webhooks and policies, compiled; and what is wrong with them, when they are written.

use mussel_api::field::{FieldError, FieldErrors, Path};
use mussel_cel::{Env, Program, Type};
use serde_json::Value;

use crate::cel::admission::{Declared, Variables, env};
use crate::cel::{ExpressionError, compile};

/// Conditions that a request has to meet. All of them are evaluated, until one is false.
#[derive(Default)]
pub struct Conditions {
    pub list: Vec<Expression>,
}

/// A program, and what it was compiled from.
pub struct Expression {
    pub program: Program,
    pub source: String,
}

/// A validation of a policy.
pub struct Validation {
    pub program: Program,
    pub message_program: Option<Program>,
    pub message: String,
    pub expression: String,
    pub reason: Option<String>,
}

/// A mutation of a policy.
pub enum Mutation {
    Apply(Expression),
    JsonPatch(Expression),
}

/// All that a policy evaluates.
#[derive(Default)]
pub struct Compiled {
    pub conditions: Conditions,
    pub variables: Variables,
    pub validations: Vec<Validation>,
    /// Key, program, expression.
    pub annotations: Vec<(String, Program, String)>,
    pub mutations: Vec<Mutation>,
}

/// Compiles expressions, and keeps what is wrong.
struct Compiler {
    errors: FieldErrors,
    declared: Declared,
    object: Type,
    params: Type,
    variables: Variables,
}

impl Compiler {
    fn new(declared: Declared, object: Type, params: Type) -> Self {
        Self { errors: Vec::new(), declared, object, params, variables: Variables::default() }
    }

    fn env(&self, declared: Declared, with_variables: bool) -> Env {
        let variables = if with_variables { self.variables.types() } else { Vec::new() };
        env(declared, &self.object, &self.params, &variables)
    }

    fn keep(&mut self, path: &Path, source: &str, error: &ExpressionError) {
        self.errors.push(FieldError::invalid(path, source, error.to_string()));
    }

    /// Nothing is said of an absent expression: that it must not be is a rule of its own.
    fn expression(&mut self, env: &Env, path: &Path, source: &str, wanted: &[Type]) -> Option<Program> {
        if source.trim().is_empty() {
            return None;
        }
        let outcome = compile(env, source, wanted).and_then(|program| {
            if self.variables.are_shallow(&program) { Ok(program) } else { Err(ExpressionError::TooDeep) }
        });
        outcome.inspect_err(|error| self.keep(path, source, error)).ok()
    }

    fn conditions(&mut self, list: &Value, path: &Path) -> Conditions {
        let env = self.env(Declared { patches: false, ..self.declared }, false);
        let mut compiled = Conditions::default();
        for (at, condition) in list.as_array().into_iter().flatten().enumerate() {
            let source = condition["expression"].as_str().unwrap_or_default().trim();
            let path = path.index(at).child("expression");
            let program = self.expression(&env, &path, source, &[Type::Bool]);
            compiled.list.extend(program.map(|program| Expression { program, source: source.to_owned() }));
        }
        compiled
    }

    fn declare_variables(&mut self, list: &Value, path: &Path) {
        for (at, variable) in list.as_array().into_iter().flatten().enumerate() {
            let text = |field: &str| variable[field].as_str().unwrap_or_default();
            let (name, source) = (text("name"), text("expression"));
            if name.is_empty() || source.trim().is_empty() {
                continue;
            }
            let env = self.env(self.declared, true);
            if let Err(error) = self.variables.add(&env, name, source) {
                self.keep(&path.index(at).child("expression"), source, &error);
            }
        }
    }
}

/// Compiles the match conditions of one webhook.
pub fn webhook_conditions(hook: &Value, path: &Path) -> (Conditions, FieldErrors) {
    let declared = Declared { authorizer: true, ..Declared::default() };
    let mut compiler = Compiler::new(declared, Type::Dyn, Type::Dyn);
    let conditions = compiler.conditions(&hook["matchConditions"], &path.child("matchConditions"));
    (conditions, compiler.errors)
}

/// Compiles a policy. Mutating ones have `mutations`.
pub fn policy(policy: &Value) -> (Compiled, FieldErrors) {
    policy_of(policy, Type::Dyn, Type::Dyn)
}

/// The same with `object` and `params` of known types, for a closer look.
pub fn policy_of(policy: &Value, object: Type, params: Type) -> (Compiled, FieldErrors) {
    let spec = &policy["spec"];
    let path = Path::new("spec");
    let declared =
        Declared { params: spec["paramKind"].is_object(), authorizer: true, patches: spec["mutations"].is_array() };
    let mut compiler = Compiler::new(declared, object, params);
    let conditions = compiler.conditions(&spec["matchConditions"], &path.child("matchConditions"));
    compiler.declare_variables(&spec["variables"], &path.child("variables"));
    let all = compiler.env(declared, true);
    let messages = compiler.env(Declared { authorizer: false, ..declared }, true);

    let mut validations = Vec::new();
    for (at, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        let path = path.child("validations").index(at);
        let text = |field: &str| validation[field].as_str().unwrap_or_default();
        let program = compiler.expression(&all, &path.child("expression"), text("expression"), &[Type::Bool]);
        let message_path = path.child("messageExpression");
        let message_program = compiler.expression(&messages, &message_path, text("messageExpression"), &[Type::String]);
        validations.extend(program.map(|program| Validation {
            program,
            message_program,
            message: text("message").to_owned(),
            expression: text("expression").to_owned(),
            reason: validation["reason"].as_str().map(str::to_owned),
        }));
    }
    let mut annotations = Vec::new();
    for (at, annotation) in spec["auditAnnotations"].as_array().into_iter().flatten().enumerate() {
        let path = path.child("auditAnnotations").index(at).child("valueExpression");
        let source = annotation["valueExpression"].as_str().unwrap_or_default().trim();
        let program = compiler.expression(&all, &path, source, &[Type::String, Type::Null]);
        let key = annotation["key"].as_str().unwrap_or_default();
        annotations.extend(program.map(|program| (key.to_owned(), program, source.to_owned())));
    }
    let mut mutations = Vec::new();
    for (at, mutation) in spec["mutations"].as_array().into_iter().flatten().enumerate() {
        let path = path.child("mutations").index(at);
        let source = |field: &str| mutation[field]["expression"].as_str().unwrap_or_default();
        let with = |field: &str| {
            let source = source(field).to_owned();
            move |program| Expression { program, source }
        };
        match mutation["patchType"].as_str() {
            Some("ApplyConfiguration") => {
                let path = path.child("applyConfiguration").child("expression");
                let program = compiler.expression(&all, &path, source("applyConfiguration"), &[Type::opaque("Object")]);
                mutations.extend(program.map(with("applyConfiguration")).map(Mutation::Apply));
            }
            Some("JSONPatch") => {
                let path = path.child("jsonPatch").child("expression");
                let wanted = Type::list(Type::opaque("JSONPatch"));
                let program = compiler.expression(&all, &path, source("jsonPatch"), &[wanted]);
                mutations.extend(program.map(with("jsonPatch")).map(Mutation::JsonPatch));
            }
            _ => {}
        }
    }
    let Compiler { errors, variables, .. } = compiler;
    (Compiled { conditions, variables, validations, annotations, mutations }, errors)
}
