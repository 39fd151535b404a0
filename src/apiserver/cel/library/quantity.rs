//! `quantity("1Gi")`, and what can be asked of it.

use std::cmp::Ordering;

use mussel_api::quantity::Quantity;
use mussel_cel::Type::{self, Bool, Double, Int, String as Text};
use mussel_cel::{Env, EvalError, Run, Value, global, member};

use super::{opaque, own, text};

const NAME: &str = "kubernetes.Quantity";

#[derive(Debug, PartialEq)]
struct Amount(Quantity);
opaque!(Amount, NAME);

fn amount(value: &Value) -> Result<Quantity, EvalError> {
    Ok(own::<Amount>(value)?.0)
}

fn made(quantity: Quantity) -> Value {
    Value::opaque(Amount(quantity))
}

fn order(args: &[Value]) -> Result<Ordering, EvalError> {
    Ok(amount(&args[0])?.to_nano().cmp(&amount(&args[1])?.to_nano()))
}

/// The second argument, which may be a plain number.
fn other(value: &Value) -> Result<Quantity, EvalError> {
    match value {
        Value::Int(number) => Ok(Quantity::from_value(*number, Default::default())),
        value => amount(value),
    }
}

pub fn declare(env: &mut Env) {
    let ty = Type::opaque(NAME);
    env.function(
        "quantity",
        vec![global([Text], ty.clone(), |args, _| {
            Quantity::parse(text(&args[0])?).map(made).map_err(|error| EvalError::other(error.to_string()))
        })],
    );
    let is: Run = |args, _| Ok(Quantity::parse(text(&args[0])?).is_ok().into());
    env.function("isQuantity", vec![global([Text], Bool, is)]);
    let mut one = |name: &str, result: Type, run: Run| env.function(name, vec![member([ty.clone()], result, run)]);
    one("sign", Int, |args, _| Ok(Value::Int(amount(&args[0])?.to_nano().signum() as i64)));
    one("isInteger", Bool, |args, _| {
        let amount = amount(&args[0])?;
        Ok((amount.is_whole() && i64::try_from(amount.to_nano() / 1_000_000_000).is_ok()).into())
    });
    one("asInteger", Int, |args, _| {
        let amount = amount(&args[0])?;
        let whole = amount.is_whole().then(|| i64::try_from(amount.to_nano() / 1_000_000_000).ok()).flatten();
        whole.map(Value::Int).ok_or_else(|| EvalError::other("cannot convert value to integer"))
    });
    one("asApproximateFloat", Double, |args, _| Ok(Value::Double(amount(&args[0])?.to_f64())));
    let two = [ty.clone(), ty.clone()];
    env.function("isGreaterThan", vec![member(&two, Bool, |args, _| Ok(order(args)?.is_gt().into()))]);
    env.function("isLessThan", vec![member(&two, Bool, |args, _| Ok(order(args)?.is_lt().into()))]);
    env.function("compareTo", vec![member(&two, Int, |args, _| Ok(Value::Int(order(args)? as i64)))]);
    let add: Run = |args, _| Ok(made(amount(&args[0])? + other(&args[1])?));
    let sub: Run = |args, _| Ok(made(amount(&args[0])? - other(&args[1])?));
    for (name, run) in [("add", add), ("sub", sub)] {
        env.function(name, vec![member(&two, ty.clone(), run), member([ty.clone(), Int], ty.clone(), run)]);
    }
}
