//! `x-kubernetes-validations`: the rules of a schema, compiled once and applied to objects.

use mussel_api::field::{ErrorKind, FieldError, FieldErrors, Path};
use mussel_api::schema::Schema;
use mussel_cel::{Bindings, Budget, EvalError, ObjectType, Program, Type, Value};
use serde_json::{Map, Value as Json};
use std::sync::Arc;

use super::{CALL_COST_MAX, MESSAGE_BYTES_MAX, TOTAL_COST_MAX, environment, schema};

const EXTENSION: &str = "x-kubernetes-validations";

/// The rules of a schema. Cheap to ask when there are none.
#[derive(Default)]
pub struct Rules {
    root: Node,
}

/// What rules say of an object.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    pub errors: FieldErrors,
    /// Rules that are broken by what the update did not change: no reason to refuse it.
    pub warnings: Vec<String>,
}

/// A part of the schema that has rules, or parts with rules.
#[derive(Default)]
struct Node {
    schema: Option<Schema>,
    /// The `type` of the schema, which errors give as the value.
    kind: String,
    rules: Vec<Rule>,
    properties: Vec<(String, Node)>,
    items: Option<Box<Node>>,
    /// Elements of a list are known again by these.
    keys: Vec<String>,
    additional: Option<Box<Node>>,
}

struct Rule {
    program: Program,
    source: String,
    message: String,
    message_program: Option<Program>,
    kind: ErrorKind,
    field: Vec<Step>,
    /// It compares with what was before.
    is_transition: bool,
    optional_old: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Key(String),
}

/// The object itself, of whose metadata rules see only the names.
struct Root(Schema);

struct Metadata;

impl ObjectType for Metadata {
    fn name(&self) -> &str {
        "self.metadata"
    }

    fn field(&self, name: &str) -> Option<Type> {
        matches!(name, "name" | "generateName").then_some(Type::String)
    }
}

impl ObjectType for Root {
    fn name(&self) -> &str {
        "self"
    }

    fn field(&self, name: &str) -> Option<Type> {
        if name == "metadata" {
            return Some(Type::Object(Arc::new(Metadata)));
        }
        match schema::type_of(&self.0, "self", schema::Names::Escaped)? {
            Type::Object(object) => object.field(name),
            _ => None,
        }
    }
}

impl Rules {
    /// Compiles the rules of an `openAPIV3Schema`. What is wrong is told with paths below `path`; rules that are wrong are
    /// left out.
    pub fn compile(open_api: &Json, path: &Path) -> (Self, FieldErrors) {
        let mut errors = Vec::new();
        let schema = Schema::custom(open_api);
        let root = Node::compile(open_api, Some(schema), path, true, &mut errors);
        (Self { root: root.unwrap_or_default() }, errors)
    }

    pub fn is_empty(&self) -> bool {
        self.root.is_empty()
    }

    /// Applies the rules to an object that fits its schema, and to what it was before.
    pub fn validate(&self, new: &Json, old: Option<&Json>) -> Verdict {
        let mut walk = Walk { left: TOTAL_COST_MAX, is_over: false, verdict: Verdict::default() };
        if !self.is_empty() {
            walk.node(&self.root, new, old, &Path::root(), false);
        }
        walk.verdict
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.properties.is_empty() && self.items.is_none() && self.additional.is_none()
    }

    /// `None` when there is no rule in this part.
    fn compile(
        open_api: &Json,
        schema: Option<Schema>,
        path: &Path,
        is_root: bool,
        errors: &mut FieldErrors,
    ) -> Option<Self> {
        let mut node = Self {
            kind: open_api["type"].as_str().unwrap_or_default().to_owned(),
            keys: match open_api["x-kubernetes-list-type"].as_str() {
                Some("map") => texts(&open_api["x-kubernetes-list-map-keys"]),
                _ => Vec::new(),
            },
            ..Self::default()
        };
        if let Some(list) = open_api[EXTENSION].as_array().filter(|list| !list.is_empty()) {
            let ty = match &schema {
                Some(schema) if is_root => Some(Type::Object(Arc::new(Root(schema.clone())))),
                Some(schema) => schema::type_of(schema, "self", schema::Names::Escaped),
                None => None,
            };
            for (at, rule) in list.iter().enumerate() {
                let path = path.child(EXTENSION).index(at);
                node.rules.extend(Rule::compile(rule, ty.as_ref().unwrap_or(&Type::Dyn), &path, errors));
            }
        }
        for (name, property) in open_api["properties"].as_object().into_iter().flatten() {
            let below = schema.as_ref().and_then(|schema| schema.property(name));
            let path = path.child("properties").key(name);
            node.properties
                .extend(Self::compile(property, below, &path, false, errors).map(|property| (name.clone(), property)));
        }
        if open_api["items"].is_object() {
            let below = schema.as_ref().and_then(Schema::items);
            let items = Self::compile(&open_api["items"], below, &path.child("items"), false, errors);
            node.items = items.map(Box::new);
        }
        if open_api["additionalProperties"].is_object() {
            let below = schema.as_ref().and_then(Schema::additional_properties);
            let path = path.child("additionalProperties");
            let values = Self::compile(&open_api["additionalProperties"], below, &path, false, errors);
            node.additional = values.map(Box::new);
        }
        node.schema = schema;
        (!node.is_empty()).then_some(node)
    }

    /// The element of `old` that is the same one as `new`; only lists that are maps can tell.
    fn counterpart<'o>(&self, new: &Json, old: &'o [Json]) -> Option<&'o Json> {
        if self.keys.is_empty() {
            return None;
        }
        old.iter().find(|old| self.keys.iter().all(|key| old[key] == new[key]))
    }
}

impl Rule {
    fn compile(rule: &Json, ty: &Type, path: &Path, errors: &mut FieldErrors) -> Option<Self> {
        let text = |field: &str| rule[field].as_str().unwrap_or_default();
        let optional_old = rule["optionalOldSelf"] == true;
        let mut env = environment();
        env.declare("self", ty.clone());
        env.declare("oldSelf", if optional_old { Type::optional(ty.clone()) } else { ty.clone() });
        let source = text("rule");
        if source.trim().is_empty() {
            errors.push(FieldError::required(&path.child("rule"), "rule is not specified"));
            return None;
        }
        let mut wrong = |field: &str, detail: String| {
            errors.push(FieldError::invalid(&path.child(field), rule[field].clone(), detail));
        };
        let program = match env.compile(source) {
            Ok(program) if *program.result() == Type::Bool => program,
            Ok(_) => {
                wrong("rule", "cel expression must evaluate to a bool".to_owned());
                return None;
            }
            Err(error) => {
                wrong("rule", format!("compilation failed: {error}"));
                return None;
            }
        };
        let message_source = text("messageExpression");
        let message_program = if message_source.trim().is_empty() {
            None
        } else {
            match env.compile(message_source) {
                Ok(program) if *program.result() == Type::String => Some(program),
                Ok(_) => {
                    wrong("messageExpression", "messageExpression must evaluate to a string".to_owned());
                    None
                }
                Err(error) => {
                    wrong("messageExpression", format!("messageExpression compilation failed: {error}"));
                    None
                }
            }
        };
        let is_transition = program.names().iter().any(|name| &**name == "oldSelf");
        if optional_old && !is_transition {
            wrong("optionalOldSelf", "may not be set if oldSelf is not used in rule".to_owned());
        }
        let kind = match text("reason") {
            "" | "FieldValueInvalid" => ErrorKind::Invalid,
            "FieldValueForbidden" => ErrorKind::Forbidden,
            "FieldValueRequired" => ErrorKind::Required,
            "FieldValueDuplicate" => ErrorKind::Duplicate,
            _ => {
                let supported =
                    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
                errors.push(FieldError::not_supported(&path.child("reason"), text("reason"), &supported));
                return None;
            }
        };
        let field = match steps(text("fieldPath")) {
            Some(field) => field,
            None => {
                let detail = "fieldPath must be a valid path";
                errors.push(FieldError::invalid(&path.child("fieldPath"), text("fieldPath"), detail));
                return None;
            }
        };
        Some(Self {
            program,
            source: source.to_owned(),
            message: text("message").to_owned(),
            message_program,
            kind,
            field,
            is_transition,
            optional_old,
        })
    }

    /// How messages about the rule name it.
    fn shown(&self) -> String {
        if self.message.is_empty() { self.source.trim().to_owned() } else { self.message.trim().to_owned() }
    }
}

/// `.a.b['c']`
fn steps(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("['") {
            let (key, after) = after.split_once("']")?;
            steps.push(Step::Key(key.replace("\\'", "'")));
            rest = after;
        } else {
            let after = rest.strip_prefix('.')?;
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            if name.is_empty() {
                return None;
            }
            steps.push(Step::Field(name.to_owned()));
            rest = after;
        }
    }
    Some(steps)
}

fn texts(list: &Json) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// `self` and `oldSelf`.
struct Selves {
    new: Value,
    old: Option<Value>,
}

impl Bindings for Selves {
    fn get(&self, name: &str, _: &mut Budget) -> Option<Result<Value, EvalError>> {
        match name {
            "self" => Some(Ok(self.new.clone())),
            "oldSelf" => self.old.clone().map(Ok),
            _ => None,
        }
    }
}

struct Walk {
    left: u64,
    /// The budget is spent, which has been said.
    is_over: bool,
    verdict: Verdict,
}

impl Walk {
    /// `unchanged`: something above is as it was.
    fn node(&mut self, node: &Node, new: &Json, old: Option<&Json>, path: &Path, unchanged: bool) {
        if self.is_over || new.is_null() {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        let unchanged = unchanged || old == Some(new);
        if !node.rules.is_empty() {
            self.rules(node, new, old, path, unchanged);
        }
        match new {
            Json::Object(map) => self.members(node, map, old.and_then(Json::as_object), path, unchanged),
            Json::Array(items) => {
                let Some(below) = &node.items else { return };
                let before = old.and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
                for (at, item) in items.iter().enumerate() {
                    self.node(below, item, node.counterpart(item, before), &path.index(at), unchanged);
                }
            }
            _ => {}
        }
    }

    fn members(
        &mut self,
        node: &Node,
        map: &Map<String, Json>,
        old: Option<&Map<String, Json>>,
        path: &Path,
        unchanged: bool,
    ) {
        for (name, below) in &node.properties {
            if let Some(value) = map.get(name) {
                self.node(below, value, old.and_then(|old| old.get(name)), &path.child(name), unchanged);
            }
        }
        let Some(below) = &node.additional else { return };
        for (name, value) in map {
            if !node.properties.iter().any(|(property, _)| property == name) {
                self.node(below, value, old.and_then(|old| old.get(name)), &path.key(name), unchanged);
            }
        }
    }

    fn evaluate(&mut self, program: &Program, selves: &Selves) -> Result<Value, EvalError> {
        let given = CALL_COST_MAX.min(self.left);
        let mut budget = Budget::new(given);
        let outcome = program.evaluate(selves, &mut budget);
        self.left -= given - budget.left();
        outcome
    }

    fn rules(&mut self, node: &Node, new: &Json, old: Option<&Json>, path: &Path, unchanged: bool) {
        let old = old.map(|old| schema::value(old, node.schema.as_ref()));
        let plain = Selves { new: schema::value(new, node.schema.as_ref()), old: old.clone() };
        let optional = Selves { new: plain.new.clone(), old: Some(old.map_or(Value::Optional(None), Value::some)) };
        for rule in &node.rules {
            if rule.is_transition && plain.old.is_none() && !rule.optional_old {
                continue;
            }
            let selves = if rule.optional_old { &optional } else { &plain };
            let kind = || Json::from(node.kind.as_str());
            let detail = match self.evaluate(&rule.program, selves) {
                Ok(Value::Bool(true)) => continue,
                Ok(_) => {
                    let own = rule.message_program.as_ref().and_then(|program| {
                        let made = self.evaluate(program, selves).ok()?;
                        let text = made.as_str()?.trim();
                        let fits = !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n');
                        fits.then(|| text.to_owned())
                    });
                    let detail = own.unwrap_or_else(|| match rule.message.trim() {
                        "" => format!("failed rule: {}", rule.source.trim()),
                        message => message.to_owned(),
                    });
                    let at = rule.field.iter().fold(path.clone(), |path, step| match step {
                        Step::Field(name) => path.child(name),
                        Step::Key(key) => path.key(key),
                    });
                    let error = FieldError { kind: rule.kind, path: at, value: kind(), detail };
                    if unchanged && !rule.is_transition {
                        self.verdict.warnings.push(error.to_string());
                    } else {
                        self.verdict.errors.push(error);
                    }
                    continue;
                }
                Err(EvalError::OutOfBudget) => {
                    self.is_over = true;
                    if self.left == 0 {
                        "validation failed due to running out of cost budget, no further validation rules will be run"
                            .to_owned()
                    } else {
                        format!(
                            "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                            EvalError::OutOfBudget,
                            rule.shown()
                        )
                    }
                }
                Err(EvalError::NoSuchOverload) => format!(
                    "'no such overload': call arguments did not match a supported operator, function or macro signature \
                     for rule: {}",
                    rule.shown()
                ),
                Err(error) => format!("{error} evaluating rule: {}", rule.shown()),
            };
            self.verdict.errors.push(FieldError::invalid(path, kind(), detail));
            if self.is_over {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(spec: Json) -> Rules {
        let open_api = json!({"type": "object", "properties": {"spec": spec}});
        let (rules, errors) = Rules::compile(&open_api, &Path::new("schema"));
        assert_eq!(errors, []);
        rules
    }

    fn errors(rules: &Rules, spec: Json, old: Option<Json>) -> Vec<String> {
        let object = |spec: Json| json!({"apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n"}, "spec": spec});
        let old = old.map(object);
        rules.validate(&object(spec), old.as_ref()).errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_are_typed_by_their_schema() {
        let rules = rules(json!({"type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.minReplicas <= self.maxReplicas", "message": "minReplicas is more than maxReplicas"},
                {"rule": "!has(self.until) || self.until > timestamp('2024-01-01T00:00:00Z')", "fieldPath": ".until"},
                {"rule": "self.ratio < 1.0", "messageExpression": "'ratio is ' + string(self.ratio)", "reason": "FieldValueForbidden"},
                {"rule": "self.a__dash__b == 'x' || self.__namespace__ == 'y'"}],
            "properties": {
                "minReplicas": {"type": "integer"}, "maxReplicas": {"type": "integer"},
                "until": {"type": "string", "format": "date-time"}, "ratio": {"type": "number"},
                "a-b": {"type": "string"}, "namespace": {"type": "string"},
                "port": {"x-kubernetes-int-or-string": true}}}));
        let good = json!({"minReplicas": 1, "maxReplicas": 2, "ratio": 0, "a-b": "x", "namespace": "z"});
        assert_eq!(errors(&rules, good, None), Vec::<String>::new());
        let bad = json!({"minReplicas": 3, "maxReplicas": 2, "ratio": 1.5, "until": "2020-01-01T00:00:00Z", "a-b": "y", "namespace": "z"});
        assert_eq!(
            errors(&rules, bad, None),
            [
                "spec: Invalid value: \"object\": minReplicas is more than maxReplicas",
                "spec.until: Invalid value: \"object\": failed rule: !has(self.until) || self.until > timestamp('2024-01-01T00:00:00Z')",
                "spec: Forbidden: ratio is 1.5",
                "spec: Invalid value: \"object\": failed rule: self.a__dash__b == 'x' || self.__namespace__ == 'y'",
            ]
        );
        let absent = json!({"minReplicas": 1, "ratio": 0, "a-b": "x"});
        assert_eq!(
            errors(&rules, absent, None),
            [
                "spec: Invalid value: \"object\": no such key: maxReplicas evaluating rule: minReplicas is more than maxReplicas"
            ]
        );
    }

    #[test]
    fn transitions_compare_with_what_was() {
        let rules = rules(json!({"type": "object", "properties": {
            "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]},
            "grows": {"type": "integer", "x-kubernetes-validations": [
                {"rule": "!oldSelf.hasValue() || oldSelf.value() <= self", "optionalOldSelf": true}]},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "x-kubernetes-validations": [{"rule": "self.value >= oldSelf.value"}],
                    "properties": {"name": {"type": "string"}, "value": {"type": "integer"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "integer",
                "x-kubernetes-validations": [{"rule": "self > 0"}]}}}}));
        let old = json!({"fixed": "a", "grows": 2, "list": [{"name": "x", "value": 2}, {"name": "y", "value": 1}]});
        assert_eq!(errors(&rules, old.clone(), None), Vec::<String>::new());
        let new = json!({"fixed": "b", "grows": 1, "list": [{"name": "z", "value": 0}, {"name": "x", "value": 1}], "map": {"a": 0}});
        assert_eq!(
            errors(&rules, new, Some(old)),
            [
                "spec.fixed: Invalid value: \"string\": is immutable",
                "spec.grows: Invalid value: \"integer\": failed rule: !oldSelf.hasValue() || oldSelf.value() <= self",
                "spec.list[1]: Invalid value: \"object\": failed rule: self.value >= oldSelf.value",
                "spec.map[a]: Invalid value: \"integer\": failed rule: self > 0",
            ]
        );
    }

    #[test]
    fn what_an_update_did_not_change_is_no_reason_to_refuse_it() {
        let rules = rules(json!({"type": "object", "properties": {
            "a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 5"}]}, "b": {"type": "integer"}}}));
        let object = |a: i64, b: i64| json!({"spec": {"a": a, "b": b}});
        let verdict = rules.validate(&object(1, 2), Some(&object(1, 1)));
        assert_eq!(verdict.errors, []);
        assert_eq!(verdict.warnings, ["spec.a: Invalid value: \"integer\": failed rule: self > 5"]);
        assert_eq!(rules.validate(&object(2, 1), Some(&object(1, 1))).errors.len(), 1);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let open_api = json!({"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"n": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.none == 1"}, {"rule": "self.n + 1"}, {"rule": "self.n == 'a'"},
                {"rule": "true", "reason": "Other"}, {"rule": "self.n > 1", "messageExpression": "1"}]}}});
        let (_, errors) = Rules::compile(&open_api, &Path::new("schema"));
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let place = "schema.properties[spec].x-kubernetes-validations";
        assert_eq!(
            texts,
            [
                format!(
                    "{place}[0].rule: Invalid value: \"self.none == 1\": compilation failed: ERROR: <input>:1:5: undefined field 'none'\n | self.none == 1\n | ....^"
                ),
                format!("{place}[1].rule: Invalid value: \"self.n + 1\": cel expression must evaluate to a bool"),
                format!(
                    "{place}[2].rule: Invalid value: \"self.n == 'a'\": compilation failed: ERROR: <input>:1:8: found no matching overload for '_==_' applied to '(int, string)'\n | self.n == 'a'\n | .......^"
                ),
                format!(
                    "{place}[3].reason: Unsupported value: \"Other\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\""
                ),
                format!(
                    "{place}[4].messageExpression: Invalid value: \"1\": messageExpression must evaluate to a string"
                ),
            ]
        );
        let root = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.metadata.name.startsWith('a') && self.kind == 'K'"}]});
        let (rules, errors) = Rules::compile(&root, &Path::root());
        assert_eq!(errors, []);
        assert_eq!(rules.validate(&json!({"kind": "K", "metadata": {"name": "b"}}), None).errors.len(), 1);
    }

    #[test]
    fn rules_stop_at_their_budget() {
        let rules = rules(
            json!({"type": "object", "properties": {"list": {"type": "array", "items": {"type": "integer"},
            "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"}, {"rule": "false"}]}}}),
        );
        let list: Vec<i64> = (0..200).collect();
        let texts = errors(&rules, json!({"list": list}), None);
        assert_eq!(texts.len(), 1);
        assert!(texts[0].contains("call cost exceeds limit"), "{texts:?}");
    }
}
