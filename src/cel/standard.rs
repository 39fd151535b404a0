//! The standard functions and operators.

use std::sync::Arc;

use jiff::Timestamp;

use crate::env::{Env, Overload, Run, global, member};
use crate::error::EvalError;
use crate::eval::Budget;
use crate::time::{duration_text, in_zone, parse_duration, parse_timestamp};
use crate::types::Type::{self, Bool, Bytes, Double, Duration, Dyn, Int, Param, String as Text, Uint};
use crate::value::{Key, Value};

type Outcome = Result<Value, EvalError>;

/// Names that stand for types.
pub const TYPES: [&str; 12] = [
    "bool",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
];

/// For operators, which evaluation knows itself: here they are for the checker.
fn operator(_: &[Value], _: &mut Budget) -> Outcome {
    Err(EvalError::NoSuchOverload)
}

fn op(params: impl AsRef<[Type]>, result: Type) -> Overload {
    global(params, result, operator)
}

pub fn declare(env: &mut Env) {
    operators(env);
    conversions(env);
    sizes_and_texts(env);
    times(env);
    optionals(env);
}

fn operators(env: &mut Env) {
    let (a, b) = (Param("A"), Param("B"));
    let time = Type::Timestamp;
    env.function("!_", vec![op([Bool], Bool)]);
    env.function("-_", vec![op([Int], Int), op([Double], Double)]);
    for name in ["_&&_", "_||_"] {
        env.function(name, vec![op([Bool, Bool], Bool)]);
    }
    env.function("_?_:_", vec![op([Bool, a.clone(), a.clone()], a.clone())]);
    for name in ["_==_", "_!=_"] {
        env.function(name, vec![op([a.clone(), a.clone()], Bool)]);
    }
    let numbers = [Int, Uint, Double];
    for name in ["_<_", "_<=_", "_>_", "_>=_"] {
        let mut all: Vec<Overload> =
            [Bool, Text, Bytes, time.clone(), Duration].iter().map(|ty| op([ty.clone(), ty.clone()], Bool)).collect();
        for left in &numbers {
            all.extend(numbers.iter().map(|right| op([left.clone(), right.clone()], Bool)));
        }
        env.function(name, all);
    }
    let same =
        |types: &[Type]| -> Vec<Overload> { types.iter().map(|ty| op([ty.clone(), ty.clone()], ty.clone())).collect() };
    let list = Type::list(a.clone());
    let mut sums = same(&[Int, Uint, Double, Text, Bytes, Duration, list.clone()]);
    sums.push(op([time.clone(), Duration], time.clone()));
    sums.push(op([Duration, time.clone()], time.clone()));
    env.function("_+_", sums);
    let mut differences = same(&[Int, Uint, Double, Duration]);
    differences.push(op([time.clone(), time.clone()], Duration));
    differences.push(op([time.clone(), Duration], time));
    env.function("_-_", differences);
    env.function("_*_", same(&numbers));
    env.function("_/_", same(&numbers));
    env.function("_%_", same(&[Int, Uint]));
    env.function("@in", vec![op([a.clone(), list], Bool), op([a.clone(), Type::map(a, b)], Bool)]);
}

fn conversions(env: &mut Env) {
    env.function("type", vec![global([Param("A")], Type::Type, |args, _| Ok(Value::Type(args[0].type_name().into())))]);
    env.function("dyn", vec![global([Param("A")], Dyn, |args, _| Ok(args[0].clone()))]);
    let each = |from: &[Type], result: Type, run: Run| -> Vec<Overload> {
        from.iter().map(|ty| global(std::slice::from_ref(ty), result.clone(), run)).collect()
    };
    env.function("int", each(&[Int, Uint, Double, Text, Type::Timestamp, Duration], Int, to_int));
    env.function("uint", each(&[Int, Uint, Double, Text], Uint, to_uint));
    env.function("double", each(&[Int, Uint, Double, Text], Double, to_double));
    env.function("bool", each(&[Bool, Text], Bool, to_bool));
    let printed = [Bool, Int, Uint, Double, Text, Bytes, Type::Timestamp, Duration];
    env.function("string", each(&printed, Text, to_string));
    env.function("bytes", each(&[Bytes, Text], Bytes, to_bytes));
    env.function("timestamp", each(&[Int, Text, Type::Timestamp], Type::Timestamp, to_timestamp));
    env.function("duration", each(&[Int, Text, Duration], Duration, to_duration));
}

fn bad_conversion(value: &Value, to: &str) -> EvalError {
    EvalError::other(format!("type conversion error from '{}' to '{to}'", value.type_name()))
}

fn range() -> EvalError {
    EvalError::other("integer overflow")
}

fn to_int(args: &[Value], _: &mut Budget) -> Outcome {
    Ok(Value::Int(match &args[0] {
        Value::Int(number) => *number,
        Value::Uint(number) => i64::try_from(*number).map_err(|_| range())?,
        Value::Double(number) if number.is_finite() && number.abs() < 9.223_372_036_854_775e18 => *number as i64,
        Value::Double(_) => return Err(range()),
        Value::String(text) => text.parse().map_err(|_| bad_conversion(&args[0], "int"))?,
        Value::Timestamp(time) => time.as_second(),
        Value::Duration(duration) => i64::try_from(duration.as_nanos()).map_err(|_| range())?,
        other => return Err(bad_conversion(other, "int")),
    }))
}

fn to_uint(args: &[Value], _: &mut Budget) -> Outcome {
    Ok(Value::Uint(match &args[0] {
        Value::Uint(number) => *number,
        Value::Int(number) => u64::try_from(*number).map_err(|_| range())?,
        Value::Double(number) if *number >= 0.0 && *number < 1.844_674_407_370_955e19 => *number as u64,
        Value::Double(_) => return Err(range()),
        Value::String(text) => text.parse().map_err(|_| bad_conversion(&args[0], "uint"))?,
        other => return Err(bad_conversion(other, "uint")),
    }))
}

fn to_double(args: &[Value], _: &mut Budget) -> Outcome {
    Ok(Value::Double(match &args[0] {
        Value::Double(number) => *number,
        Value::Int(number) => *number as f64,
        Value::Uint(number) => *number as f64,
        Value::String(text) => text.parse().map_err(|_| bad_conversion(&args[0], "double"))?,
        other => return Err(bad_conversion(other, "double")),
    }))
}

fn to_bool(args: &[Value], _: &mut Budget) -> Outcome {
    match &args[0] {
        Value::Bool(flag) => Ok((*flag).into()),
        Value::String(text) => match &**text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true.into()),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false.into()),
            _ => Err(bad_conversion(&args[0], "bool")),
        },
        other => Err(bad_conversion(other, "bool")),
    }
}

/// A number as Go prints it: an exponent for very large and very small ones.
pub fn double_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() };
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e21).contains(&size) {
        let text = format!("{number:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    number.to_string()
}

fn to_string(args: &[Value], _: &mut Budget) -> Outcome {
    Ok(match &args[0] {
        text @ Value::String(_) => text.clone(),
        Value::Bool(flag) => flag.to_string().into(),
        Value::Int(number) => number.to_string().into(),
        Value::Uint(number) => number.to_string().into(),
        Value::Double(number) => double_text(*number).into(),
        Value::Bytes(bytes) => {
            let text = std::str::from_utf8(bytes);
            text.map_err(|_| EvalError::other("invalid UTF-8 in bytes, cannot convert to string"))?.into()
        }
        Value::Timestamp(time) => time.to_string().into(),
        Value::Duration(duration) => duration_text(*duration).into(),
        other => return Err(bad_conversion(other, "string")),
    })
}

fn to_bytes(args: &[Value], _: &mut Budget) -> Outcome {
    match &args[0] {
        Value::String(text) => Ok(Value::Bytes(text.as_bytes().into())),
        bytes => Ok(bytes.clone()),
    }
}

fn to_timestamp(args: &[Value], _: &mut Budget) -> Outcome {
    match &args[0] {
        Value::String(text) => parse_timestamp(text).map(Value::Timestamp),
        Value::Int(seconds) => {
            let time = Timestamp::from_second(*seconds);
            time.map(Value::Timestamp).map_err(|_| EvalError::other("timestamp overflow"))
        }
        time => Ok(time.clone()),
    }
}

fn to_duration(args: &[Value], _: &mut Budget) -> Outcome {
    match &args[0] {
        Value::String(text) => parse_duration(text).map(Value::Duration),
        Value::Int(nanos) => Ok(Value::Duration(jiff::SignedDuration::from_nanos(*nanos))),
        duration => Ok(duration.clone()),
    }
}

fn size(args: &[Value], budget: &mut Budget) -> Outcome {
    let length = match &args[0] {
        Value::String(text) => {
            budget.charge_bytes(args[0].size())?;
            text.chars().count()
        }
        Value::Bytes(bytes) => bytes.len(),
        Value::List(items) => items.len(),
        Value::Map(map) => map.len(),
        _ => return Err(EvalError::NoSuchOverload),
    };
    i64::try_from(length).map(Value::Int).map_err(|_| range())
}

/// Two strings.
fn texts(args: &[Value]) -> Result<(&str, &str), EvalError> {
    match args {
        [Value::String(a), Value::String(b)] => Ok((a, b)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// A regular expression, with bounds on what compiling it takes. What matching costs is charged here.
pub fn regex(pattern: &str, text: &str, budget: &mut Budget) -> Result<regex::Regex, EvalError> {
    let steps = (text.len() as u64 / 10 + 1).saturating_mul(pattern.len() as u64 / 4 + 1);
    budget.charge(steps)?;
    regex::RegexBuilder::new(pattern)
        .size_limit(1 << 20)
        .dfa_size_limit(1 << 20)
        .nest_limit(100)
        .build()
        .map_err(|error| EvalError::other(format!("error parsing regexp: {error}")))
}

fn sizes_and_texts(env: &mut Env) {
    let sized = [Text, Bytes, Type::list(Param("A")), Type::map(Param("A"), Param("B"))];
    let mut sizes = Vec::new();
    for ty in sized {
        sizes.push(global([ty.clone()], Int, size));
        sizes.push(member([ty], Int, size));
    }
    env.function("size", sizes);
    let two = [Text, Text];
    let both = |run: Run| vec![member(&two, Bool, run)];
    env.function("contains", both(|args, _| texts(args).map(|(text, part)| text.contains(part).into())));
    env.function("startsWith", both(|args, _| texts(args).map(|(text, part)| text.starts_with(part).into())));
    env.function("endsWith", both(|args, _| texts(args).map(|(text, part)| text.ends_with(part).into())));
    let matches: Run = |args, budget| {
        let (text, pattern) = texts(args)?;
        Ok(regex(pattern, text, budget)?.is_match(text).into())
    };
    env.function("matches", vec![member(&two, Bool, matches), global(&two, Bool, matches)]);
}

/// A part of a point in time, in the zone of the second argument.
fn part(args: &[Value], get: impl Fn(&jiff::Zoned) -> i64) -> Outcome {
    let zone = args.get(1).and_then(Value::as_str);
    match &args[0] {
        Value::Timestamp(time) => Ok(Value::Int(get(&in_zone(*time, zone)?))),
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// The same of a time or a duration, which counts in whole units.
fn part_or_count(args: &[Value], get: impl Fn(&jiff::Zoned) -> i64, unit: i128, of_second: bool) -> Outcome {
    let Value::Duration(duration) = &args[0] else { return part(args, get) };
    let nanos = duration.as_nanos();
    let count = if of_second { nanos / unit % 1000 } else { nanos / unit };
    i64::try_from(count).map(Value::Int).map_err(|_| range())
}

fn times(env: &mut Env) {
    let time = Type::Timestamp;
    let mut declare = |name: &str, durations: bool, run: Run| {
        let mut all = vec![member([time.clone()], Int, run), member([time.clone(), Text], Int, run)];
        if durations {
            all.push(member([Duration], Int, run));
        }
        env.function(name, all);
    };
    declare("getFullYear", false, |args, _| part(args, |time| time.year().into()));
    declare("getMonth", false, |args, _| part(args, |time| i64::from(time.month()) - 1));
    declare("getDayOfYear", false, |args, _| part(args, |time| i64::from(time.day_of_year()) - 1));
    declare("getDayOfMonth", false, |args, _| part(args, |time| i64::from(time.day()) - 1));
    declare("getDate", false, |args, _| part(args, |time| time.day().into()));
    declare("getDayOfWeek", false, |args, _| part(args, |time| time.weekday().to_sunday_zero_offset().into()));
    declare("getHours", true, |args, _| part_or_count(args, |time| time.hour().into(), 3_600_000_000_000, false));
    declare("getMinutes", true, |args, _| part_or_count(args, |time| time.minute().into(), 60_000_000_000, false));
    declare("getSeconds", true, |args, _| part_or_count(args, |time| time.second().into(), 1_000_000_000, false));
    declare("getMilliseconds", true, |args, _| part_or_count(args, |time| time.millisecond().into(), 1_000_000, true));
}

/// What makes an optional value empty.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Optional(None) => true,
        Value::Bool(flag) => !flag,
        Value::Int(number) => *number == 0,
        Value::Uint(number) => *number == 0,
        Value::Double(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(items) => items.is_empty(),
        Value::Map(map) => map.is_empty(),
        Value::Struct(_, fields) => fields.is_empty(),
        Value::Duration(duration) => duration.is_zero(),
        Value::Timestamp(time) => time.as_second() == 0 && time.subsec_nanosecond() == 0,
        Value::Optional(Some(_)) | Value::Type(_) | Value::Opaque(_) => false,
    }
}

fn optionals(env: &mut Env) {
    let a = Param("A");
    let optional = Type::optional(a.clone());
    env.function(
        "optional.of",
        vec![global([a.clone()], optional.clone(), |args, _| Ok(Value::some(args[0].clone())))],
    );
    env.function(
        "optional.ofNonZeroValue",
        vec![global([a.clone()], optional.clone(), |args, _| {
            Ok(if is_zero(&args[0]) { Value::Optional(None) } else { Value::some(args[0].clone()) })
        })],
    );
    env.function("optional.none", vec![global([], optional.clone(), |_, _| Ok(Value::Optional(None)))]);
    env.function(
        "hasValue",
        vec![member([optional.clone()], Bool, |args, _| Ok((!matches!(args[0], Value::Optional(None))).into()))],
    );
    env.function(
        "value",
        vec![member([optional.clone()], a.clone(), |args, _| match &args[0] {
            Value::Optional(Some(value)) => Ok((**value).clone()),
            _ => Err(EvalError::other("optional.none() dereference")),
        })],
    );
    // Evaluated in place, since they do not always look at their argument.
    env.function("or", vec![member([optional.clone(), optional.clone()], optional.clone(), operator)]);
    env.function("orValue", vec![member([optional, a.clone()], a, operator)]);
}

/// A value as messages and `format` print it.
pub fn display(value: &Value, budget: &mut Budget) -> Result<String, EvalError> {
    budget.charge(1)?;
    budget.charge_bytes(value.size())?;
    Ok(match value {
        Value::Null => "null".to_owned(),
        Value::List(items) => {
            let mut shown = Vec::with_capacity(items.len());
            for item in items.iter() {
                shown.push(display(item, budget)?);
            }
            format!("[{}]", shown.join(", "))
        }
        Value::Map(map) => {
            let mut shown = Vec::with_capacity(map.len());
            for (key, value) in map.iter() {
                shown.push(format!("{}: {}", display(&Key::value(key), budget)?, display(value, budget)?));
            }
            format!("{{{}}}", shown.join(", "))
        }
        Value::Type(name) => name.to_string(),
        Value::Optional(_) | Value::Struct(..) | Value::Opaque(_) => {
            return Err(EvalError::other(format!("could not convert argument '{}' to string", value.type_name())));
        }
        other => match to_string(std::slice::from_ref(other), budget)? {
            Value::String(text) => text.to_string(),
            _ => Arc::<str>::from("").to_string(),
        },
    })
}
