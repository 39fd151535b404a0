//! Types: each expression's is found, and calls are tied to the functions they mean.

use std::sync::Arc;

use crate::ast::{Comprehension, Expr, Field, Fold, Kind};
use crate::env::{Env, Function, Overload};
use crate::error::Problem;
use crate::types::Type;

/// The type of the whole expression. Names with dots become variables, and calls get their functions.
pub fn check(env: &Env, expr: &mut Expr) -> Result<Type, Vec<Problem>> {
    let mut checker = Checker { env, scopes: Vec::new(), bound: Vec::new(), problems: Vec::new() };
    let found = checker.expr(expr);
    let found = checker.settle(&found);
    if checker.problems.is_empty() { Ok(found) } else { Err(checker.problems) }
}

struct Checker<'e> {
    env: &'e Env,
    /// Variables of comprehensions, inner ones last.
    scopes: Vec<(Arc<str>, Type)>,
    /// What type variables stand for, as far as it is known.
    bound: Vec<Option<Type>>,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn problem(&mut self, at: usize, message: String) -> Type {
        self.problems.push(Problem { at, message });
        Type::Dyn
    }

    fn fresh(&mut self) -> Type {
        self.bound.push(None);
        Type::Var(self.bound.len() - 1)
    }

    /// The type with all that is known of variables put in.
    fn settle(&self, ty: &Type) -> Type {
        match ty {
            Type::Var(index) => match self.bound.get(*index) {
                Some(Some(bound)) => self.settle(bound),
                _ => ty.clone(),
            },
            Type::List(element) => Type::list(self.settle(element)),
            Type::Map(pair) => Type::map(self.settle(&pair.0), self.settle(&pair.1)),
            Type::Optional(inner) => Type::optional(self.settle(inner)),
            other => other.clone(),
        }
    }

    /// Whether a value of type `given` can be where `wanted` is; finds out variables on the way.
    fn fits(&mut self, given: &Type, wanted: &Type) -> bool {
        let (given, wanted) = (self.shallow(given), self.shallow(wanted));
        match (&given, &wanted) {
            (Type::Var(a), Type::Var(b)) if a == b => true,
            (Type::Var(index), other) | (other, Type::Var(index)) => {
                if self.mentions(other, *index) {
                    return false;
                }
                self.bound[*index] = Some(other.clone());
                true
            }
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.fits(a, b),
            (Type::Map(a), Type::Map(b)) => self.fits(&a.0, &b.0) && self.fits(&a.1, &b.1),
            (Type::Null, Type::Object(_) | Type::Opaque(_) | Type::Timestamp | Type::Duration | Type::Optional(_))
            | (Type::Object(_) | Type::Opaque(_) | Type::Timestamp | Type::Duration | Type::Optional(_), Type::Null) => {
                true
            }
            (a, b) => a == b,
        }
    }

    fn shallow(&self, ty: &Type) -> Type {
        let mut ty = ty.clone();
        while let Type::Var(index) = ty {
            match self.bound.get(index) {
                Some(Some(bound)) => ty = bound.clone(),
                _ => break,
            }
        }
        ty
    }

    fn mentions(&self, ty: &Type, index: usize) -> bool {
        match self.shallow(ty) {
            Type::Var(other) => other == index,
            Type::List(inner) | Type::Optional(inner) => self.mentions(&inner, index),
            Type::Map(pair) => self.mentions(&pair.0, index) || self.mentions(&pair.1, index),
            _ => false,
        }
    }

    fn expr(&mut self, expr: &mut Expr) -> Type {
        self.resolve_name(expr);
        let at = expr.at;
        match &mut expr.kind {
            Kind::Literal(value) => literal(value),
            Kind::Ident(name) => {
                let local = self.scopes.iter().rev().find(|(known, _)| known == name).map(|(_, ty)| ty.clone());
                match local.or_else(|| self.env.variables.get(name).cloned()) {
                    Some(ty) => ty,
                    None => {
                        let message = format!("undeclared reference to '{name}' (in container '')");
                        self.problem(at, message)
                    }
                }
            }
            Kind::Select { operand, field, test, optional } => {
                let (field, test, optional) = (Arc::clone(field), *test, *optional);
                // A name that only begins like declared ones.
                if let Kind::Ident(prefix) = &operand.kind
                    && !self.scopes.iter().any(|(known, _)| known == prefix)
                    && !self.env.variables.contains_key(prefix)
                    && self
                        .env
                        .variables
                        .keys()
                        .any(|name| name.strip_prefix(&**prefix).is_some_and(|rest| rest.starts_with('.')))
                {
                    return self.problem(at, format!("undefined field '{field}'"));
                }
                let of = self.expr(operand);
                let ty = self.field(at, &of, &field);
                match (test, optional) {
                    (true, _) => Type::Bool,
                    (false, true) if !matches!(ty, Type::Optional(_)) => Type::optional(ty),
                    _ => ty,
                }
            }
            Kind::Index { operand, index, optional } => {
                let optional = *optional;
                let (of, by) = (self.expr(operand), self.expr(index));
                self.index(at, &of, &by, optional)
            }
            Kind::Not(operand) => {
                let of = self.expr(operand);
                self.operator(at, "!_", &[of])
            }
            Kind::Negate(operand) => {
                let of = self.expr(operand);
                self.operator(at, "-_", &[of])
            }
            Kind::And(operands) => self.logic(at, operands, "_&&_"),
            Kind::Or(operands) => self.logic(at, operands, "_||_"),
            Kind::Binary { op, left, right } => {
                let op = *op;
                let (left, right) = (self.expr(left), self.expr(right));
                self.operator(at, op.name(), &[left, right])
            }
            Kind::Conditional { test, yes, no } => {
                let (test, yes, no) = (self.expr(test), self.expr(yes), self.expr(no));
                self.operator(at, "_?_:_", &[test, yes, no])
            }
            Kind::Call { .. } => self.call(expr),
            Kind::List(items) => {
                let mut element = None;
                for (item, optional) in items.iter_mut() {
                    let (item_at, mut ty) = (item.at, self.expr(item));
                    if *optional {
                        ty = self.unwrap_optional(item_at, &ty);
                    }
                    element = Some(self.join(item_at, element, ty));
                }
                let element = element.unwrap_or_else(|| self.fresh());
                Type::list(element)
            }
            Kind::Map(entries) => {
                let (mut key, mut value) = (None, None);
                for entry in entries.iter_mut() {
                    let (key_at, key_type) = (entry.key.at, self.expr(&mut entry.key));
                    key = Some(self.join(key_at, key, key_type));
                    let (value_at, mut ty) = (entry.value.at, self.expr(&mut entry.value));
                    if entry.optional {
                        ty = self.unwrap_optional(value_at, &ty);
                    }
                    value = Some(self.join(value_at, value, ty));
                }
                let key = key.unwrap_or_else(|| self.fresh());
                let value = value.unwrap_or_else(|| self.fresh());
                Type::map(key, value)
            }
            Kind::Struct { name, fields } => {
                let name = Arc::clone(name);
                self.structure(at, &name, fields)
            }
            Kind::Comprehension(inner) => self.comprehension(inner),
            Kind::OptMap { target, variable, body, flat } => {
                let (flat, variable) = (*flat, Arc::clone(variable));
                let target_at = target.at;
                let of = self.expr(target);
                let inner = self.unwrap_optional(target_at, &of);
                self.scopes.push((variable, inner));
                let body_at = body.at;
                let made = self.expr(body);
                self.scopes.pop();
                if flat {
                    let inner = self.unwrap_optional(body_at, &made);
                    Type::optional(inner)
                } else {
                    Type::optional(made)
                }
            }
        }
    }

    /// Turns `a.b.c` into a variable when one of that name, and none of a shorter one, is declared.
    fn resolve_name(&mut self, expr: &mut Expr) {
        if !matches!(expr.kind, Kind::Select { test: false, optional: false, .. }) {
            return;
        }
        let Some(name) = expr.qualified_name() else { return };
        let first = name.split('.').next().unwrap_or_default();
        if self.scopes.iter().any(|(known, _)| &**known == first) {
            return;
        }
        if self.env.variables.contains_key(name.as_str()) {
            expr.kind = Kind::Ident(name.into());
        }
    }

    fn logic(&mut self, at: usize, operands: &mut [Expr], name: &str) -> Type {
        let mut left: Option<Type> = None;
        for operand in operands {
            let right = self.expr(operand);
            left = Some(match left {
                None => right,
                Some(left) => self.operator(at, name, &[left, right]),
            });
        }
        Type::Bool
    }

    fn field(&mut self, at: usize, of: &Type, field: &str) -> Type {
        match self.shallow(of) {
            Type::Dyn | Type::Var(_) => Type::Dyn,
            Type::Map(pair) => pair.1.clone(),
            Type::Object(object) => match object.field(field) {
                Some(ty) => ty,
                None => self.problem(at, format!("undefined field '{field}'")),
            },
            Type::Opaque(name) => {
                let found = self.env.structs.as_ref().and_then(|structs| {
                    structs.find(&name)?;
                    Some(structs.field(&name, field))
                });
                match found {
                    Some(Some(ty)) => ty,
                    Some(None) => self.problem(at, format!("undefined field '{field}'")),
                    None => self.problem(at, format!("type '{name}' does not support field selection")),
                }
            }
            Type::Optional(inner) => {
                let ty = self.field(at, &inner, field);
                Type::optional(ty)
            }
            other => {
                let other = self.settle(&other);
                self.problem(at, format!("type '{other}' does not support field selection"))
            }
        }
    }

    fn index(&mut self, at: usize, of: &Type, by: &Type, optional: bool) -> Type {
        let (is_optional, inner) = match self.shallow(of) {
            Type::Optional(inner) => (true, self.shallow(&inner)),
            other => (false, other),
        };
        let numeric = |ty: &Type| matches!(ty, Type::Int | Type::Uint | Type::Double | Type::Dyn | Type::Var(_));
        let found = match &inner {
            Type::Dyn | Type::Var(_) => Some(Type::Dyn),
            Type::List(element) if numeric(&self.shallow(by)) => Some((**element).clone()),
            Type::Map(pair) if self.fits(by, &pair.0) => Some(pair.1.clone()),
            _ => None,
        };
        match found {
            Some(ty) if optional || is_optional => Type::optional(ty),
            Some(ty) => ty,
            None => {
                let (of, by) = (self.settle(of), self.settle(by));
                let name = if optional { "_[?_]" } else { "_[_]" };
                self.problem(at, format!("found no matching overload for '{name}' applied to '({of}, {by})'"))
            }
        }
    }

    /// The elements of a literal are of one type.
    fn join(&mut self, at: usize, so_far: Option<Type>, next: Type) -> Type {
        let Some(so_far) = so_far else { return next };
        if !self.fits(&next, &so_far) {
            let (wanted, given) = (self.settle(&so_far), self.settle(&next));
            return self.problem(at, format!("expected type '{wanted}' but found '{given}'"));
        }
        if matches!(self.shallow(&so_far), Type::Null) { next } else { so_far }
    }

    fn unwrap_optional(&mut self, at: usize, ty: &Type) -> Type {
        match self.shallow(ty) {
            Type::Optional(inner) => (*inner).clone(),
            Type::Dyn | Type::Var(_) => Type::Dyn,
            other => {
                let other = self.settle(&other);
                self.problem(at, format!("expected type 'optional_type(dyn)' but found '{other}'"))
            }
        }
    }

    fn structure(&mut self, at: usize, name: &Arc<str>, fields: &mut [Field]) -> Type {
        let Some(structs) = self.env.structs.clone() else {
            return self.problem(at, format!("undeclared reference to '{name}' (in container '')"));
        };
        let Some(ty) = structs.find(name) else {
            return self.problem(at, format!("undeclared reference to '{name}' (in container '')"));
        };
        for field in fields {
            let mut given = self.expr(&mut field.value);
            if field.optional {
                given = self.unwrap_optional(field.value.at, &given);
            }
            match structs.field(name, &field.name) {
                None => {
                    self.problem(field.at, format!("undefined field '{}'", field.name));
                }
                Some(wanted) => {
                    if !self.fits(&given, &wanted) {
                        let given = self.settle(&given);
                        let message = format!(
                            "expected type of field '{}' is '{wanted}' but provided type is '{given}'",
                            field.name
                        );
                        self.problem(field.at, message);
                    }
                }
            }
        }
        ty
    }

    fn comprehension(&mut self, inner: &mut Comprehension) -> Type {
        let range = self.expr(&mut inner.range);
        let two = inner.second.is_some();
        let (first, second) = match self.shallow(&range) {
            Type::List(element) => {
                if two {
                    (Type::Int, (*element).clone())
                } else {
                    ((*element).clone(), Type::Dyn)
                }
            }
            Type::Map(pair) => (pair.0.clone(), pair.1.clone()),
            Type::Dyn | Type::Var(_) => (Type::Dyn, Type::Dyn),
            other => {
                let other = self.settle(&other);
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.problem(inner.range.at, message);
                (Type::Dyn, Type::Dyn)
            }
        };
        let depth = self.scopes.len();
        self.scopes.push((Arc::clone(&inner.first), first.clone()));
        if let Some(name) = &inner.second {
            self.scopes.push((Arc::clone(name), second));
        }
        if let Some(filter) = &mut inner.filter {
            let at = filter.at;
            let ty = self.expr(filter);
            self.must_be_bool(at, &ty, "_?_:_", &[Type::Dyn, Type::Dyn]);
        }
        let at = inner.body.at;
        let body = self.expr(&mut inner.body);
        self.scopes.truncate(depth);
        match inner.fold {
            Fold::All => {
                self.must_be_bool_operand(at, &body, "_&&_");
                Type::Bool
            }
            Fold::Exists => {
                self.must_be_bool_operand(at, &body, "_||_");
                Type::Bool
            }
            Fold::ExistsOne => {
                self.must_be_bool(at, &body, "_?_:_", &[Type::Int, Type::Int]);
                Type::Bool
            }
            Fold::Filter => {
                self.must_be_bool(at, &body, "_?_:_", &[Type::Dyn, Type::Dyn]);
                Type::list(first)
            }
            Fold::List => Type::list(body),
            Fold::Map => Type::map(first, body),
            Fold::Entries => match self.shallow(&body) {
                ty @ Type::Map(_) => ty,
                Type::Dyn | Type::Var(_) => Type::map(Type::Dyn, Type::Dyn),
                other => {
                    let other = self.settle(&other);
                    self.problem(at, format!("expected type 'map(dyn, dyn)' but found '{other}'"))
                }
            },
        }
    }

    fn must_be_bool_operand(&mut self, at: usize, ty: &Type, name: &str) {
        if !self.fits(ty, &Type::Bool) {
            let ty = self.settle(ty);
            self.problem(at, format!("found no matching overload for '{name}' applied to '(bool, {ty})'"));
        }
    }

    fn must_be_bool(&mut self, at: usize, ty: &Type, name: &str, rest: &[Type]) {
        if !self.fits(ty, &Type::Bool) {
            let ty = self.settle(ty);
            let rest: Vec<String> = rest.iter().map(ToString::to_string).collect();
            let message = format!("found no matching overload for '{name}' applied to '({ty}, {})'", rest.join(", "));
            self.problem(at, message);
        }
    }

    fn operator(&mut self, at: usize, name: &str, args: &[Type]) -> Type {
        match self.env.functions.get(name).cloned() {
            Some(function) => self.resolve(at, &function, args, false),
            None => self.problem(at, format!("undeclared reference to '{name}' (in container '')")),
        }
    }

    fn call(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        let Kind::Call { target, function, args, found } = &mut expr.kind else { return Type::Dyn };
        // `ip.isCanonical(x)` is no method when no variable `ip` is in scope.
        if let Some(prefix) = target.as_ref().and_then(|target| target.qualified_name()) {
            let first = prefix.split('.').next().unwrap_or_default();
            let name: Arc<str> = format!("{prefix}.{function}").into();
            if !self.scopes.iter().any(|(known, _)| &**known == first)
                && !self.env.variables.contains_key(prefix.as_str())
                && self.env.functions.contains_key(&name)
            {
                *target = None;
                *function = name;
            }
        }
        let mut types = Vec::with_capacity(args.len() + 1);
        let is_member = target.is_some();
        if let Some(target) = target {
            types.push(self.expr(target));
        }
        for arg in args.iter_mut() {
            let ty = match &mut arg.kind {
                // What is to be printed may be of all types.
                Kind::List(items) if &**function == "format" => {
                    for (item, _) in items.iter_mut() {
                        self.expr(item);
                    }
                    Type::list(Type::Dyn)
                }
                _ => self.expr(arg),
            };
            types.push(ty);
        }
        let Some(known) = self.env.functions.get(function).cloned() else {
            let message = format!("undeclared reference to '{function}' (in container '')");
            return self.problem(at, message);
        };
        *found = Some(Arc::clone(&known));
        self.resolve(at, &known, &types, is_member)
    }

    fn resolve(&mut self, at: usize, function: &Function, args: &[Type], is_member: bool) -> Type {
        let mut result: Option<Type> = None;
        let before = self.bound.clone();
        let mut after = None;
        for overload in &function.overloads {
            if overload.member != is_member || overload.params.len() != args.len() {
                continue;
            }
            self.bound.clone_from(&before);
            let Some(made) = self.try_overload(overload, args) else { continue };
            match &result {
                None => {
                    after = Some(self.bound.clone());
                    result = Some(made);
                }
                // More than one may be meant: only the values can tell.
                Some(first) if *first == made => {}
                Some(_) => {
                    result = Some(Type::Dyn);
                    after = None;
                }
            }
        }
        match after {
            Some(after) => self.bound = after,
            None => {
                let grown = self.bound.len();
                self.bound = before;
                self.bound.resize(grown.max(self.bound.len()), None);
            }
        }
        match result {
            Some(result) => result,
            None => {
                let shown: Vec<String> = args.iter().map(|arg| self.settle(arg).to_string()).collect();
                let signature = match (is_member, shown.split_first()) {
                    (true, Some((target, rest))) => format!("{target}.({})", rest.join(", ")),
                    _ => format!("({})", shown.join(", ")),
                };
                let message = format!("found no matching overload for '{}' applied to '{signature}'", function.name);
                self.problem(at, message)
            }
        }
    }

    fn try_overload(&mut self, overload: &Overload, args: &[Type]) -> Option<Type> {
        let mut params: Vec<(&'static str, Type)> = Vec::new();
        for (given, wanted) in args.iter().zip(&overload.params) {
            let wanted = self.instantiate(wanted, &mut params);
            if !self.fits(given, &wanted) {
                return None;
            }
        }
        let result = self.instantiate(&overload.result, &mut params);
        Some(self.settle(&result))
    }

    /// Puts a fresh variable in place of each parameter.
    fn instantiate(&mut self, ty: &Type, params: &mut Vec<(&'static str, Type)>) -> Type {
        match ty {
            Type::Param(name) => {
                if let Some((_, known)) = params.iter().find(|(known, _)| known == name) {
                    return known.clone();
                }
                let fresh = self.fresh();
                params.push((name, fresh.clone()));
                fresh
            }
            Type::List(inner) => Type::list(self.instantiate(inner, params)),
            Type::Optional(inner) => Type::optional(self.instantiate(inner, params)),
            Type::Map(pair) => {
                let key = self.instantiate(&pair.0, params);
                Type::map(key, self.instantiate(&pair.1, params))
            }
            other => other.clone(),
        }
    }
}

fn literal(value: &crate::value::Value) -> Type {
    use crate::value::Value;
    match value {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Bool,
        Value::Int(_) => Type::Int,
        Value::Uint(_) => Type::Uint,
        Value::Double(_) => Type::Double,
        Value::String(_) => Type::String,
        Value::Bytes(_) => Type::Bytes,
        _ => Type::Dyn,
    }
}
