//! A custom object against its schema, in upstream's words.
//!
//! On an update, what did not change is not looked at again (ratcheting, KEP-4008): a schema that has become stricter
//! does not stand in the way of changes elsewhere in the object.

use serde_json::Value;

use super::{Custom, Props, format, lists, scale};
use crate::field::{ErrorKind, FieldError, FieldErrors, Path};
use crate::validation;

/// A new object.
pub fn validate(custom: &Custom, object: &Value) -> FieldErrors {
    check(custom, object, None)
}

/// A changed object.
pub fn validate_update(custom: &Custom, new: &Value, old: &Value) -> FieldErrors {
    check(custom, new, Some(old))
}

fn check(custom: &Custom, new: &Value, old: Option<&Value>) -> FieldErrors {
    let props = &custom.compiled().props;
    let mut errors = against(props, new, old, &Path::root());
    if let Some(paths) = &custom.version().scale {
        errors.extend(scale::validate(new, paths));
    }
    embedded(new, props, &Path::root(), true, &mut errors);
    // Lists that were wrong before may stay so.
    if old.is_none_or(|old| lists::duplicates(old, props, &Path::root()).is_empty()) {
        errors.extend(lists::duplicates(new, props, &Path::root()));
    }
    errors
}

/// A value against a schema. `old` is what it was before, where that can be told.
pub(crate) fn against(props: &Props, value: &Value, old: Option<&Value>, path: &Path) -> FieldErrors {
    let mut errors = FieldErrors::new();
    Check { errors: &mut errors }.value(props, value, old, path);
    errors
}

struct Check<'e> {
    errors: &'e mut FieldErrors,
}

impl Check<'_> {
    fn invalid(&mut self, path: &Path, value: impl Into<Value>, what: &str) {
        let detail = format!("{} in body {what}", path.as_str());
        self.errors.push(FieldError::invalid(path, value, detail));
    }

    fn wrong_type(&mut self, path: &Path, wanted: &str, found: &str) {
        let detail = format!("{} in body must be of type {wanted}: {found:?}", path.as_str());
        self.errors.push(FieldError { kind: ErrorKind::TypeInvalid, path: path.clone(), value: found.into(), detail });
    }

    fn value(&mut self, props: &Props, value: &Value, old: Option<&Value>, path: &Path) {
        if old == Some(value) {
            return;
        }
        let types: &[&str] = match props.ty.as_str() {
            _ if props.int_or_string => &["integer", "string"],
            "" => &[],
            ty => &[ty],
        };
        if value.is_null() {
            if !types.is_empty() && !props.nullable {
                self.wrong_type(path, &types.join(","), "null");
            }
            self.allowed(props, value, path);
            return;
        }
        self.ty(props, types, value, path);
        self.junctors(props, value, path);
        match value {
            Value::String(text) => self.text(props, text, path),
            Value::Number(_) => self.number(props, value, path),
            Value::Array(list) => self.list(props, list, old, path),
            _ => {}
        }
        self.allowed(props, value, path);
        if let Value::Object(map) = value {
            let count = i64::try_from(map.len()).unwrap_or(i64::MAX);
            if let Some(min) = props.min_properties.filter(|min| count < *min) {
                self.invalid(path, min, &format!("should have at least {min} properties"));
                return;
            }
            if let Some(max) = props.max_properties.filter(|max| count > *max) {
                self.too_many(path, count, max);
                return;
            }
            for name in &props.required {
                if !map.contains_key(name) {
                    self.errors.push(FieldError::required(&path.child(name), ""));
                }
            }
            for (name, value) in map {
                let known = props.property(name).or_else(|| props.values());
                if let Some(known) = known {
                    self.value(known, value, old.and_then(|old| old.get(name)), &path.child(name));
                }
            }
        }
    }

    fn ty(&mut self, props: &Props, types: &[&str], value: &Value, path: &Path) {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let whole = value.as_f64().is_some_and(|number| number.fract() == 0.0);
        let fits = types.is_empty()
            || types.contains(&found)
            || (found == "integer" && types.contains(&"number"))
            || (found == "number" && whole && types.contains(&"integer"));
        if !fits {
            self.wrong_type(path, &types.join(","), found);
        }
        if let Value::String(text) = value
            && (types.is_empty() || types.contains(&"string"))
            && !format::holds(&props.format, text)
        {
            self.wrong_type(path, &props.format, text);
        }
    }

    fn text(&mut self, props: &Props, text: &str, path: &Path) {
        let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        if let Some(max) = props.max_length.filter(|max| length > *max) {
            self.errors.push(FieldError::too_long(path, usize::try_from(max).unwrap_or(0)));
        }
        if let Some(min) = props.min_length.filter(|min| length < *min) {
            self.invalid(path, text, &format!("should be at least {min} chars long"));
        }
        if let Some(pattern) = props.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            self.invalid(path, text, &format!("should match '{}'", pattern.as_str()));
        }
    }

    fn number(&mut self, props: &Props, value: &Value, path: &Path) {
        let Some(number) = value.as_f64() else { return };
        if let Some(factor) = props.multiple_of.filter(|factor| *factor > 0.0) {
            let quotient = number / factor;
            if (quotient - quotient.round()).abs() > f64::EPSILON * quotient.abs().max(1.0) {
                self.invalid(path, value.clone(), &format!("should be a multiple of {factor}"));
            }
        }
        if let Some(max) = props.maximum {
            let than = if props.exclusive_maximum { "less than" } else { "less than or equal to" };
            if number > max || (props.exclusive_maximum && number >= max) {
                self.invalid(path, value.clone(), &format!("should be {than} {max}"));
            }
        }
        if let Some(min) = props.minimum {
            let than = if props.exclusive_minimum { "greater than" } else { "greater than or equal to" };
            if number < min || (props.exclusive_minimum && number <= min) {
                self.invalid(path, value.clone(), &format!("should be {than} {min}"));
            }
        }
    }

    fn list(&mut self, props: &Props, list: &[Value], old: Option<&Value>, path: &Path) {
        if let Some(items) = &props.items {
            let before = old.and_then(Value::as_array).filter(|_| props.list_type.as_deref() == Some("map"));
            for (at, item) in list.iter().enumerate() {
                // Only where elements have keys is it known which one was which.
                let old = before.and_then(|before| {
                    let key = lists::key(item, props);
                    before.iter().find(|item| lists::key(item, props) == key)
                });
                self.value(items, item, old, &path.index(at));
            }
        }
        let count = i64::try_from(list.len()).unwrap_or(i64::MAX);
        if let Some(min) = props.min_items.filter(|min| count < *min) {
            self.invalid(path, count, &format!("should have at least {min} items"));
        }
        if let Some(max) = props.max_items.filter(|max| count > *max) {
            self.too_many(path, count, max);
        }
    }

    fn too_many(&mut self, path: &Path, count: i64, max: i64) {
        self.errors.push(FieldError {
            kind: ErrorKind::TooMany,
            path: path.clone(),
            value: count.into(),
            detail: format!("must have at most {max} items"),
        });
    }

    fn allowed(&mut self, props: &Props, value: &Value, path: &Path) {
        let same = |one: &Value| one == value || (one.is_number() && one.as_f64() == value.as_f64());
        if props.allowed.is_empty() || props.allowed.iter().any(same) {
            return;
        }
        let texts: Vec<String> =
            props.allowed.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        self.errors.push(FieldError::not_supported(path, value.clone(), &texts));
    }

    /// `allOf`, `anyOf`, `oneOf` and `not`. What is the matter with the whole has no field of its own.
    fn junctors(&mut self, props: &Props, value: &Value, path: &Path) {
        let try_one = |props: &Props| against(props, value, None, path);
        let whole = |what: String| FieldError::invalid(&Path::root(), "", format!("{:?} {what}", path.as_str()));
        if !props.any_of.is_empty() {
            let mut first = None;
            let passes = props.any_of.iter().any(|props| {
                let errors = try_one(props);
                let passes = errors.is_empty();
                first.get_or_insert(errors);
                passes
            });
            if !passes {
                self.errors.push(whole("must validate at least one schema (anyOf)".to_owned()));
                self.errors.extend(first.unwrap_or_default());
            }
        }
        if !props.one_of.is_empty() {
            let outcomes: Vec<FieldErrors> = props.one_of.iter().map(try_one).collect();
            let valid = outcomes.iter().filter(|errors| errors.is_empty()).count();
            if valid != 1 {
                let found = match valid {
                    0 => "Found none valid".to_owned(),
                    many => format!("Found {many} valid alternatives"),
                };
                self.errors.push(whole(format!("must validate one and only one schema (oneOf). {found}")));
                if valid == 0 {
                    self.errors.extend(outcomes.into_iter().next().unwrap_or_default());
                }
            }
        }
        if !props.all_of.is_empty() {
            let mut valid = 0;
            let mut all = FieldErrors::new();
            for errors in props.all_of.iter().map(try_one) {
                valid += usize::from(errors.is_empty());
                all.extend(errors);
            }
            if valid != props.all_of.len() {
                self.errors.extend(all);
                let none = if valid == 0 { ". None validated" } else { "" };
                self.errors.push(whole(format!("must validate all the schemas (allOf){none}")));
            }
        }
        if let Some(not) = &props.not
            && try_one(not).is_empty()
        {
            self.errors.push(whole("must not validate the schema (not)".to_owned()));
        }
    }
}

/// Objects inside of the object are objects too: they have kinds and sound metadata.
fn embedded(value: &Value, props: &Props, path: &Path, is_root: bool, errors: &mut FieldErrors) {
    if props.embedded && !is_root && value.is_object() {
        for field in ["apiVersion", "kind"] {
            if value[field].as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::required(&path.child(field), "must not be empty"));
            }
        }
        let of_metadata = validation::meta_update(value, value).into_iter();
        errors.extend(of_metadata.map(|error| FieldError { path: path.child(error.path.as_str()), ..error }));
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match (props.property(name), props.values()) {
                    (Some(known), _) => embedded(value, known, &path.child(name), false, errors),
                    (None, Some(known)) => embedded(value, known, &path.key(name), false, errors),
                    (None, None) => {}
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &props.items {
                for (at, item) in list.iter().enumerate() {
                    embedded(item, items, &path.index(at), false, errors);
                }
            }
        }
        _ => {}
    }
}
