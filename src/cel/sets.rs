//! `sets.contains`, `sets.equivalent`, `sets.intersects`: lists taken as sets.

use crate::env::{Env, global};
use crate::error::EvalError;
use crate::eval::Budget;
use crate::types::Type::{self, Bool, Param};
use crate::value::Value;

fn lists(args: &[Value]) -> Result<(&[Value], &[Value]), EvalError> {
    match args {
        [Value::List(a), Value::List(b)] => Ok((a, b)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn has(list: &[Value], wanted: &Value, budget: &mut Budget) -> Result<bool, EvalError> {
    for item in list {
        budget.charge(1)?;
        if item.equals(wanted, budget)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_all(list: &[Value], wanted: &[Value], budget: &mut Budget) -> Result<bool, EvalError> {
    for item in wanted {
        if !has(list, item, budget)? {
            return Ok(false);
        }
    }
    Ok(true)
}

pub fn declare(env: &mut Env) {
    let params = [Type::list(Param("A")), Type::list(Param("A"))];
    env.function(
        "sets.contains",
        vec![global(&params, Bool, |args, budget| {
            let (a, b) = lists(args)?;
            Ok(has_all(a, b, budget)?.into())
        })],
    );
    env.function(
        "sets.equivalent",
        vec![global(&params, Bool, |args, budget| {
            let (a, b) = lists(args)?;
            Ok((has_all(a, b, budget)? && has_all(b, a, budget)?).into())
        })],
    );
    env.function(
        "sets.intersects",
        vec![global(&params, Bool, |args, budget| {
            let (a, b) = lists(args)?;
            for item in b {
                if has(a, item, budget)? {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        })],
    );
}
