//! JSONPath as kubectl and printer columns have it: `.spec.ports[*].name`, `.status.conditions[?(@.type=="Ready")].status`.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::Value;

/// Longer paths are refused.
pub const LENGTH_MAX: usize = 4096;
/// Steps of one path, filters included.
const STEPS_MAX: usize = 128;
/// Results of one path; more are not looked for.
const RESULTS_MAX: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonPathError {
    #[error("path is longer than {LENGTH_MAX} bytes")]
    TooLong,
    #[error("path has more than {STEPS_MAX} steps")]
    TooManySteps,
    #[error("{0}")]
    Syntax(String),
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// `[*]`, `.*`
    Every,
    /// `..`: this value and all below it.
    Deep,
    /// `[1:3]`, `[-1]`
    Slice {
        start: Option<i64>,
        end: Option<i64>,
        step: i64,
    },
    /// `[0,2]`, `['a','b']`
    Union(Vec<Step>),
    Filter {
        left: Operand,
        operator: Operator,
        right: Operand,
    },
    /// `[?(@.a)]`
    Exists(JsonPath),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(JsonPath),
    Value(Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// The value at a path of plain names, without the leading dot: `spec.replicas`.
pub fn select_simple<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(object, |value, name| value.get(name))
}

/// Whether a path is made of plain names only: `.spec.replicas`.
pub fn simple(path: &str) -> bool {
    let name = |name: &str| !name.is_empty() && !name.contains(['[', ']', '(', ')', '*', '\'', '"', '?', '@']);
    path.len() <= LENGTH_MAX && path.strip_prefix('.').is_some_and(|rest| rest.split('.').all(name))
}

impl JsonPath {
    /// # Errors
    /// When it is no path, or a longer one than is good.
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        if text.len() > LENGTH_MAX {
            return Err(JsonPathError::TooLong);
        }
        let mut parser = Parser { chars: text.chars().peekable(), steps: 0 };
        let steps = parser.path(false)?;
        match parser.chars.next() {
            None => Ok(Self(steps)),
            Some(c) => Err(JsonPathError::Syntax(format!("unexpected {c:?}"))),
        }
    }

    /// All values at the path, in order. What is missing is left out.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let mut found = vec![value];
        for step in &self.0 {
            let mut next = Vec::new();
            for value in found {
                step.apply(value, &mut next);
            }
            found = next;
        }
        found
    }
}

impl Step {
    fn apply<'v>(&self, value: &'v Value, out: &mut Vec<&'v Value>) {
        if out.len() >= RESULTS_MAX {
            return;
        }
        match self {
            Self::Field(name) => out.extend(value.get(name)),
            Self::Every => out.extend(children(value)),
            Self::Deep => deep(value, out),
            Self::Slice { start, end, step } => {
                let Some(list) = value.as_array() else { return };
                let length = list.len() as i64;
                let place = |index: i64| if index < 0 { index + length } else { index };
                let first = place(start.unwrap_or(0)).max(0);
                let last = place(end.unwrap_or(length)).min(length);
                let mut at = first;
                while at < last {
                    out.push(&list[at as usize]);
                    at += step;
                }
            }
            Self::Union(steps) => steps.iter().for_each(|step| step.apply(value, out)),
            Self::Exists(path) => out.extend(children(value).filter(|child| !path.find(child).is_empty())),
            Self::Filter { left, operator, right } => {
                out.extend(children(value).filter(|child| operator.holds(left.of(child), right.of(child))));
            }
        }
        out.truncate(RESULTS_MAX);
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(list) => Box::new(list.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

fn deep<'v>(value: &'v Value, out: &mut Vec<&'v Value>) {
    if out.len() >= RESULTS_MAX {
        return;
    }
    out.push(value);
    for child in children(value) {
        deep(child, out);
    }
}

impl Operand {
    fn of<'v>(&'v self, value: &'v Value) -> Option<&'v Value> {
        match self {
            Self::Path(path) => path.find(value).first().copied(),
            Self::Value(value) => Some(value),
        }
    }
}

impl Operator {
    fn holds(self, left: Option<&Value>, right: Option<&Value>) -> bool {
        let (Some(left), Some(right)) = (left, right) else { return false };
        let order = match (left, right) {
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            _ => None,
        };
        match self {
            Self::Equal => left == right || order == Some(std::cmp::Ordering::Equal),
            Self::NotEqual => left != right && order != Some(std::cmp::Ordering::Equal),
            Self::Less => order.is_some_and(|order| order.is_lt()),
            Self::LessOrEqual => order.is_some_and(|order| order.is_le()),
            Self::Greater => order.is_some_and(|order| order.is_gt()),
            Self::GreaterOrEqual => order.is_some_and(|order| order.is_ge()),
        }
    }
}

struct Parser<'t> {
    chars: Peekable<Chars<'t>>,
    steps: usize,
}

impl Parser<'_> {
    fn fail<T>(what: impl Into<String>) -> Result<T, JsonPathError> {
        Err(JsonPathError::Syntax(what.into()))
    }

    fn next_is(&mut self, wanted: char) -> bool {
        self.chars.next_if_eq(&wanted).is_some()
    }

    fn expect(&mut self, wanted: char) -> Result<(), JsonPathError> {
        if self.next_is(wanted) { Ok(()) } else { Self::fail(format!("{wanted:?} is missing")) }
    }

    fn spaces(&mut self) {
        while self.chars.next_if_eq(&' ').is_some() {}
    }

    /// In a filter a path ends at what cannot be part of one.
    fn path(&mut self, in_filter: bool) -> Result<Vec<Step>, JsonPathError> {
        let mut steps = Vec::new();
        loop {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err(JsonPathError::TooManySteps);
            }
            match self.chars.peek() {
                Some('.') => {
                    self.chars.next();
                    if self.next_is('.') {
                        steps.push(Step::Deep);
                    }
                    match self.chars.peek() {
                        Some('[') => {}
                        // `.` alone is the object.
                        None => return Ok(steps),
                        Some(_) => steps.push(self.field()?),
                    }
                }
                Some('[') => {
                    self.chars.next();
                    steps.push(self.bracket()?);
                }
                Some('@' | '$') if steps.is_empty() => {
                    self.chars.next();
                }
                Some(_) if !in_filter && steps.is_empty() => steps.push(self.field()?),
                _ => return Ok(steps),
            }
        }
    }

    fn field(&mut self) -> Result<Step, JsonPathError> {
        let mut name = String::new();
        while let Some(c) = self.chars.peek().copied() {
            match c {
                '\\' => {
                    self.chars.next();
                    match self.chars.next() {
                        Some(c) => name.push(c),
                        None => return Self::fail("path ends in a backslash"),
                    }
                }
                '.' | '[' | ']' | ' ' | ')' | '=' | '!' | '<' | '>' | ',' | '(' => break,
                c => {
                    name.push(c);
                    self.chars.next();
                }
            }
        }
        match name.as_str() {
            "" => Self::fail("a name is missing"),
            "*" => Ok(Step::Every),
            _ => Ok(Step::Field(name)),
        }
    }

    fn bracket(&mut self) -> Result<Step, JsonPathError> {
        self.spaces();
        if self.next_is('?') {
            self.expect('(')?;
            let filter = self.filter()?;
            self.expect(']')?;
            return Ok(filter);
        }
        let mut members = Vec::new();
        loop {
            self.spaces();
            members.push(self.member()?);
            self.spaces();
            if members.len() > STEPS_MAX {
                return Err(JsonPathError::TooManySteps);
            }
            if self.next_is(',') {
                continue;
            }
            self.expect(']')?;
            break;
        }
        Ok(if members.len() == 1 { members.remove(0) } else { Step::Union(members) })
    }

    fn member(&mut self) -> Result<Step, JsonPathError> {
        match self.chars.peek() {
            Some('*') => {
                self.chars.next();
                Ok(Step::Every)
            }
            Some('\'' | '"') => Ok(Step::Field(self.quoted()?)),
            _ => {
                let start = self.integer()?;
                if !self.next_is(':') {
                    let Some(index) = start else { return Self::fail("an index is missing") };
                    let end = if index == -1 { None } else { Some(index + 1) };
                    return Ok(Step::Slice { start: Some(index), end, step: 1 });
                }
                let end = self.integer()?;
                let step = if self.next_is(':') { self.integer()?.unwrap_or(1) } else { 1 };
                if step < 1 { Self::fail("step must be > 0") } else { Ok(Step::Slice { start, end, step }) }
            }
        }
    }

    fn integer(&mut self) -> Result<Option<i64>, JsonPathError> {
        let mut text = String::new();
        while let Some(c) = self.chars.next_if(|c| c.is_ascii_digit() || *c == '-') {
            text.push(c);
        }
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse::<i32>() {
            Ok(number) => Ok(Some(number.into())),
            Err(_) => Self::fail(format!("{text:?} is no index")),
        }
    }

    fn quoted(&mut self) -> Result<String, JsonPathError> {
        let Some(quote) = self.chars.next() else { return Self::fail("a text is missing") };
        let mut text = String::new();
        loop {
            match self.chars.next() {
                None => return Self::fail("unterminated quoted string"),
                Some('\\') => text.extend(self.chars.next()),
                Some(c) if c == quote => return Ok(text),
                Some(c) => text.push(c),
            }
        }
    }

    fn filter(&mut self) -> Result<Step, JsonPathError> {
        self.spaces();
        let left = self.operand()?;
        self.spaces();
        let operator = match self.chars.next() {
            Some(')') => {
                return match left {
                    Operand::Path(path) => Ok(Step::Exists(path)),
                    Operand::Value(_) => Self::fail("a filter needs a path"),
                };
            }
            Some('=') => {
                self.expect('=')?;
                Operator::Equal
            }
            Some('!') => {
                self.expect('=')?;
                Operator::NotEqual
            }
            Some('<') if self.next_is('=') => Operator::LessOrEqual,
            Some('<') => Operator::Less,
            Some('>') if self.next_is('=') => Operator::GreaterOrEqual,
            Some('>') => Operator::Greater,
            _ => return Self::fail("unterminated filter"),
        };
        self.spaces();
        let right = self.operand()?;
        self.spaces();
        self.expect(')')?;
        Ok(Step::Filter { left, operator, right })
    }

    fn operand(&mut self) -> Result<Operand, JsonPathError> {
        match self.chars.peek() {
            Some('@' | '.') => Ok(Operand::Path(JsonPath(self.path(true)?))),
            Some('\'' | '"') => Ok(Operand::Value(self.quoted()?.into())),
            _ => {
                let mut text = String::new();
                while let Some(c) = self.chars.next_if(|c| !matches!(c, ' ' | ')' | '=' | '!' | '<' | '>')) {
                    text.push(c);
                }
                match serde_json::from_str(&text) {
                    Ok(value @ (Value::Bool(_) | Value::Number(_) | Value::Null)) => Ok(Operand::Value(value)),
                    _ => Self::fail(format!("unrecognized {text:?} in a filter")),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_find_what_kubectl_finds() {
        let object = json!({"spec": {"a.b": 1, "ports": [{"name": "x", "port": 80}, {"name": "y", "port": 443}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        let table = [
            (".spec.ports[0].name", json!(["x"])),
            (".spec.ports[-1].name", json!(["y"])),
            (".spec.ports[*].port", json!([80, 443])),
            (".spec.ports[0:1].port", json!([80])),
            (".spec.ports[0,1].port", json!([80, 443])),
            (".spec['a.b']", json!([1])),
            (".spec.a\\.b", json!([1])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type == 'Other')].status", json!(["False"])),
            (".spec.ports[?(@.port > 100)].name", json!(["y"])),
            (".spec.ports[?(@.port)].name", json!(["x", "y"])),
            ("..name", json!(["x", "y"])),
            (".spec.missing.deep", json!([])),
        ];
        for (path, expected) in table {
            let parsed = JsonPath::parse(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(json!(parsed.find(&object)), expected, "{path}");
        }
        for bad in [".a[", ".a[?(@.b", ".a[x]", ".a[?(@.b=1)]", &".a".repeat(3000)] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
        assert!(simple(".spec.a") && !simple("spec.a") && !simple(".spec[0]") && !simple(".spec..a"));
    }
}
