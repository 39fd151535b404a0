//! CEL as Kubernetes has it: its libraries, the variables of admission, and the rules of schemas.
//!
//! The language itself is the crate `mussel-cel`. [`environment`] has everything that all expressions in the API may use;
//! [`admission`] and [`rules`] add what they are about.

pub mod admission;
mod library;
pub mod rules;
pub mod schema;

use std::sync::LazyLock;

use mussel_cel::{CompileError, Env, Program, Type};

/// What one evaluation may cost; upstream's number.
pub const CALL_COST_MAX: u64 = 1_000_000;
/// What all expressions of a policy, or of a schema's rules for one object, may cost together; upstream's number.
pub const TOTAL_COST_MAX: u64 = 10_000_000;
/// The same for the match conditions of one webhook or policy.
pub const CONDITIONS_COST_MAX: u64 = 2_500_000;
/// Longest message that an expression may make; upstream's number.
pub const MESSAGE_BYTES_MAX: usize = 5 * 1024;

/// The environment of all expressions: the language, and Kubernetes' libraries.
pub fn environment() -> Env {
    static ENV: LazyLock<Env> = LazyLock::new(|| {
        let mut env = Env::standard();
        library::declare(&mut env);
        env
    });
    ENV.clone()
}

/// Why an expression cannot be used. `Display` is upstream's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    #[error("compilation failed: {0}")]
    Compile(CompileError),
    #[error("must evaluate to {wanted} but got {found}")]
    Type { wanted: String, found: String },
    #[error("compilation failed: variables refer to each other too deeply")]
    TooDeep,
}

/// Compiles an expression that has to evaluate to one of `wanted`.
///
/// # Errors
/// When it is none.
pub fn compile(env: &Env, source: &str, wanted: &[Type]) -> Result<Program, ExpressionError> {
    let program = env.compile(source).map_err(ExpressionError::Compile)?;
    if wanted.is_empty() || wanted.contains(program.result()) {
        return Ok(program);
    }
    let names: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    let wanted = match names.as_slice() {
        [one] => one.clone(),
        many => format!("one of [{}]", many.join(" ")),
    };
    Err(ExpressionError::Type { wanted, found: program.result().to_string() })
}
