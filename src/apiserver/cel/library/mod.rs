//! Kubernetes' own functions.

pub mod authorizer;
mod format;
mod image;
mod json_patch;
mod network;
mod quantity;
mod regex;
mod semver;
mod url;

use mussel_cel::{Env, EvalError, Value};

pub fn declare(env: &mut Env) {
    authorizer::declare(env);
    format::declare(env);
    image::declare(env);
    json_patch::declare(env);
    network::declare(env);
    quantity::declare(env);
    regex::declare(env);
    semver::declare(env);
    url::declare(env);
}

/// The text of an argument.
fn text(value: &Value) -> Result<&str, EvalError> {
    value.as_str().ok_or(EvalError::NoSuchOverload)
}

/// An argument of a library's own type.
fn own<T: std::any::Any>(value: &Value) -> Result<&T, EvalError> {
    value.downcast().ok_or(EvalError::NoSuchOverload)
}

/// Implements `Opaque` for a type that compares by `==`.
macro_rules! opaque {
    ($ty:ty, $name:expr) => {
        impl mussel_cel::Opaque for $ty {
            fn type_name(&self) -> &'static str {
                $name
            }

            fn equals(&self, other: &dyn mussel_cel::Opaque) -> bool {
                other.as_any().downcast_ref::<Self>().is_some_and(|other| self == other)
            }

            fn as_any(&self) -> &dyn std::any::Any {
                self
            }
        }
    };
}
use opaque;
