//! Label and field selectors: what they are written as, and what they match.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as LabelSelectorSpec;
use serde_json::{Map, Value};

use crate::field::{FieldError, Path};
use crate::names;

/// Why a selector is not one. The text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("{0}")]
    Syntax(String),
    #[error("unable to parse requirement: {0}")]
    Requirement(String),
    #[error("{0:?} is not a valid label selector operator")]
    Operator(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Equals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// A conjunction of requirements on labels. Without requirements it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    /// What an absent selector means in most specs.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// `a=b,c!=d,e in (f,g),!h`
    ///
    /// # Errors
    /// With upstream's text when `text` does not follow the grammar.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Parser { tokens: tokens(text), at: 0 }.parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// # Errors
    /// When an operator is unknown, or a key or value is malformed.
    pub fn from_spec(spec: &LabelSelectorSpec) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in spec.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key.clone(), Operator::In, vec![value.clone()])?);
        }
        for expression in spec.match_expressions.iter().flatten() {
            let operator = spec_operator(&expression.operator)?;
            let values = expression.values.clone().unwrap_or_default();
            requirements.push(Requirement::new(expression.key.clone(), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// The selector of a spec as it stands in an object; absent matches nothing.
    ///
    /// # Errors
    /// As [`Self::from_spec`], and when the value is not a selector at all.
    pub fn from_value(spec: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(spec) = spec.filter(|spec| !spec.is_null()) else { return Ok(Self::nothing()) };
        let spec: LabelSelectorSpec = serde::Deserialize::deserialize(spec)
            .map_err(|e: serde_json::Error| SelectorError::Syntax(e.to_string()))?;
        Self::from_spec(&spec)
    }

    /// The plain map of Services and ReplicationControllers.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let requirement = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.clone()],
        };
        Self { requirements: labels.into_iter().map(requirement).collect(), nothing: false }
    }

    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_with(|key| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str))
    }

    pub fn matches_map(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(get(&requirement.key)))
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// The value that `key` must have, where the selector leaves no choice.
    pub fn exact(&self, key: &str) -> Option<&str> {
        self.requirements.iter().find_map(|r| match (r.operator, r.values.as_slice()) {
            (Operator::Equals | Operator::In, [value]) if r.key == key => Some(value.as_str()),
            _ => None,
        })
    }
}

fn spec_operator(operator: &str) -> Result<Operator, SelectorError> {
    match operator {
        "In" => Ok(Operator::In),
        "NotIn" => Ok(Operator::NotIn),
        "Exists" => Ok(Operator::Exists),
        "DoesNotExist" => Ok(Operator::DoesNotExist),
        other => Err(SelectorError::Operator(other.to_owned())),
    }
}

impl Requirement {
    fn new(key: String, operator: Operator, values: Vec<String>) -> Result<Self, SelectorError> {
        let mut errors = Vec::new();
        let messages = names::is_qualified_name(&key);
        if !messages.is_empty() {
            errors.push(FieldError::invalid(&Path::root(), key.as_str(), messages.join("; ")));
        }
        let path = Path::new("values");
        let list = || Value::from(values.clone());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                errors.push(FieldError::invalid(
                    &path,
                    list(),
                    "for 'in', 'notin' operators, values set can't be empty",
                ));
            }
            Operator::Equals | Operator::NotEquals if values.len() != 1 => {
                errors.push(FieldError::invalid(&path, list(), "exact-match compatibility requires one single value"));
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                errors.push(FieldError::invalid(
                    &path,
                    list(),
                    "values set must be empty for exists and does not exist",
                ));
            }
            Operator::GreaterThan | Operator::LessThan => match values.as_slice() {
                [value] if value.parse::<i64>().is_err() => errors.push(FieldError::invalid(
                    &path.index(0),
                    value.as_str(),
                    "for 'Gt', 'Lt' operators, the value must be an integer",
                )),
                [_] => (),
                _ => errors.push(FieldError::invalid(
                    &path,
                    list(),
                    "for 'Gt', 'Lt' operators, exactly one value is required",
                )),
            },
            _ => (),
        }
        for (index, value) in values.iter().enumerate() {
            let messages = names::is_label_value(value);
            if !messages.is_empty() {
                errors.push(FieldError::invalid(&path.index(index), value.as_str(), messages.join("; ")));
            }
        }
        match errors.as_slice() {
            [] => Ok(Self { key, operator, values }),
            [one] => Err(SelectorError::Requirement(one.to_string())),
            many => {
                let texts: Vec<String> = many.iter().map(ToString::to_string).collect();
                Err(SelectorError::Requirement(format!("[{}]", texts.join(", "))))
            }
        }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|wanted| wanted == value);
        let numbers = || Some((value?.parse::<i64>().ok()?, self.values.first()?.parse::<i64>().ok()?));
        match self.operator {
            Operator::In | Operator::Equals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => numbers().is_some_and(|(value, bound)| value > bound),
            Operator::LessThan => numbers().is_some_and(|(value, bound)| value < bound),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let mut values = self.values.clone();
        values.sort();
        let values = values.join(",");
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// One word or symbol. `in` and `notin` are words; where they stand tells what they mean.
fn tokens(text: &str) -> Vec<&str> {
    const SPECIAL: &[char] = &['=', '!', '(', ')', ',', '>', '<'];
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if SPECIAL.contains(&first) {
            if rest.starts_with("==") || rest.starts_with("!=") { 2 } else { 1 }
        } else {
            rest.find(|c: char| SPECIAL.contains(&c) || c.is_whitespace()).unwrap_or(rest.len())
        };
        found.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    found
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && !token.starts_with(['=', '!', '(', ')', ',', '>', '<'])
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

impl<'a> Parser<'a> {
    /// The next token, empty at the end.
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).copied().unwrap_or_default()
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn parse(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        if self.tokens.is_empty() {
            return Ok(requirements);
        }
        loop {
            let token = self.peek();
            if !is_word(token) && token != "!" {
                return Err(SelectorError::Syntax(format!(
                    "found '{token}', expected: !, identifier, or 'end of string'"
                )));
            }
            requirements.push(self.requirement()?);
            match self.next() {
                "" => return Ok(requirements),
                "," => {
                    let token = self.peek();
                    if !is_word(token) && token != "!" {
                        let text = format!("found '{token}', expected: identifier after ','");
                        return Err(SelectorError::Syntax(text));
                    }
                }
                other => {
                    return Err(SelectorError::Syntax(format!("found '{other}', expected: ',' or 'end of string'")));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let refuse = |text: String| Err(SelectorError::Requirement(text));
        let absent = self.peek() == "!";
        if absent {
            self.at += 1;
        }
        let key = self.next();
        if !is_word(key) {
            return refuse(format!("found '{key}', expected: identifier"));
        }
        if absent {
            return Requirement::new(key.to_owned(), Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), "" | ",") {
            return Requirement::new(key.to_owned(), Operator::Exists, Vec::new());
        }
        let operator = match self.next() {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            "=" | "==" => Operator::Equals,
            "!=" => Operator::NotEquals,
            ">" => Operator::GreaterThan,
            "<" => Operator::LessThan,
            other => return refuse(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => match self.peek() {
                // `a=` and `a=,b` ask for the empty value.
                "" | "," => vec![String::new()],
                word if is_word(word) => vec![self.next().to_owned()],
                other => return refuse(format!("found '{other}', expected: identifier")),
            },
        };
        Requirement::new(key.to_owned(), operator, values)
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let refuse = |text: String| Err(SelectorError::Requirement(text));
        let open = self.next();
        if open != "(" {
            return refuse(format!("found '{open}' expected: '('"));
        }
        let mut values = Vec::new();
        loop {
            match self.peek() {
                word if is_word(word) => {
                    values.push(word.to_owned());
                    self.at += 1;
                }
                // An empty place between commas is the empty value.
                "," | ")" => values.push(String::new()),
                other => return refuse(format!("found '{other}', expected: ',', ')' or identifier")),
            }
            match self.next() {
                "," => (),
                ")" => break,
                other => return refuse(format!("found '{other}', expected: ',' or ')'")),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

/// A conjunction of `field=value` and `field!=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    pub field: String,
    /// `=`; otherwise `!=`.
    pub equal: bool,
    pub value: String,
}

impl FieldSelector {
    /// # Errors
    /// With upstream's text when `text` does not follow the grammar.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for term in split_terms(text).into_iter().filter(|term| !term.is_empty()) {
            let not_understood =
                || SelectorError::Syntax(format!("invalid selector: '{text}'; can't understand '{term}'"));
            let (field, equal, value) = split_term(term).ok_or_else(not_understood)?;
            let value = unescape(value)?;
            requirements.push(FieldRequirement { field: field.to_owned(), equal, value });
        }
        Ok(Self { requirements })
    }

    pub fn requirements(&self) -> impl Iterator<Item = &FieldRequirement> {
        self.requirements.iter()
    }

    /// A field that `get` does not know counts as empty.
    pub fn matches(&self, get: impl Fn(&str) -> Option<String>) -> bool {
        self.requirements.iter().all(|r| (get(&r.field).unwrap_or_default() == r.value) == r.equal)
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that `field` must have, where the selector leaves no choice.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equal && r.field == field).map(|r| r.value.as_str())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => (),
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    term.char_indices().find_map(|(at, _)| {
        let rest = &term[at..];
        let (operator, equal) =
            [("!=", false), ("==", true), ("=", true)].into_iter().find(|(o, _)| rest.starts_with(o))?;
        Some((&term[..at], equal, &rest[operator.len()..]))
    })
}

fn unescape(text: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                Some(other) => {
                    let text = format!("invalid field selector: invalid escape sequence: \\{other}");
                    return Err(SelectorError::Syntax(text));
                }
                None => {
                    return Err(SelectorError::Syntax(
                        "invalid field selector: unterminated escape sequence: \\".into(),
                    ));
                }
            },
            ',' | '=' => {
                return Err(SelectorError::Syntax(format!(
                    "invalid field selector: unescaped character in value: {c}"
                )));
            }
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(selector: &str, labels: &Value) -> bool {
        LabelSelector::parse(selector).unwrap().matches(labels.as_object())
    }

    #[test]
    fn label_selectors_match() {
        let labels = json!({"app": "web", "tier": "", "n": "5", "in": "notin"});
        for yes in [
            "",
            "app",
            "app=web",
            "app==web",
            "app in (web, db)",
            "app!=db",
            "x!=1",
            "!x",
            "x notin (a)",
            "tier=",
            "tier in (,a)",
            "n>4",
            "n<6",
            "app=web,!x",
            "in=notin",
            "in in (notin)",
            " app = web ",
            "tier==,app",
        ] {
            assert!(matches(yes, &labels), "{yes}");
        }
        for no in ["x", "app=db", "app!=web", "!app", "app notin (web)", "n>5", "x in (a)", "app,x", "tier=a"] {
            assert!(!matches(no, &labels), "{no}");
        }
        assert!(!LabelSelector::nothing().matches(None));
        assert!(LabelSelector::everything().matches(None));
    }

    #[test]
    fn malformed_label_selectors_are_refused_with_upstreams_text() {
        let text = |selector: &str| LabelSelector::parse(selector).unwrap_err().to_string();
        assert_eq!(text("a,"), "found '', expected: identifier after ','");
        assert_eq!(text("=a"), "found '=', expected: !, identifier, or 'end of string'");
        assert_eq!(text("a b"), "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt");
        assert_eq!(text("a=b c"), "found 'c', expected: ',' or 'end of string'");
        assert_eq!(text("a in b"), "unable to parse requirement: found 'b' expected: '('");
        assert!(text("a in (b").starts_with("unable to parse requirement: found '', expected: ',' or ')'"));
        assert!(text("a/b/c").starts_with("unable to parse requirement: <nil>: Invalid value: \"a/b/c\": a qualified"));
        assert!(
            text("a=b/c").starts_with("unable to parse requirement: values[0]: Invalid value: \"b/c\": a valid label")
        );
    }

    #[test]
    fn selectors_of_specs() {
        let spec = json!({"matchLabels": {"b": "2"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}]});
        let selector = LabelSelector::from_value(Some(&spec)).unwrap();
        assert_eq!(selector.to_string(), "a in (x,y),b in (2)");
        assert_eq!(selector.exact("b"), Some("2"));
        assert!(LabelSelector::from_value(Some(&json!({}))).unwrap().is_empty());
        assert!(LabelSelector::from_value(None).unwrap().is_nothing());
        let odd = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
        let error = LabelSelector::from_value(Some(&odd)).unwrap_err();
        assert_eq!(error.to_string(), "\"Near\" is not a valid label selector operator");
    }

    #[test]
    fn field_selectors() {
        let selector = FieldSelector::parse(r"spec.nodeName=a,status.phase!=Failed,x==b\,c").unwrap();
        let get = |field: &str| match field {
            "spec.nodeName" => Some("a".to_owned()),
            "x" => Some("b,c".to_owned()),
            _ => None,
        };
        assert!(selector.matches(get));
        assert_eq!(selector.exact("spec.nodeName"), Some("a"));
        assert!(FieldSelector::parse("").unwrap().is_empty());
        let error = FieldSelector::parse("a=b,c").unwrap_err();
        assert_eq!(error.to_string(), "invalid selector: 'a=b,c'; can't understand 'c'");
        assert!(FieldSelector::parse(r"a=\x").is_err());
    }
}
