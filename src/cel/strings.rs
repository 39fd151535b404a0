//! Functions on strings: cel-go's extension, in its second version.

use crate::env::{Env, Run, global, member};
use crate::error::EvalError;
use crate::eval::Budget;
use crate::standard::{display, double_text};
use crate::types::Type::{self, Dyn, Int, String as Text};
use crate::value::Value;

type Outcome = Result<Value, EvalError>;

fn text(value: &Value) -> Result<&str, EvalError> {
    value.as_str().ok_or(EvalError::NoSuchOverload)
}

fn int(value: Option<&Value>, default: i64) -> i64 {
    match value {
        Some(Value::Int(number)) => *number,
        _ => default,
    }
}

/// A position in characters, within the text or at its end.
fn place(at: i64, length: usize) -> Result<usize, EvalError> {
    let found = usize::try_from(at).ok().filter(|at| *at <= length);
    found.ok_or_else(|| EvalError::other(format!("index out of range: {at}")))
}

fn char_at(args: &[Value], _: &mut Budget) -> Outcome {
    let chars: Vec<char> = text(&args[0])?.chars().collect();
    let at = place(int(args.get(1), 0), chars.len())?;
    Ok(chars.get(at).map(char::to_string).unwrap_or_default().into())
}

fn index_of(args: &[Value], budget: &mut Budget) -> Outcome {
    let (chars, wanted): (Vec<char>, Vec<char>) =
        (text(&args[0])?.chars().collect(), text(&args[1])?.chars().collect());
    let from = place(int(args.get(2), 0), chars.len())?;
    budget.charge((chars.len() as u64).saturating_mul(1 + wanted.len() as u64) / 10)?;
    let found = (from..=chars.len()).find(|at| chars[*at..].starts_with(&wanted));
    Ok(Value::Int(found.map_or(-1, |at| at as i64)))
}

fn last_index_of(args: &[Value], budget: &mut Budget) -> Outcome {
    let (chars, wanted): (Vec<char>, Vec<char>) =
        (text(&args[0])?.chars().collect(), text(&args[1])?.chars().collect());
    let until = place(int(args.get(2), chars.len() as i64), chars.len())?;
    budget.charge((chars.len() as u64).saturating_mul(1 + wanted.len() as u64) / 10)?;
    let found = (0..=until).rev().find(|at| chars[*at..].starts_with(&wanted));
    Ok(Value::Int(found.map_or(-1, |at| at as i64)))
}

fn join(args: &[Value], budget: &mut Budget) -> Outcome {
    let Value::List(items) = &args[0] else { return Err(EvalError::NoSuchOverload) };
    let by = args.get(1).map_or(Ok(""), text)?;
    let mut out = String::new();
    for (at, item) in items.iter().enumerate() {
        budget.charge(1)?;
        budget.charge_bytes(item.size() + by.len() as u64)?;
        if at > 0 {
            out.push_str(by);
        }
        out.push_str(text(item)?);
    }
    Ok(out.into())
}

fn split(args: &[Value], budget: &mut Budget) -> Outcome {
    let (whole, by) = (text(&args[0])?, text(&args[1])?);
    let most = int(args.get(2), -1);
    budget.charge_bytes(2 * args[0].size())?;
    let parts: Vec<Value> = match usize::try_from(most) {
        Ok(0) => Vec::new(),
        Ok(1) => vec![whole.into()],
        // Go's split knows no empty strings at the ends.
        limit if by.is_empty() => {
            let chars: Vec<char> = whole.chars().collect();
            let limit = limit.unwrap_or(usize::MAX).min(chars.len());
            let mut parts: Vec<Value> =
                chars.iter().take(limit.saturating_sub(1)).map(|c| c.to_string().into()).collect();
            let rest: String = chars.iter().skip(limit.saturating_sub(1)).collect();
            if !chars.is_empty() {
                parts.push(rest.into());
            }
            parts
        }
        Ok(limit) => whole.splitn(limit, by).map(Value::from).collect(),
        Err(_) => whole.split(by).map(Value::from).collect(),
    };
    budget.charge(parts.len() as u64)?;
    Ok(Value::list(parts))
}

fn replace(args: &[Value], budget: &mut Budget) -> Outcome {
    let (whole, old, new) = (text(&args[0])?, text(&args[1])?, text(&args[2])?);
    let most = int(args.get(3), -1);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    // What is made may be much longer than what is given.
    let places = if old.is_empty() { whole.len() + 1 } else { whole.len() / old.len() };
    budget.charge_bytes(
        (whole.len() as u64).saturating_add((places.min(most) as u64).saturating_mul(new.len() as u64)),
    )?;
    Ok(whole.replacen(old, new, most).into())
}

fn substring(args: &[Value], _: &mut Budget) -> Outcome {
    let chars: Vec<char> = text(&args[0])?.chars().collect();
    let from = place(int(args.get(1), 0), chars.len())?;
    let until = place(int(args.get(2), chars.len() as i64), chars.len())?;
    if from > until {
        return Err(EvalError::other(format!("invalid substring range. start: {from}, end: {until}")));
    }
    Ok(chars[from..until].iter().collect::<String>().into())
}

fn quote(args: &[Value], _: &mut Budget) -> Outcome {
    let mut out = String::from("\"");
    for c in text(&args[0])?.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(out.into())
}

/// `"%s is %d".format([a, b])`
fn format(args: &[Value], budget: &mut Budget) -> Outcome {
    let (pattern, Value::List(values)) = (text(&args[0])?, &args[1]) else { return Err(EvalError::NoSuchOverload) };
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            let wanted = digits.parse::<usize>().ok().filter(|wanted| *wanted <= 100);
            precision = Some(wanted.ok_or_else(|| EvalError::other("could not parse formatting clause: precision"))?);
        }
        let clause = chars.next().ok_or_else(|| EvalError::other("unexpected end of string"))?;
        let value = values.next().ok_or_else(|| EvalError::other("index 0 out of range"))?;
        let shown = clause_text(clause, precision, value, budget)?;
        budget.charge_bytes(shown.len() as u64)?;
        out.push_str(&shown);
    }
    Ok(out.into())
}

fn clause_text(
    clause: char,
    precision: Option<usize>,
    value: &Value,
    budget: &mut Budget,
) -> Result<String, EvalError> {
    let bad = || {
        EvalError::other(format!(
            "error during formatting: %{clause} does not take values of type {}",
            value.type_name()
        ))
    };
    let double = || match value {
        Value::Double(number) => Ok(*number),
        Value::Int(number) => Ok(*number as f64),
        Value::Uint(number) => Ok(*number as f64),
        _ => Err(bad()),
    };
    let digits = precision.unwrap_or(6);
    Ok(match (clause, value) {
        ('s', _) => display(value, budget)?,
        ('d', Value::Int(number)) => number.to_string(),
        ('d', Value::Uint(number)) => number.to_string(),
        ('f', _) => {
            let number = double()?;
            if number.is_finite() { format!("{number:.digits$}") } else { double_text(number) }
        }
        ('e', _) => {
            let text = format!("{:.digits$e}", double()?);
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, size) = exponent.strip_prefix('-').map_or(('+', exponent), |size| ('-', size));
            format!("{mantissa}e{sign}{size:0>2}")
        }
        ('b', Value::Int(number)) => {
            let sign = if *number < 0 { "-" } else { "" };
            format!("{sign}{:b}", number.unsigned_abs())
        }
        ('b', Value::Uint(number)) => format!("{number:b}"),
        ('b', Value::Bool(flag)) => u8::from(*flag).to_string(),
        ('x' | 'X' | 'o', Value::Int(number)) => {
            let (sign, size) = (if *number < 0 { "-" } else { "" }, number.unsigned_abs());
            match clause {
                'x' => format!("{sign}{size:x}"),
                'X' => format!("{sign}{size:X}"),
                _ => format!("{sign}{size:o}"),
            }
        }
        ('x', Value::Uint(number)) => format!("{number:x}"),
        ('X', Value::Uint(number)) => format!("{number:X}"),
        ('o', Value::Uint(number)) => format!("{number:o}"),
        ('x' | 'X', Value::String(_) | Value::Bytes(_)) => {
            let bytes: &[u8] = match value {
                Value::String(text) => text.as_bytes(),
                Value::Bytes(bytes) => bytes,
                _ => &[],
            };
            let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            if clause == 'X' { hex.to_uppercase() } else { hex }
        }
        ('d' | 'b' | 'x' | 'X' | 'o', _) => return Err(bad()),
        _ => {
            return Err(EvalError::other(format!(
                "could not parse formatting clause: unrecognized formatting clause {clause:?}"
            )));
        }
    })
}

pub fn declare(env: &mut Env) {
    let list = Type::list(Text);
    let mut add = |name: &str, params: &[&[Type]], result: Type, run: Run| {
        env.function(name, params.iter().map(|params| member(params, result.clone(), run)).collect());
    };
    add("charAt", &[&[Text, Int]], Text, char_at);
    add("indexOf", &[&[Text, Text], &[Text, Text, Int]], Int, index_of);
    add("lastIndexOf", &[&[Text, Text], &[Text, Text, Int]], Int, last_index_of);
    add("lowerAscii", &[&[Text]], Text, |args, _| Ok(text(&args[0])?.to_ascii_lowercase().into()));
    add("upperAscii", &[&[Text]], Text, |args, _| Ok(text(&args[0])?.to_ascii_uppercase().into()));
    add("replace", &[&[Text, Text, Text], &[Text, Text, Text, Int]], Text, replace);
    add("split", &[&[Text, Text], &[Text, Text, Int]], list.clone(), split);
    add("substring", &[&[Text, Int], &[Text, Int, Int]], Text, substring);
    add("trim", &[&[Text]], Text, |args, _| Ok(text(&args[0])?.trim().into()));
    add("join", &[std::slice::from_ref(&list), &[list.clone(), Text]], Text, join);
    add("format", &[&[Text, Type::list(Dyn)]], Text, format);
    env.function("strings.quote", vec![global([Text], Text, quote)]);
}
