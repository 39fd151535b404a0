//! A structural schema: `JSONSchemaProps` of a CRD as the functions of this module walk it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Pattern;

/// Schemas nested deeper are refused.
pub const DEPTH_MAX: usize = 100;

/// Why a schema cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropsError {
    #[error("{0}")]
    Shape(String),
    #[error("schema is nested more than {DEPTH_MAX} levels deep")]
    Depth,
}

/// One node of a schema.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Props {
    #[serde(rename = "type")]
    pub ty: String,
    pub format: String,
    /// Whether there is a title; what it says is of concern to documents only, and long.
    #[serde(rename = "title", deserialize_with = "is_text")]
    pub has_title: bool,
    #[serde(rename = "description", deserialize_with = "is_text")]
    pub has_description: bool,
    /// An explicit `null` is a default too.
    #[serde(deserialize_with = "some")]
    pub default: Option<Value>,
    pub nullable: bool,
    pub properties: BTreeMap<String, Props>,
    pub additional_properties: Option<Additional>,
    pub items: Option<Box<Props>>,
    pub required: Vec<String>,
    #[serde(rename = "enum")]
    pub allowed: Vec<Value>,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<f64>,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: Option<Pattern>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub unique_items: bool,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    pub all_of: Vec<Props>,
    pub any_of: Vec<Props>,
    pub one_of: Vec<Props>,
    pub not: Option<Box<Props>>,
    #[serde(rename = "externalDocs", deserialize_with = "is_there")]
    pub has_external_docs: bool,
    #[serde(rename = "x-kubernetes-preserve-unknown-fields")]
    pub preserve_unknown: bool,
    #[serde(rename = "x-kubernetes-embedded-resource")]
    pub embedded: bool,
    #[serde(rename = "x-kubernetes-int-or-string")]
    pub int_or_string: bool,
    #[serde(rename = "x-kubernetes-list-type")]
    pub list_type: Option<String>,
    #[serde(rename = "x-kubernetes-list-map-keys")]
    pub list_map_keys: Vec<String>,
    #[serde(rename = "x-kubernetes-map-type")]
    pub map_type: Option<String>,
    #[serde(rename = "x-kubernetes-validations")]
    pub rules: Vec<Value>,
}

/// `additionalProperties`: what the values of a map look like.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Additional {
    Any(bool),
    Of(Box<Props>),
}

fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn is_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let text = Option::<Cow<'de, str>>::deserialize(deserializer)?;
    Ok(text.is_some_and(|text| !text.is_empty()))
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Option::<IgnoredAny>::deserialize(deserializer).map(|found| found.is_some())
}

impl Props {
    /// # Errors
    /// When a member is of the wrong type, or all of it too deep.
    pub fn parse(schema: &Value) -> Result<Self, PropsError> {
        if depth(schema, DEPTH_MAX * 2) > DEPTH_MAX * 2 {
            return Err(PropsError::Depth);
        }
        Self::deserialize(schema).map_err(|error| PropsError::Shape(error.to_string()))
    }

    pub fn property(&self, name: &str) -> Option<&Self> {
        self.properties.get(name)
    }

    /// The schema of a map's values.
    pub fn values(&self) -> Option<&Self> {
        match &self.additional_properties {
            Some(Additional::Of(props)) => Some(props),
            _ => None,
        }
    }

    /// Whether this node or one below has the quality.
    pub fn any(&self, quality: &impl Fn(&Self) -> bool) -> bool {
        quality(self)
            || self.properties.values().any(|props| props.any(quality))
            || self.values().is_some_and(|props| props.any(quality))
            || self.items.as_ref().is_some_and(|props| props.any(quality))
            || self.not.as_ref().is_some_and(|props| props.any(quality))
            || [&self.all_of, &self.any_of, &self.one_of].into_iter().flatten().any(|props| props.any(quality))
    }
}

/// How deep `value` is, counted to a little beyond `max`.
fn depth(value: &Value, max: usize) -> usize {
    let below = |values: &mut dyn Iterator<Item = &Value>| {
        let mut most = 0;
        for value in values {
            if max == 0 {
                return 1;
            }
            most = most.max(depth(value, max - 1));
        }
        most
    };
    match value {
        Value::Object(map) => 1 + below(&mut map.values()),
        Value::Array(list) => 1 + below(&mut list.iter()),
        _ => 0,
    }
}
