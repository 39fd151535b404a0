//! Evaluation: one walk over the tree, which stops when the budget is spent.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ast::{Comprehension, Expr, Fold, Kind, Op};
use crate::env::Function;
use crate::error::EvalError;
use crate::standard;
use crate::types::Type;
use crate::value::{Key, Value, compare};

type Outcome = Result<Value, EvalError>;

/// What evaluation may still cost. The unit is cel-go's: about one look at a variable or field.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    left: u64,
}

impl Budget {
    pub fn new(units: u64) -> Self {
        Self { left: units }
    }

    pub fn left(&self) -> u64 {
        self.left
    }

    /// # Errors
    /// `OutOfBudget`, and then at every further charge.
    pub fn charge(&mut self, units: u64) -> Result<(), EvalError> {
        match self.left.checked_sub(units) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(EvalError::OutOfBudget)
            }
        }
    }

    /// The cost of going through so many bytes.
    ///
    /// # Errors
    /// As [`Budget::charge`].
    pub fn charge_bytes(&mut self, bytes: u64) -> Result<(), EvalError> {
        self.charge(bytes.div_ceil(10))
    }
}

/// The values of variables.
pub trait Bindings {
    /// The value of a declared variable; `None` when it has none.
    fn get(&self, name: &str, budget: &mut Budget) -> Option<Outcome>;
}

/// A checked expression.
#[derive(Clone, Debug)]
pub struct Program {
    expr: Arc<Expr>,
    result: Type,
}

impl Program {
    /// The deepest tree there is.
    pub const HEIGHT_MAX: usize = crate::parse::DEPTH_MAX;

    pub(crate) fn new(expr: Expr, result: Type) -> Self {
        Self { expr: Arc::new(expr), result }
    }

    /// How deep evaluation goes, at most [`Program::HEIGHT_MAX`].
    pub fn height(&self) -> usize {
        self.expr.height.into()
    }

    /// The names that it refers to; those of comprehensions among them.
    pub fn names(&self) -> Vec<Arc<str>> {
        let mut found = Vec::new();
        let mut next = vec![&*self.expr];
        while let Some(expr) = next.pop() {
            if let Kind::Ident(name) = &expr.kind {
                found.push(Arc::clone(name));
            }
            next.extend(expr.kind.children());
        }
        found
    }

    /// The type of what it evaluates to.
    pub fn result(&self) -> &Type {
        &self.result
    }

    /// # Errors
    /// When a part that matters has no value, or the budget is spent.
    pub fn evaluate(&self, bindings: &dyn Bindings, budget: &mut Budget) -> Outcome {
        Walk { bindings, locals: Vec::new(), budget }.eval(&self.expr)
    }
}

struct Walk<'w> {
    bindings: &'w dyn Bindings,
    /// Variables of comprehensions, inner ones last.
    locals: Vec<(Arc<str>, Value)>,
    budget: &'w mut Budget,
}

impl Walk<'_> {
    // Each arm is a function of its own: the frame of this one is what nesting costs.
    fn eval(&mut self, expr: &Expr) -> Outcome {
        match &expr.kind {
            Kind::Literal(value) => Ok(value.clone()),
            Kind::Ident(name) => self.variable(name),
            Kind::Select { operand, field, test, optional } => self.select(operand, field, *test, *optional),
            Kind::Index { operand, index, optional } => self.index(operand, index, *optional),
            Kind::Not(operand) => self.not(operand),
            Kind::Negate(operand) => self.negate(operand),
            Kind::And(operands) => self.logic(operands, false),
            Kind::Or(operands) => self.logic(operands, true),
            Kind::Binary { op, left, right } => self.binary(*op, left, right),
            Kind::Conditional { test, yes, no } => self.conditional(test, yes, no),
            Kind::Call { target, args, found, .. } => self.call(target.as_deref(), args, found.as_ref()),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct { name, fields } => self.structure(name, fields),
            Kind::Comprehension(inner) => self.comprehension(inner),
            Kind::OptMap { target, variable, body, flat } => self.opt_map(target, variable, body, *flat),
        }
    }

    #[inline(never)]
    fn variable(&mut self, name: &Arc<str>) -> Outcome {
        self.budget.charge(1)?;
        if let Some((_, value)) = self.locals.iter().rev().find(|(known, _)| known == name) {
            return Ok(value.clone());
        }
        if let Some(outcome) = self.bindings.get(name, self.budget) {
            return outcome;
        }
        if standard::TYPES.contains(&&**name) {
            return Ok(Value::Type(Arc::clone(name)));
        }
        Err(EvalError::other(format!("no such attribute(s): {name}")))
    }

    #[inline(never)]
    fn select(&mut self, operand: &Expr, field: &Arc<str>, test: bool, optional: bool) -> Outcome {
        let of = self.eval(operand)?;
        self.budget.charge(1)?;
        let (viral, of) = match of {
            Value::Optional(None) if test => return Ok(false.into()),
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (true, (*inner).clone()),
            other => (false, other),
        };
        let found = match &of {
            Value::Map(map) => map.get(&Key::String(Arc::clone(field))).cloned(),
            Value::Struct(_, fields) => fields.get(field).cloned(),
            _ if test => return Err(EvalError::NoSuchOverload),
            _ => return Err(EvalError::other(format!("type '{}' does not support field selection", of.type_name()))),
        };
        match (found, test) {
            (found, true) => Ok(found.is_some().into()),
            (Some(value), false) if viral || optional => Ok(into_optional(value)),
            (Some(value), false) => Ok(value),
            (None, false) if viral || optional => Ok(Value::Optional(None)),
            (None, false) => Err(EvalError::NoSuchKey(field.to_string())),
        }
    }

    #[inline(never)]
    fn index(&mut self, operand: &Expr, index: &Expr, optional: bool) -> Outcome {
        let of = self.eval(operand)?;
        let by = self.eval(index)?;
        self.budget.charge(1)?;
        let (viral, of) = match of {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (true, (*inner).clone()),
            other => (false, other),
        };
        let found = match &of {
            Value::Map(map) => {
                Key::of(&by).map(|key| map.get(&key).cloned().ok_or(EvalError::NoSuchKey(key.to_string())))
            }
            Value::List(items) => match Key::of(&by) {
                Ok(Key::Int(at)) => Ok(usize::try_from(at)
                    .ok()
                    .and_then(|at| items.get(at).cloned())
                    .ok_or_else(|| EvalError::other(format!("index out of bounds: {at}")))),
                _ => Err(EvalError::other(format!("unsupported index type '{}' in list", by.type_name()))),
            },
            _ => Err(EvalError::NoSuchOverload),
        }?;
        match found {
            Ok(value) if viral || optional => Ok(into_optional(value)),
            Ok(value) => Ok(value),
            Err(_) if viral || optional => Ok(Value::Optional(None)),
            Err(error) => Err(error),
        }
    }

    #[inline(never)]
    fn not(&mut self, operand: &Expr) -> Outcome {
        self.budget.charge(1)?;
        match self.eval(operand)? {
            Value::Bool(flag) => Ok((!flag).into()),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    #[inline(never)]
    fn negate(&mut self, operand: &Expr) -> Outcome {
        self.budget.charge(1)?;
        match self.eval(operand)? {
            Value::Int(number) => {
                number.checked_neg().map(Value::Int).ok_or_else(|| EvalError::other("integer overflow"))
            }
            Value::Double(number) => Ok(Value::Double(-number)),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    /// `decisive` decides, whatever the other operands are, errors among them.
    #[inline(never)]
    fn logic(&mut self, operands: &[Expr], decisive: bool) -> Outcome {
        let mut error = None;
        for operand in operands {
            match self.eval(operand) {
                Ok(Value::Bool(flag)) if flag == decisive => return Ok(decisive.into()),
                Ok(Value::Bool(_)) => {}
                Ok(_) => error = error.or(Some(EvalError::NoSuchOverload)),
                Err(EvalError::OutOfBudget) => return Err(EvalError::OutOfBudget),
                Err(failure) => error = error.or(Some(failure)),
            }
        }
        error.map_or(Ok((!decisive).into()), Err)
    }

    #[inline(never)]
    fn conditional(&mut self, test: &Expr, yes: &Expr, no: &Expr) -> Outcome {
        match self.eval(test)? {
            Value::Bool(true) => self.eval(yes),
            Value::Bool(false) => self.eval(no),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    #[inline(never)]
    fn binary(&mut self, op: Op, left: &Expr, right: &Expr) -> Outcome {
        let left = self.eval(left)?;
        let right = self.eval(right)?;
        operate(op, &left, &right, self.budget)
    }

    #[inline(never)]
    fn call(&mut self, target: Option<&Expr>, args: &[Expr], function: Option<&Arc<Function>>) -> Outcome {
        let function = function.ok_or(EvalError::NoSuchOverload)?;
        // Some functions take the place of an absent value, and do not look at what they do not need.
        if let (Some(target), [other], "or" | "orValue") = (target, args, &*function.name) {
            return match self.eval(target)? {
                Value::Optional(Some(value)) if &*function.name == "orValue" => Ok((*value).clone()),
                Value::Optional(None) => self.eval(other),
                present @ Value::Optional(_) => Ok(present),
                _ => Err(EvalError::NoSuchOverload),
            };
        }
        let mut values = Vec::with_capacity(args.len() + 1);
        for arg in target.into_iter().chain(args) {
            values.push(self.eval(arg)?);
        }
        let texts = values.iter().filter(|value| matches!(value, Value::String(_) | Value::Bytes(_)));
        let bytes: u64 = texts.map(Value::size).sum();
        self.budget.charge(1)?;
        self.budget.charge_bytes(bytes)?;
        let fits = |params: &[Type]| params.len() == values.len() && params.iter().zip(&values).all(accepts);
        let overload = function.overloads.iter().find(|o| o.member == target.is_some() && fits(&o.params));
        match overload {
            Some(overload) => (overload.run)(&values, self.budget),
            None => Err(EvalError::NoSuchOverload),
        }
    }

    #[inline(never)]
    fn list(&mut self, items: &[(Expr, bool)]) -> Outcome {
        self.budget.charge(10)?;
        let mut values = Vec::with_capacity(items.len());
        for (item, optional) in items {
            match (self.eval(item)?, optional) {
                (value, false) => values.push(value),
                (Value::Optional(None), true) => {}
                (Value::Optional(Some(value)), true) => values.push((*value).clone()),
                _ => return Err(EvalError::NoSuchOverload),
            }
        }
        Ok(Value::list(values))
    }

    #[inline(never)]
    fn map(&mut self, entries: &[crate::ast::Entry]) -> Outcome {
        self.budget.charge(30)?;
        let mut map = BTreeMap::new();
        for entry in entries {
            let key = Key::of(&self.eval(&entry.key)?)?;
            let value = match (self.eval(&entry.value)?, entry.optional) {
                (value, false) => value,
                (Value::Optional(None), true) => continue,
                (Value::Optional(Some(value)), true) => (*value).clone(),
                _ => return Err(EvalError::NoSuchOverload),
            };
            if map.contains_key(&key) {
                return Err(EvalError::other(format!("Failed with repeated key: {key}")));
            }
            map.insert(key, value);
        }
        Ok(Value::Map(Arc::new(map)))
    }

    #[inline(never)]
    fn structure(&mut self, name: &Arc<str>, fields: &[crate::ast::Field]) -> Outcome {
        self.budget.charge(40)?;
        let mut made = BTreeMap::new();
        for field in fields {
            let value = match (self.eval(&field.value)?, field.optional) {
                (value, false) => value,
                (Value::Optional(None), true) => continue,
                (Value::Optional(Some(value)), true) => (*value).clone(),
                _ => return Err(EvalError::NoSuchOverload),
            };
            made.insert(Arc::clone(&field.name), value);
        }
        Ok(Value::Struct(Arc::clone(name), Arc::new(made)))
    }

    #[inline(never)]
    fn opt_map(&mut self, target: &Expr, variable: &Arc<str>, body: &Expr, flat: bool) -> Outcome {
        match self.eval(target)? {
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(value)) => {
                self.locals.push((Arc::clone(variable), (*value).clone()));
                let made = self.eval(body);
                self.locals.pop();
                Ok(if flat { made? } else { Value::some(made?) })
            }
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    #[inline(never)]
    fn comprehension(&mut self, inner: &Comprehension) -> Outcome {
        let range = self.eval(&inner.range)?;
        let two = inner.second.is_some();
        let pairs: Vec<(Value, Value)> = match &range {
            Value::List(items) if two => {
                items.iter().enumerate().map(|(at, item)| (Value::Int(at as i64), item.clone())).collect()
            }
            Value::List(items) => items.iter().map(|item| (item.clone(), Value::Null)).collect(),
            Value::Map(map) => map.iter().map(|(key, value)| (key.value(), value.clone())).collect(),
            _ => return Err(EvalError::NoSuchOverload),
        };
        let mut sum = Sum::new(inner.fold);
        for (first, second) in pairs {
            self.budget.charge(1)?;
            let depth = self.locals.len();
            self.locals.push((Arc::clone(&inner.first), first.clone()));
            if let Some(name) = &inner.second {
                self.locals.push((Arc::clone(name), second));
            }
            let step = self.step(inner, &first, &mut sum);
            self.locals.truncate(depth);
            if step? {
                break;
            }
        }
        sum.finish()
    }

    /// One element; `true` when the rest does not matter.
    fn step(&mut self, inner: &Comprehension, first: &Value, sum: &mut Sum) -> Result<bool, EvalError> {
        if let Some(filter) = &inner.filter {
            match self.eval(filter)? {
                Value::Bool(true) => {}
                Value::Bool(false) => return Ok(false),
                _ => return Err(EvalError::NoSuchOverload),
            }
        }
        let body = self.eval(&inner.body);
        if matches!(body, Err(EvalError::OutOfBudget)) {
            return Err(EvalError::OutOfBudget);
        }
        match inner.fold {
            Fold::All | Fold::Exists => {
                let decisive = inner.fold == Fold::Exists;
                match body {
                    Ok(Value::Bool(flag)) if flag == decisive => {
                        sum.decided = true;
                        return Ok(true);
                    }
                    Ok(Value::Bool(_)) => {}
                    Ok(_) => sum.error = sum.error.take().or(Some(EvalError::NoSuchOverload)),
                    Err(error) => sum.error = sum.error.take().or(Some(error)),
                }
            }
            Fold::ExistsOne => match body? {
                Value::Bool(flag) => sum.count += usize::from(flag),
                _ => return Err(EvalError::NoSuchOverload),
            },
            Fold::Filter => match body? {
                Value::Bool(true) => sum.list.push(first.clone()),
                Value::Bool(false) => {}
                _ => return Err(EvalError::NoSuchOverload),
            },
            Fold::List => sum.list.push(body?),
            Fold::Map => {
                sum.map.insert(Key::of(first)?, body?);
            }
            Fold::Entries => match body? {
                Value::Map(entries) => {
                    for (key, value) in entries.iter() {
                        if sum.map.insert(key.clone(), value.clone()).is_some() {
                            return Err(EvalError::other(format!("insert failed: key {key} already exists")));
                        }
                    }
                }
                _ => return Err(EvalError::NoSuchOverload),
            },
        }
        Ok(false)
    }
}

/// What a comprehension has come to.
struct Sum {
    fold: Fold,
    decided: bool,
    error: Option<EvalError>,
    count: usize,
    list: Vec<Value>,
    map: BTreeMap<Key, Value>,
}

impl Sum {
    fn new(fold: Fold) -> Self {
        Self { fold, decided: false, error: None, count: 0, list: Vec::new(), map: BTreeMap::new() }
    }

    fn finish(self) -> Outcome {
        match self.fold {
            Fold::All | Fold::Exists => {
                let decisive = self.fold == Fold::Exists;
                match (self.decided, self.error) {
                    (true, _) => Ok(decisive.into()),
                    (false, Some(error)) => Err(error),
                    (false, None) => Ok((!decisive).into()),
                }
            }
            Fold::ExistsOne => Ok((self.count == 1).into()),
            Fold::Filter | Fold::List => Ok(Value::list(self.list)),
            Fold::Map | Fold::Entries => Ok(Value::Map(Arc::new(self.map))),
        }
    }
}

fn into_optional(value: Value) -> Value {
    if matches!(value, Value::Optional(_)) { value } else { Value::some(value) }
}

/// Whether a value can be what a signature wants; as far as that shows at the surface.
fn accepts((wanted, value): (&Type, &Value)) -> bool {
    match (wanted, value) {
        (Type::Dyn | Type::Param(_) | Type::Var(_), _)
        | (Type::Null, Value::Null)
        | (Type::Bool, Value::Bool(_))
        | (Type::Int, Value::Int(_))
        | (Type::Uint, Value::Uint(_))
        | (Type::Double, Value::Double(_))
        | (Type::String, Value::String(_))
        | (Type::Bytes, Value::Bytes(_))
        | (Type::Timestamp, Value::Timestamp(_))
        | (Type::Duration, Value::Duration(_))
        | (Type::Type, Value::Type(_))
        | (Type::Map(_) | Type::Object(_), Value::Map(_))
        | (Type::Optional(_), Value::Optional(_)) => true,
        // Where a list of some type is wanted, the first element tells.
        (Type::List(element), Value::List(items)) => items.first().is_none_or(|item| accepts((element, item))),
        (Type::Opaque(name), Value::Opaque(opaque)) => **name == *opaque.type_name(),
        (Type::Opaque(name), Value::Struct(made, _)) => name == made,
        _ => false,
    }
}

fn overflow(kind: &str) -> EvalError {
    EvalError::other(format!("{kind} overflow"))
}

fn operate(op: Op, left: &Value, right: &Value, budget: &mut Budget) -> Outcome {
    match op {
        Op::Equal | Op::NotEqual => {
            budget.charge(1)?;
            Ok((left.equals(right, budget)? == (op == Op::Equal)).into())
        }
        Op::Less | Op::LessOrEqual | Op::Greater | Op::GreaterOrEqual => {
            budget.charge(1)?;
            budget.charge_bytes(left.size().min(right.size()))?;
            let order = compare(left, right)?;
            let is = |wanted: fn(std::cmp::Ordering) -> bool| order.is_some_and(wanted);
            Ok(match op {
                Op::Less => is(std::cmp::Ordering::is_lt),
                Op::LessOrEqual => is(std::cmp::Ordering::is_le),
                Op::Greater => is(std::cmp::Ordering::is_gt),
                _ => is(std::cmp::Ordering::is_ge),
            }
            .into())
        }
        Op::In => match right {
            Value::List(items) => {
                for item in items.iter() {
                    budget.charge(1)?;
                    if left.equals(item, budget)? {
                        return Ok(true.into());
                    }
                }
                Ok(false.into())
            }
            Value::Map(map) => {
                budget.charge(1)?;
                Ok(Key::of(left).is_ok_and(|key| map.contains_key(&key)).into())
            }
            _ => Err(EvalError::NoSuchOverload),
        },
        Op::Add => add(left, right, budget),
        Op::Subtract | Op::Multiply | Op::Divide | Op::Modulo => {
            budget.charge(1)?;
            arithmetic(op, left, right)
        }
    }
}

fn add(left: &Value, right: &Value, budget: &mut Budget) -> Outcome {
    budget.charge(1)?;
    Ok(match (left, right) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_add(*b).ok_or_else(|| overflow("integer"))?),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_add(*b).ok_or_else(|| overflow("unsigned integer"))?),
        (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
        (Value::String(a), Value::String(b)) => {
            budget.charge_bytes(left.size() + right.size())?;
            format!("{a}{b}").into()
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            budget.charge_bytes(left.size() + right.size())?;
            Value::Bytes([&**a, &**b].concat().into())
        }
        (Value::List(a), Value::List(b)) => {
            // Copied, which costs.
            budget.charge_bytes(left.size() + right.size())?;
            Value::list(a.iter().chain(b.iter()).cloned().collect())
        }
        (Value::Timestamp(time), Value::Duration(by)) | (Value::Duration(by), Value::Timestamp(time)) => {
            Value::Timestamp(time.checked_add(*by).map_err(|_| overflow("timestamp"))?)
        }
        (Value::Duration(a), Value::Duration(b)) => {
            Value::Duration(a.checked_add(*b).ok_or_else(|| overflow("duration"))?)
        }
        _ => return Err(EvalError::NoSuchOverload),
    })
}

fn arithmetic(op: Op, left: &Value, right: &Value) -> Outcome {
    let zero = || EvalError::other(if op == Op::Divide { "division by zero" } else { "modulus by zero" });
    match (left, right) {
        (Value::Int(a), Value::Int(b)) => {
            if *b == 0 && matches!(op, Op::Divide | Op::Modulo) {
                return Err(zero());
            }
            let made = match op {
                Op::Subtract => a.checked_sub(*b),
                Op::Multiply => a.checked_mul(*b),
                Op::Divide => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            made.map(Value::Int).ok_or_else(|| overflow("integer"))
        }
        (Value::Uint(a), Value::Uint(b)) => {
            if *b == 0 && matches!(op, Op::Divide | Op::Modulo) {
                return Err(zero());
            }
            let made = match op {
                Op::Subtract => a.checked_sub(*b),
                Op::Multiply => a.checked_mul(*b),
                Op::Divide => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            made.map(Value::Uint).ok_or_else(|| overflow("unsigned integer"))
        }
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(match op {
            Op::Subtract => a - b,
            Op::Multiply => a * b,
            Op::Divide => a / b,
            _ => return Err(EvalError::NoSuchOverload),
        })),
        (Value::Timestamp(a), Value::Timestamp(b)) if op == Op::Subtract => Ok(Value::Duration(a.duration_since(*b))),
        (Value::Timestamp(time), Value::Duration(by)) if op == Op::Subtract => {
            time.checked_sub(*by).map(Value::Timestamp).map_err(|_| overflow("timestamp"))
        }
        (Value::Duration(a), Value::Duration(b)) if op == Op::Subtract => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(|| overflow("duration"))
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}
