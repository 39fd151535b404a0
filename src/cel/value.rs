//! Values, and what holds for all of them: equality, order, JSON.

use std::any::Any;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::error::EvalError;
use crate::eval::Budget;

/// A value of a library's own type.
pub trait Opaque: Any + fmt::Debug + Send + Sync {
    /// As expressions and messages call the type.
    fn type_name(&self) -> &'static str;

    fn equals(&self, other: &dyn Opaque) -> bool;

    fn as_any(&self) -> &dyn Any;
}

#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    List(Arc<Vec<Value>>),
    Map(Arc<BTreeMap<Key, Value>>),
    /// An object made by an expression: its type's name, and the fields that were set.
    Struct(Arc<str>, Arc<BTreeMap<Arc<str>, Value>>),
    Optional(Option<Arc<Value>>),
    /// The name of a type.
    Type(Arc<str>),
    Opaque(Arc<dyn Opaque>),
}

/// What maps are keyed by. Whole numbers of all types are one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Int(i64),
    /// Beyond what `Int` holds.
    Uint(u64),
    String(Arc<str>),
}

impl Key {
    pub fn of(value: &Value) -> Result<Self, EvalError> {
        Ok(match value {
            Value::Bool(flag) => Self::Bool(*flag),
            Value::Int(number) => Self::Int(*number),
            Value::Uint(number) => i64::try_from(*number).map_or(Self::Uint(*number), Self::Int),
            Value::String(text) => Self::String(Arc::clone(text)),
            Value::Double(number) if number.fract() == 0.0 && number.abs() < 9.0e18 => Self::Int(*number as i64),
            other => return Err(EvalError::other(format!("unsupported key type: {}", other.type_name()))),
        })
    }

    pub fn value(&self) -> Value {
        match self {
            Self::Bool(flag) => Value::Bool(*flag),
            Self::Int(number) => Value::Int(*number),
            Self::Uint(number) => Value::Uint(*number),
            Self::String(text) => Value::String(Arc::clone(text)),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(flag) => write!(f, "{flag}"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Uint(number) => write!(f, "{number}"),
            Self::String(text) => f.write_str(text),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl Value {
    pub fn list(items: Vec<Self>) -> Self {
        Self::List(Arc::new(items))
    }

    pub fn opaque(value: impl Opaque) -> Self {
        Self::Opaque(Arc::new(value))
    }

    pub fn some(value: Self) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// The library's own value, when it is of type `T`.
    pub fn downcast<T: Any>(&self) -> Option<&T> {
        match self {
            Self::Opaque(opaque) => opaque.as_any().downcast_ref(),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn type_name(&self) -> &str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Struct(name, _) => name,
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Opaque(opaque) => opaque.type_name(),
        }
    }

    /// A JSON value as it is: whole numbers become `int`.
    pub fn from_json(json: &serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(flag) => Self::Bool(*flag),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Self::Int(number),
                (None, Some(number)) => Self::Uint(number),
                (None, None) => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Self::from(text.as_str()),
            serde_json::Value::Array(items) => Self::list(items.iter().map(Self::from_json).collect()),
            serde_json::Value::Object(map) => {
                let entries = map.iter().map(|(key, value)| (Key::String(key.as_str().into()), Self::from_json(value)));
                Self::Map(Arc::new(entries.collect()))
            }
        }
    }

    /// The value as JSON. Parts may be shared, so that it can be much larger there: that is paid for.
    ///
    /// # Errors
    /// When it has no form there, or the budget is spent.
    pub fn to_json(&self, budget: &mut Budget) -> Result<serde_json::Value, EvalError> {
        budget.charge(1)?;
        budget.charge_bytes(self.size())?;
        Ok(match self {
            Self::Null | Self::Optional(None) => serde_json::Value::Null,
            Self::Bool(flag) => (*flag).into(),
            Self::Int(number) => (*number).into(),
            Self::Uint(number) => (*number).into(),
            // As JSON writes numbers, a whole one has no fraction.
            Self::Double(number) if number.fract() == 0.0 && number.abs() < 9.0e15 => (*number as i64).into(),
            Self::Double(number) => {
                let number = serde_json::Number::from_f64(*number);
                number.ok_or_else(|| EvalError::other("a number that JSON has no form for"))?.into()
            }
            Self::String(text) => (&**text).into(),
            Self::Timestamp(time) => time.to_string().into(),
            Self::Duration(duration) => crate::time::duration_text(*duration).into(),
            Self::Optional(Some(value)) => value.to_json(budget)?,
            Self::List(items) => {
                let mut made = Vec::with_capacity(items.len());
                for item in items.iter() {
                    made.push(item.to_json(budget)?);
                }
                made.into()
            }
            Self::Map(map) => {
                let mut made = serde_json::Map::new();
                for (key, value) in map.iter() {
                    made.insert(key.to_string(), value.to_json(budget)?);
                }
                made.into()
            }
            Self::Struct(_, fields) => {
                let mut made = serde_json::Map::new();
                for (key, value) in fields.iter() {
                    made.insert(key.to_string(), value.to_json(budget)?);
                }
                made.into()
            }
            Self::Bytes(_) | Self::Type(_) | Self::Opaque(_) => {
                return Err(EvalError::other(format!("type conversion error from '{}' to JSON", self.type_name())));
            }
        })
    }

    /// How long it is: characters, bytes, elements; 1 for what has no length. What costs are counted by.
    pub fn size(&self) -> u64 {
        let size = match self {
            Self::String(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(items) => items.len(),
            Self::Map(map) => map.len(),
            _ => 1,
        };
        size as u64
    }
}

impl Value {
    /// Equality over all types: numbers by their value; others of different types are unequal. What is looked at is paid
    /// for: parts may be shared, and then a small value is a large one to look at.
    ///
    /// # Errors
    /// Only `OutOfBudget`.
    pub fn equals(&self, other: &Self, budget: &mut Budget) -> Result<bool, EvalError> {
        Ok(match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(_) | Self::Uint(_) | Self::Double(_), Self::Int(_) | Self::Uint(_) | Self::Double(_)) => {
                compare_numbers(self, other) == Some(Ordering::Equal)
            }
            (Self::String(a), Self::String(b)) | (Self::Type(a), Self::Type(b)) => {
                budget.charge_bytes(a.len().min(b.len()) as u64)?;
                a == b
            }
            (Self::Bytes(a), Self::Bytes(b)) => {
                budget.charge_bytes(a.len().min(b.len()) as u64)?;
                a == b
            }
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::List(a), Self::List(b)) => a.len() == b.len() && all_equal(a.iter().zip(b.iter()), budget)?,
            (Self::Map(a), Self::Map(b)) => {
                a.len() == b.len() && a.keys().eq(b.keys()) && all_equal(a.values().zip(b.values()), budget)?
            }
            (Self::Struct(a, x), Self::Struct(b, y)) => {
                a == b && x.len() == y.len() && x.keys().eq(y.keys()) && all_equal(x.values().zip(y.values()), budget)?
            }
            (Self::Optional(Some(a)), Self::Optional(Some(b))) => a.equals(b, budget)?,
            (Self::Optional(None), Self::Optional(None)) => true,
            (Self::Opaque(a), Self::Opaque(b)) => a.equals(&**b),
            _ => false,
        })
    }
}

fn all_equal<'v>(pairs: impl Iterator<Item = (&'v Value, &'v Value)>, budget: &mut Budget) -> Result<bool, EvalError> {
    for (a, b) in pairs {
        budget.charge(1)?;
        if !a.equals(b, budget)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// For tests: without a budget.
impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other, &mut Budget::new(u64::MAX)).unwrap_or(false)
    }
}

fn compare_numbers(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Int(a), Value::Double(b)) => whole_and_double(i128::from(*a), *b),
        (Value::Uint(a), Value::Double(b)) => whole_and_double(i128::from(*a), *b),
        (Value::Double(a), Value::Int(b)) => whole_and_double(i128::from(*b), *a).map(Ordering::reverse),
        (Value::Double(a), Value::Uint(b)) => whole_and_double(i128::from(*b), *a).map(Ordering::reverse),
        _ => None,
    }
}

fn whole_and_double(whole: i128, double: f64) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    // Beyond all 64-bit numbers nothing is lost by the cast, which saturates.
    let floor = double.floor();
    match whole.cmp(&(floor as i128)) {
        Ordering::Equal if double > floor => Some(Ordering::Less),
        order => Some(order),
    }
}

/// The order of two values of one type, or of two numbers; `None` when there is none.
pub fn compare(a: &Value, b: &Value) -> Result<Option<Ordering>, EvalError> {
    Ok(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        (Value::Int(_) | Value::Uint(_) | Value::Double(_), Value::Int(_) | Value::Uint(_) | Value::Double(_)) => {
            compare_numbers(a, b)
        }
        _ => return Err(EvalError::NoSuchOverload),
    })
}
