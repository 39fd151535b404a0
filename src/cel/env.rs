//! What an expression may refer to: variables, functions, and types it can make objects of.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::check;
use crate::error::{CompileError, EvalError};
use crate::eval::{Budget, Program};
use crate::parse::parse;
use crate::types::Type;
use crate::value::Value;
use crate::{lists, sets, standard, strings};

/// What a function does. The target of a member call is the first argument.
pub type Run = fn(&[Value], &mut Budget) -> Result<Value, EvalError>;

/// One signature of a function.
#[derive(Clone)]
pub struct Overload {
    /// `target.f(..)`; the target is the first parameter.
    pub member: bool,
    pub params: Vec<Type>,
    pub result: Type,
    pub run: Run,
}

/// A function by its name, with all its signatures.
#[derive(Clone)]
pub struct Function {
    pub name: Arc<str>,
    pub overloads: Vec<Overload>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({})", self.name)
    }
}

/// `f(params) -> result`
pub fn global(params: impl AsRef<[Type]>, result: Type, run: Run) -> Overload {
    Overload { member: false, params: params.as_ref().to_vec(), result, run }
}

/// `params[0].f(params[1..]) -> result`
pub fn member(params: impl AsRef<[Type]>, result: Type, run: Run) -> Overload {
    Overload { member: true, params: params.as_ref().to_vec(), result, run }
}

/// Types whose objects expressions can make: `Name{field: value}`.
pub trait Structs: Send + Sync {
    /// The type of that name.
    fn find(&self, name: &str) -> Option<Type>;

    /// The type of a field of the type of that name.
    fn field(&self, name: &str, field: &str) -> Option<Type>;
}

/// The environment of expressions. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    pub(crate) variables: Arc<HashMap<Arc<str>, Type>>,
    pub(crate) functions: Arc<HashMap<Arc<str>, Arc<Function>>>,
    pub(crate) structs: Option<Arc<dyn Structs>>,
}

impl Default for Env {
    fn default() -> Self {
        Self::standard()
    }
}

impl Env {
    /// The standard functions, and the extensions for strings, lists, sets and optional values.
    pub fn standard() -> Self {
        let mut env = Self { variables: Arc::default(), functions: Arc::default(), structs: None };
        for name in standard::TYPES {
            env.declare(name, Type::Type);
        }
        standard::declare(&mut env);
        strings::declare(&mut env);
        lists::declare(&mut env);
        sets::declare(&mut env);
        env
    }

    /// Declares a variable; its name may have dots.
    pub fn declare(&mut self, name: &str, ty: Type) {
        Arc::make_mut(&mut self.variables).insert(name.into(), ty);
    }

    /// Adds signatures to the function of this name.
    pub fn function(&mut self, name: &str, overloads: Vec<Overload>) {
        let functions = Arc::make_mut(&mut self.functions);
        let function = functions
            .entry(name.into())
            .or_insert_with(|| Arc::new(Function { name: name.into(), overloads: Vec::new() }));
        Arc::make_mut(function).overloads.extend(overloads);
    }

    pub fn set_structs(&mut self, structs: Arc<dyn Structs>) {
        self.structs = Some(structs);
    }

    /// Parses and checks an expression.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn compile(&self, source: &str) -> Result<Program, CompileError> {
        let mut expr = parse(source)?;
        let result = check::check(self, &mut expr).map_err(|problems| CompileError::new(source, problems))?;
        Ok(Program::new(expr, result))
    }
}
