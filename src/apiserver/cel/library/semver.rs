//! `semver("1.2.3")`.

use std::cmp::Ordering;

use mussel_cel::Type::{self, Bool, Int, String as Text};
use mussel_cel::{Env, EvalError, Run, Value, global, member};
use semver::Version;

use super::{opaque, own, text};

const NAME: &str = "kubernetes.Semver";

#[derive(Debug, PartialEq)]
struct Semver(Version);
opaque!(Semver, NAME);

/// With the second argument true, also what is only nearly a version: `v1.2`, `01.2.3`.
fn parse(args: &[Value]) -> Result<Version, EvalError> {
    let given = text(&args[0])?;
    let normal = if matches!(args.get(1), Some(Value::Bool(true))) { normalize(given) } else { given.to_owned() };
    Version::parse(&normal).map_err(|error| EvalError::other(error.to_string()))
}

fn normalize(text: &str) -> String {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at(end);
    let mut parts: Vec<String> = core
        .split('.')
        .map(|part| match part.trim_start_matches('0') {
            "" if !part.is_empty() => "0".to_owned(),
            trimmed => trimmed.to_owned(),
        })
        .collect();
    while parts.len() < 3 {
        parts.push("0".to_owned());
    }
    format!("{}{rest}", parts.join("."))
}

/// Precedence; what is built does not count.
fn order(args: &[Value]) -> Result<Ordering, EvalError> {
    Ok(own::<Semver>(&args[0])?.0.cmp_precedence(&own::<Semver>(&args[1])?.0))
}

pub fn declare(env: &mut Env) {
    let ty = Type::opaque(NAME);
    let make: Run = |args, _| parse(args).map(|version| Value::opaque(Semver(version)));
    let is: Run = |args, _| {
        text(&args[0])?;
        Ok(parse(args).is_ok().into())
    };
    env.function("semver", vec![global([Text], ty.clone(), make), global([Text, Bool], ty.clone(), make)]);
    env.function("isSemver", vec![global([Text], Bool, is), global([Text, Bool], Bool, is)]);
    let mut part = |name: &str, run: Run| env.function(name, vec![member([ty.clone()], Int, run)]);
    part("major", |args, _| Ok(Value::Int(i64::try_from(own::<Semver>(&args[0])?.0.major).unwrap_or(i64::MAX))));
    part("minor", |args, _| Ok(Value::Int(i64::try_from(own::<Semver>(&args[0])?.0.minor).unwrap_or(i64::MAX))));
    part("patch", |args, _| Ok(Value::Int(i64::try_from(own::<Semver>(&args[0])?.0.patch).unwrap_or(i64::MAX))));
    let two = [ty.clone(), ty];
    env.function("isGreaterThan", vec![member(&two, Bool, |args, _| Ok(order(args)?.is_gt().into()))]);
    env.function("isLessThan", vec![member(&two, Bool, |args, _| Ok(order(args)?.is_lt().into()))]);
    env.function("compareTo", vec![member(&two, Int, |args, _| Ok(Value::Int(order(args)? as i64)))]);
}
