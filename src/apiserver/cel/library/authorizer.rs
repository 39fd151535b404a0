//! `authorizer`: may the user who asks, or a service account, do this?

use futures::FutureExt as _;
use mussel_api::names;
use mussel_cel::Type::{self, Bool, String as Text};
use mussel_cel::{Env, EvalError, Opaque, Run, Value, member};

use super::{own, text};
use crate::authz::{Attributes, Authorizer};
use crate::handler::UserInfo;

const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
const PATH: &str = "kubernetes.authorization.PathCheck";
const GROUP: &str = "kubernetes.authorization.GroupCheck";
const RESOURCE: &str = "kubernetes.authorization.ResourceCheck";
const DECISION: &str = "kubernetes.authorization.Decision";

/// What one check costs: an expression may make two; upstream's number.
const CHECK_COST: u64 = 350_000;

/// A question on its way: what it is about, as far as that has been said.
#[derive(Clone)]
struct Check {
    authorizer: Authorizer,
    attributes: Attributes,
    stage: &'static str,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.stage)
    }
}

impl Opaque for Check {
    fn type_name(&self) -> &'static str {
        self.stage
    }

    fn equals(&self, other: &dyn Opaque) -> bool {
        let other = other.as_any().downcast_ref::<Self>();
        other.is_some_and(|other| self.stage == other.stage && self.attributes == other.attributes)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Check {
    fn with(&self, stage: &'static str, change: impl FnOnce(&mut Attributes)) -> Value {
        let mut next = self.clone();
        next.stage = stage;
        change(&mut next.attributes);
        Value::opaque(next)
    }
}

#[derive(Debug, PartialEq)]
struct Decision {
    allowed: bool,
    reason: String,
    error: String,
}
super::opaque!(Decision, DECISION);

/// The variable `authorizer` for a user.
pub fn authorizer(authorizer: &Authorizer, user: &UserInfo) -> Value {
    let attributes = Attributes { user: user.clone(), ..Attributes::default() };
    Value::opaque(Check { authorizer: authorizer.clone(), attributes, stage: AUTHORIZER })
}

/// The variable `authorizer.requestResource`: a check of the resource of the request.
pub fn request_resource(authorizer: &Authorizer, attributes: Attributes) -> Value {
    Value::opaque(Check { authorizer: authorizer.clone(), attributes, stage: RESOURCE })
}

/// The types of both variables.
pub fn types() -> (Type, Type) {
    (Type::opaque(AUTHORIZER), Type::opaque(RESOURCE))
}

fn filled(args: &[Value], what: &str) -> Result<String, EvalError> {
    let text = text(&args[1])?;
    if text.trim().is_empty() {
        Err(EvalError::other(format!("{what} must not be empty")))
    } else {
        Ok(text.to_owned())
    }
}

fn service_account(args: &[Value]) -> Result<Value, EvalError> {
    let (namespace, name) = (text(&args[1])?, text(&args[2])?);
    let problems = names::is_dns1123_subdomain(name);
    if !problems.is_empty() {
        return Err(EvalError::other(format!("Invalid service account name: {}", problems.join(", "))));
    }
    let problems = names::is_dns1123_label(namespace);
    if !problems.is_empty() {
        return Err(EvalError::other(format!("Invalid service account namespace: {}", problems.join(", "))));
    }
    let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")];
    let user = UserInfo::new(&format!("system:serviceaccount:{namespace}:{name}"), &groups);
    Ok(own::<Check>(&args[0])?.with(AUTHORIZER, |attributes| attributes.user = user))
}

fn decide(args: &[Value]) -> Result<Value, EvalError> {
    let check = own::<Check>(&args[0])?;
    let mut attributes = check.attributes.clone();
    attributes.verb = text(&args[1])?.to_owned();
    // The rules are in memory: there is nothing to wait for.
    let decision = check.authorizer.authorize(&attributes).now_or_never();
    Ok(Value::opaque(match decision {
        Some(decision) => Decision { allowed: decision.allowed, reason: decision.reason, error: String::new() },
        None => Decision { allowed: false, reason: String::new(), error: "authorization is not available".to_owned() },
    }))
}

pub fn declare(env: &mut Env) {
    let of = Type::opaque;
    let mut step = |name: &str, from: &str, to: &str, run: Run| {
        env.function(name, vec![member([of(from), Text], of(to), run)]);
    };
    step("path", AUTHORIZER, PATH, |args, _| {
        let path = filled(args, "path")?;
        Ok(own::<Check>(&args[0])?.with(PATH, |attributes| attributes.path = path))
    });
    step("group", AUTHORIZER, GROUP, |args, _| {
        let group = text(&args[1])?.to_owned();
        Ok(own::<Check>(&args[0])?.with(GROUP, |attributes| attributes.group = group))
    });
    step("resource", GROUP, RESOURCE, |args, _| {
        let resource = filled(args, "resource")?;
        Ok(own::<Check>(&args[0])?.with(RESOURCE, |attributes| {
            attributes.is_resource = true;
            attributes.resource = resource;
            attributes.version = "*".to_owned();
        }))
    });
    step("subresource", RESOURCE, RESOURCE, |args, _| {
        let value = text(&args[1])?.to_owned();
        Ok(own::<Check>(&args[0])?.with(RESOURCE, |attributes| attributes.subresource = value))
    });
    step("namespace", RESOURCE, RESOURCE, |args, _| {
        let value = text(&args[1])?.to_owned();
        Ok(own::<Check>(&args[0])?.with(RESOURCE, |attributes| attributes.namespace = value))
    });
    step("name", RESOURCE, RESOURCE, |args, _| {
        let value = text(&args[1])?.to_owned();
        Ok(own::<Check>(&args[0])?.with(RESOURCE, |attributes| attributes.name = value))
    });
    step("fieldSelector", RESOURCE, RESOURCE, |args, _| {
        let value = text(&args[1])?.to_owned();
        Ok(own::<Check>(&args[0])?.with(RESOURCE, |attributes| attributes.field_selector = value))
    });
    // The rules in force know no label selectors: they change nothing.
    step("labelSelector", RESOURCE, RESOURCE, |args, _| Ok(args[0].clone()));
    env.function(
        "serviceAccount",
        vec![member([of(AUTHORIZER), Text, Text], of(AUTHORIZER), |args, _| service_account(args))],
    );
    let check: Run = |args, budget| {
        budget.charge(CHECK_COST)?;
        decide(args)
    };
    env.function(
        "check",
        vec![member([of(PATH), Text], of(DECISION), check), member([of(RESOURCE), Text], of(DECISION), check)],
    );
    let mut tell = |name: &str, result: Type, run: Run| {
        env.function(name, vec![member([of(DECISION)], result, run)]);
    };
    tell("allowed", Bool, |args, _| Ok(own::<Decision>(&args[0])?.allowed.into()));
    tell("reason", Text, |args, _| Ok(own::<Decision>(&args[0])?.reason.as_str().into()));
    tell("errored", Bool, |args, _| Ok((!own::<Decision>(&args[0])?.error.is_empty()).into()));
    tell("error", Text, |args, _| Ok(own::<Decision>(&args[0])?.error.as_str().into()));
}
