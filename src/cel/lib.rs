//! The Common Expression Language: parsed, type-checked and evaluated within a budget.
//!
//! It knows nothing of Kubernetes; who embeds it declares variables and functions, and brings types of objects. An
//! expression has no effects, always ends, and costs at most its budget, whatever it is given. Texts of errors are cel-go's,
//! since users meet them in the answers of the API server.
//!
//! Start at [`Env`]: [`Env::compile`] makes a [`Program`], which is evaluated on [`Bindings`].

mod ast;
mod check;
mod env;
mod error;
mod eval;
mod lex;
mod lists;
mod parse;
mod sets;
mod standard;
mod strings;
mod time;
mod types;
mod value;

pub use env::{Env, Function, Overload, Run, Structs, global, member};
pub use error::{CompileError, EvalError, Problem};
pub use eval::{Bindings, Budget, Program};
pub use parse::RESERVED;
pub use standard::regex;
pub use time::{duration_text, parse_duration, parse_timestamp};
pub use types::{ObjectType, Type};
pub use value::{Key, Opaque, Value, compare};

#[cfg(test)]
mod tests;
