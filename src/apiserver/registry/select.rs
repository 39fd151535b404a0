//! Which objects a list or watch is about.

use mussel_api::object::ObjectExt;
use mussel_api::resource::Resource;
use mussel_api::selector::{FieldSelector, LabelSelector};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::call::select_field;
use super::key;
use super::options::ListOptions;
use crate::status::Status;

/// The label and field selectors of a request.
#[derive(Clone, Debug)]
pub struct Selection {
    labels: Option<LabelSelector>,
    fields: Option<FieldSelector>,
    resource: Resource,
}

impl Selection {
    /// # Errors
    /// When a field is not selectable.
    pub fn new(resource: &Resource, options: &ListOptions) -> Result<Self, Status> {
        let empty = Value::Object(Map::new());
        for requirement in options.fields.iter().flat_map(FieldSelector::requirements) {
            let field = &requirement.field;
            if select_field(resource, &empty, field).is_none() {
                return Err(Status::bad_request(format!("field label not supported: {field}")));
            }
        }
        Ok(Self { labels: options.labels.clone(), fields: options.fields.clone(), resource: resource.clone() })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_none() && self.fields.is_none()
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.labels.as_ref().is_none_or(|labels| labels.matches(object.labels()))
            && self
                .fields
                .as_ref()
                .is_none_or(|fields| fields.matches(|field| select_field(&self.resource, object, field)))
    }

    /// Whether [`Selection::may_match`] is the last word: nothing but labels, name and namespace is asked for.
    pub fn is_decided_by_metadata(&self) -> bool {
        self.fields.as_ref().is_none_or(|fields| {
            fields.requirements().all(|r| matches!(r.field.as_str(), "metadata.name" | "metadata.namespace"))
        })
    }

    /// A cheaper look at the stored form, without decoding what is not asked for.
    pub fn may_match(&self, key: &[u8], stored: &[u8], namespaced: bool) -> bool {
        if let Some(fields) = &self.fields {
            let Some((namespace, name)) = key::split(key, namespaced) else { return false };
            let known = fields.requirements().all(|r| match r.field.as_str() {
                "metadata.name" => (r.value == name) == r.equal,
                "metadata.namespace" => (r.value == namespace) == r.equal,
                _ => true,
            });
            if !known {
                return false;
            }
        }
        let Some(labels) = &self.labels else { return true };
        match serde_json::from_slice::<Head>(stored) {
            Ok(head) => labels.matches(head.metadata.labels.as_ref()),
            Err(_) => false,
        }
    }
}

#[derive(Deserialize)]
struct Head {
    metadata: HeadMeta,
}

#[derive(Deserialize)]
struct HeadMeta {
    #[serde(default)]
    labels: Option<Map<String, Value>>,
}
