//! What is asked of webhooks and policies: the request, in the version of the object that they know.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use mussel_api::resource::Resource;
use serde_json::{Value, json};

use super::rules::Rule;
use super::{Attributes, equivalents};
use crate::custom;
use crate::registry::convert;
use crate::status::Status;

/// A resource and the kind of the objects in requests to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub group: String,
    pub version: String,
    pub resource: String,
    /// Group, version and kind.
    pub kind: (String, String, String),
}

impl Place {
    fn of(resource: &Resource, subresource: &str) -> Self {
        let own = || (resource.group.to_string(), resource.version.to_string(), resource.kind.to_string());
        let kind = resource.subresource(subresource).and_then(|sub| sub.kind);
        let kind = kind.map_or_else(own, |(g, v, k)| (g.to_owned(), v.to_owned(), k.to_owned()));
        Self {
            group: resource.group.to_string(),
            version: resource.version.to_string(),
            resource: resource.plural.to_string(),
            kind,
        }
    }

    fn kind_value(&self) -> Value {
        json!({"group": self.kind.0, "version": self.kind.1, "kind": self.kind.2})
    }

    fn resource_value(&self) -> Value {
        json!({"group": self.group, "version": self.version, "resource": self.resource})
    }
}

fn between(from: &Resource, to: &Resource, object: Value) -> Value {
    match &to.custom {
        Some(custom) => custom::convert::served_now(custom, object),
        None => convert::between(from, to, object),
    }
}

/// How a request looks to one who is asked.
#[derive(Clone)]
pub struct Seen {
    pub place: Place,
    /// `None`: as it was made.
    row: Option<Arc<Resource>>,
}

/// A request, and the object as it stands.
pub struct Asked<'a> {
    pub attributes: &'a Attributes<'a>,
    pub operation: &'static str,
    pub subresource: &'a str,
    /// Of a namespace its own name, as upstream has it.
    pub namespace: &'a str,
    /// Empty when the server makes it up.
    pub name: &'a str,
    place: Place,
    object: Option<Cow<'a, Value>>,
    old: Option<Value>,
    equivalents: OnceLock<Vec<(Place, Arc<Resource>)>>,
}

impl<'a> Asked<'a> {
    pub fn new(attributes: &'a Attributes<'a>, object: Option<&'a Value>) -> Self {
        let place = Place::of(attributes.resource, attributes.subresource);
        let is_namespace = attributes.stored_as == "namespaces";
        let old = attributes.old.map(|old| match attributes.face {
            Some(face) => face.show(old),
            None => old.clone(),
        });
        Self {
            attributes,
            operation: attributes.operation.as_str(),
            subresource: attributes.subresource,
            namespace: if is_namespace { attributes.name } else { attributes.namespace },
            name: if attributes.generated { "" } else { attributes.name },
            place,
            object: object.map(Cow::Borrowed),
            old,
            equivalents: OnceLock::new(),
        }
    }

    pub fn object(&self) -> Option<&Value> {
        self.object.as_deref()
    }

    pub fn old(&self) -> Option<&Value> {
        self.old.as_ref()
    }

    pub fn is_namespace(&self) -> bool {
        self.attributes.stored_as == "namespaces"
    }

    /// Puts a changed object, in the version of the request, in place of the one so far.
    pub fn replace(&mut self, object: Value) {
        self.object = Some(Cow::Owned(object));
    }

    /// The request as it was made.
    pub fn as_made(&self) -> Seen {
        Seen { place: self.place.clone(), row: None }
    }

    /// How the first rule that matches sees the request; `equivalent` lets it be seen as one to another version.
    pub fn seen_by(&self, rules: &[Rule], equivalent: bool) -> Option<Seen> {
        if rules.iter().any(|rule| rule.matches(self, &self.place)) {
            return Some(self.as_made());
        }
        if !equivalent {
            return None;
        }
        let others = self.equivalents.get_or_init(|| {
            let rows = equivalents(self.attributes).into_iter();
            rows.map(|row| (Place::of(&row, self.subresource), row)).collect()
        });
        rules.iter().find_map(|rule| {
            let (place, row) = others.iter().find(|(place, _)| rule.matches(self, place))?;
            if row.custom.as_ref().is_some_and(custom::convert::asks) {
                // In the version of the request, so that it is not missed: another one is a webhook's to make.
                return Some(self.as_made());
            }
            Some(Seen { place: place.clone(), row: Some(Arc::clone(row)) })
        })
    }

    /// An object of the request in the version it is seen in.
    pub fn convert(&self, seen: &Seen, object: &Value) -> Value {
        match &seen.row {
            // Subresources with a kind of their own have it in every version.
            Some(row) if seen.place.kind != self.place.kind => between(self.attributes.resource, row, object.clone()),
            _ => object.clone(),
        }
    }

    /// The inverse of [`Asked::convert`].
    pub fn convert_back(&self, seen: &Seen, object: Value) -> Value {
        match &seen.row {
            Some(row) if seen.place.kind != self.place.kind => between(row, self.attributes.resource, object),
            _ => object,
        }
    }

    /// An `AdmissionRequest`. CEL sees the same, without the objects and the uid.
    pub fn request(&self, seen: &Seen) -> Value {
        let mut request = json!({
            "kind": seen.place.kind_value(),
            "resource": seen.place.resource_value(),
            "requestKind": self.place.kind_value(),
            "requestResource": self.place.resource_value(),
            "operation": self.operation,
            "userInfo": self.attributes.user,
            "dryRun": self.attributes.dry_run,
            "options": (self.attributes.options)(),
        });
        for (field, value) in [
            ("subResource", self.subresource),
            ("requestSubResource", self.subresource),
            ("name", self.name),
            ("namespace", self.namespace),
        ] {
            if !value.is_empty() {
                request[field] = value.into();
            }
        }
        request
    }

    /// An `AdmissionReview` in the given version.
    pub fn review(&self, seen: &Seen, version: &str, uid: &str) -> Value {
        let mut request = self.request(seen);
        request["uid"] = uid.into();
        let shown = |object: Option<&Value>| object.map_or(Value::Null, |object| self.convert(seen, object));
        request["object"] = shown(self.object());
        request["oldObject"] = shown(self.old());
        json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request})
    }

    /// A refusal in the words of `admission.NewForbidden`.
    pub fn forbidden(&self, why: &str) -> Status {
        let resource = self.attributes.resource;
        let name = match (self.name, self.object()) {
            ("", Some(object)) => object["metadata"]["generateName"].as_str().unwrap_or_default(),
            (name, _) => name,
        };
        let name = if name.is_empty() { "Unknown" } else { name };
        Status::forbidden(&resource.group, &resource.plural, name, why)
    }
}
