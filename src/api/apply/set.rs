//! Sets of field paths, as `managedFields[].fieldsV1` holds them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of paths below some node. Edges are labelled as in fieldsV1: `f:name`, `k:{"name":"a"}`, `v:"x"`, `i:0`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether the node itself is in the set; written as `.` where it has members below.
    pub member: bool,
    pub children: BTreeMap<String, FieldSet>,
}

/// Deeper sets are refused: no API type comes near.
const DEPTH_MAX: usize = 200;

impl FieldSet {
    /// The set that holds just this node.
    pub fn leaf() -> Self {
        Self { member: true, children: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Hangs `child` below the edge `element`, unless it is empty.
    pub fn attach(&mut self, element: String, child: Self) {
        if !child.is_empty() {
            self.children.insert(element, child);
        }
    }

    /// `None` when `fields` is not a fieldsV1.
    pub fn from_fields_v1(fields: &Value) -> Option<Self> {
        Self::parse(fields, 0)
    }

    fn parse(fields: &Value, depth: usize) -> Option<Self> {
        let map = fields.as_object().filter(|_| depth < DEPTH_MAX)?;
        let mut set = Self::default();
        for (element, below) in map {
            if element == "." {
                set.member = true;
                continue;
            }
            let mut child = Self::parse(below, depth + 1)?;
            // An edge with nothing below it is itself the member.
            child.member |= child.children.is_empty();
            set.children.insert(canonical(element)?, child);
        }
        Some(set)
    }

    pub fn to_fields_v1(&self) -> Value {
        let mut map = Map::new();
        for (element, child) in &self.children {
            let mut below = child.to_fields_v1();
            if child.member
                && !child.children.is_empty()
                && let Value::Object(below) = &mut below
            {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(element.clone(), below);
        }
        Value::Object(map)
    }

    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        self.member |= other.member;
        for (element, child) in &other.children {
            let mine = self.children.remove(element).unwrap_or_default();
            self.children.insert(element.clone(), mine.union(child));
        }
        self
    }

    /// What is in `self` and, as exactly that path, in `other`.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self { member: self.member && other.member, children: BTreeMap::new() };
        for (element, child) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                both.attach(element.clone(), child.intersection(theirs));
            }
        }
        both
    }

    /// What is in `self` and not, as exactly that path, in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = Self { member: self.member && !other.member, children: BTreeMap::new() };
        for (element, child) in &self.children {
            match other.children.get(element) {
                Some(theirs) => rest.attach(element.clone(), child.difference(theirs)),
                None => rest.attach(element.clone(), child.clone()),
            }
        }
        rest
    }

    /// `self` without the subtree at a path of field names.
    #[must_use]
    pub fn without(mut self, path: &[&str]) -> Self {
        let [first, rest @ ..] = path else { return Self::default() };
        let element = format!("f:{first}");
        if let Some(child) = self.children.remove(&element) {
            self.attach(element, child.without(rest));
        }
        self
    }

    /// The paths, printed as upstream does: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(&mut String::new(), &mut paths);
        paths
    }

    fn collect(&self, prefix: &mut String, paths: &mut Vec<String>) {
        if self.member {
            paths.push(prefix.clone());
        }
        for (element, child) in &self.children {
            let length = prefix.len();
            prefix.push_str(&printed(element));
            child.collect(prefix, paths);
            prefix.truncate(length);
        }
    }
}

/// Keys and values in one spelling, so that elements compare as text.
fn canonical(element: &str) -> Option<String> {
    let (kind, rest) = element.split_once(':')?;
    match kind {
        "f" | "i" => Some(element.to_owned()),
        "k" | "v" => Some(format!("{kind}:{}", serde_json::from_str::<Value>(rest).ok()?)),
        _ => None,
    }
}

/// An edge as paths show it.
pub fn printed(element: &str) -> String {
    let (kind, rest) = element.split_once(':').unwrap_or(("f", element));
    match kind {
        "f" => format!(".{rest}"),
        "i" => format!("[{rest}]"),
        "v" => format!("[={rest}]"),
        _ => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_v1_round_trips() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}, "f:x": {"v:\"y\"": {}}}});
        let set = FieldSet::from_fields_v1(&fields).unwrap();
        assert_eq!(set.to_fields_v1(), fields);
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.containers[name=\"a\"]",
                ".spec.containers[name=\"a\"].image",
                ".spec.x[=\"y\"]"
            ]
        );
        assert_eq!(set.difference(&set), FieldSet::default());
        assert_eq!(set.intersection(&set), set);
        assert_eq!(FieldSet::default().union(&set), set);
        assert_eq!(set.without(&["spec"]).paths(), [".metadata.labels", ".metadata.labels.app"]);
        assert!(FieldSet::from_fields_v1(&json!({"x": {}})).is_none());
        assert!(FieldSet::from_fields_v1(&json!({"k:{": {}})).is_none());
    }
}
