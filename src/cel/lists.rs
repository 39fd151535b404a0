//! Functions on lists, as Kubernetes has them.

use std::cmp::Ordering;

use crate::env::{Env, Run, member};
use crate::error::EvalError;
use crate::eval::Budget;
use crate::types::Type::{self, Bool, Bytes, Double, Duration, Int, Param, String as Text, Timestamp, Uint};
use crate::value::{Value, compare};

type Outcome = Result<Value, EvalError>;

fn items<'v>(args: &'v [Value], budget: &mut Budget) -> Result<&'v [Value], EvalError> {
    match &args[0] {
        Value::List(items) => {
            budget.charge(items.len() as u64)?;
            let texts = items.iter().filter(|item| matches!(item, Value::String(_) | Value::Bytes(_)));
            budget.charge_bytes(texts.map(Value::size).sum())?;
            Ok(items)
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn is_sorted(args: &[Value], budget: &mut Budget) -> Outcome {
    for pair in items(args, budget)?.windows(2) {
        if compare(&pair[0], &pair[1])?.is_none_or(Ordering::is_gt) {
            return Ok(false.into());
        }
    }
    Ok(true.into())
}

fn sum(args: &[Value], budget: &mut Budget) -> Outcome {
    let overflow = || EvalError::other("integer overflow");
    let mut total: Option<Value> = None;
    for item in items(args, budget)? {
        total = Some(match (total, item) {
            (None, item) => item.clone(),
            (Some(Value::Int(a)), Value::Int(b)) => Value::Int(a.checked_add(*b).ok_or_else(overflow)?),
            (Some(Value::Uint(a)), Value::Uint(b)) => Value::Uint(a.checked_add(*b).ok_or_else(overflow)?),
            (Some(Value::Double(a)), Value::Double(b)) => Value::Double(a + b),
            (Some(Value::Duration(a)), Value::Duration(b)) => Value::Duration(a.checked_add(*b).ok_or_else(overflow)?),
            _ => return Err(EvalError::NoSuchOverload),
        });
    }
    Ok(total.unwrap_or(Value::Int(0)))
}

fn extreme(args: &[Value], budget: &mut Budget, name: &str, better: fn(Ordering) -> bool) -> Outcome {
    let mut best: Option<&Value> = None;
    for item in items(args, budget)? {
        let is_better = match best {
            None => true,
            Some(best) => compare(item, best)?.is_some_and(better),
        };
        if is_better {
            best = Some(item);
        }
    }
    best.cloned().ok_or_else(|| EvalError::other(format!("{name} called on empty list")))
}

fn index_of(args: &[Value], budget: &mut Budget) -> Outcome {
    for (at, item) in items(args, budget)?.iter().enumerate() {
        if item.equals(&args[1], budget)? {
            return Ok(Value::Int(at as i64));
        }
    }
    Ok(Value::Int(-1))
}

fn last_index_of(args: &[Value], budget: &mut Budget) -> Outcome {
    for (at, item) in items(args, budget)?.iter().enumerate().rev() {
        if item.equals(&args[1], budget)? {
            return Ok(Value::Int(at as i64));
        }
    }
    Ok(Value::Int(-1))
}

pub fn declare(env: &mut Env) {
    let lists_of = |types: &[Type], result: Option<Type>, run: Run| {
        let one = |ty: &Type| member([Type::list(ty.clone())], result.clone().unwrap_or_else(|| ty.clone()), run);
        types.iter().map(one).collect::<Vec<_>>()
    };
    let ordered = [Int, Uint, Double, Bool, Duration, Timestamp, Text, Bytes];
    env.function("isSorted", lists_of(&ordered, Some(Bool), is_sorted));
    env.function("sum", lists_of(&[Int, Uint, Double, Duration], None, sum));
    env.function("max", lists_of(&ordered, None, |args, budget| extreme(args, budget, "max", Ordering::is_gt)));
    env.function("min", lists_of(&ordered, None, |args, budget| extreme(args, budget, "min", Ordering::is_lt)));
    let finding = [Type::list(Param("A")), Param("A")];
    env.function("indexOf", vec![member(&finding, Int, index_of)]);
    env.function("lastIndexOf", vec![member(&finding, Int, last_index_of)]);
}
