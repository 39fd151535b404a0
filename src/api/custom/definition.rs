//! A CRD, read.

use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::Value;

use super::{Column, Compiled, JsonPath, Lazy, Props, ScalePaths};
use crate::object::ObjectExt;
use crate::schema::Schema;

/// What one state of a CRD's spec says.
pub struct Definition {
    /// `widgets.example.com`: the name of the CRD, and the resource as storage keys name it.
    pub name: String,
    pub group: String,
    pub namespaced: bool,
    /// As accepted: the names in force.
    pub names: Names,
    pub versions: Vec<ServedVersion>,
    /// Of the version that objects are stored in.
    pub storage: usize,
    pub conversion: Conversion,
    /// The revision at which this spec was seen first: what was written later was written by it.
    pub since: u64,
    /// Tells one spec from another.
    pub fingerprint: u64,
    /// The CRD as it is stored: the schemas are read from it when they are needed.
    source: Bytes,
}

/// What a kind is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
}

/// One of `spec.versions`, served or not.
pub struct ServedVersion {
    pub name: String,
    /// `example.com/v1`
    pub api_version: String,
    pub served: bool,
    /// What clients are warned of, when the version is deprecated.
    pub deprecation: Option<String>,
    pub has_status: bool,
    pub scale: Option<ScalePaths>,
    pub columns: Vec<Column>,
    /// JSON paths: `.spec.color`.
    pub selectable: Vec<String>,
    /// How a stored object of this version begins.
    pub(super) stored_prefix: String,
    compiled: Lazy,
}

/// How an object of one version becomes one of another.
#[derive(Clone, Debug, PartialEq)]
pub enum Conversion {
    /// Only `apiVersion` changes.
    None,
    Webhook(WebhookConversion),
}

#[derive(Clone, Debug, PartialEq)]
pub struct WebhookConversion {
    /// `WebhookClientConfig`
    pub client_config: Value,
    pub review_versions: Vec<String>,
}

/// Why a stored CRD cannot be served; its validation should have seen to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    #[error("is not JSON: {0}")]
    Json(String),
    #[error("has no storage version")]
    NoStorageVersion,
}

impl Names {
    /// Of `spec.names` or `status.acceptedNames`.
    pub fn of(value: &Value) -> Self {
        let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
        let list = |field: &str| {
            value[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            plural: text("plural"),
            singular: text("singular"),
            kind: text("kind"),
            list_kind: text("listKind"),
            short_names: list("shortNames"),
            categories: list("categories"),
        }
    }
}

impl Definition {
    /// Reads a stored CRD. `since` is the revision from which on objects are written by it.
    ///
    /// # Errors
    /// See [`DefinitionError`].
    pub fn new(source: Bytes, since: u64) -> Result<Self, DefinitionError> {
        let crd = serde_json::from_slice(&source).map_err(|error| DefinitionError::Json(error.to_string()))?;
        Self::of(&crd, source, since)
    }

    /// The same of a CRD that has been read from `source` already.
    ///
    /// # Errors
    /// See [`DefinitionError`].
    pub fn of(crd: &Value, source: Bytes, since: u64) -> Result<Self, DefinitionError> {
        let spec = &crd["spec"];
        let group = crd.str_at("spec.group").to_owned();
        let names = Names::of(&crd["status"]["acceptedNames"]);
        let list = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let storage = list.iter().position(|version| version["storage"] == true);
        let storage = storage.ok_or(DefinitionError::NoStorageVersion)?;
        let kind = crd.str_at("spec.names.kind");
        let versions = list.iter().map(|version| ServedVersion::new(&group, kind, version)).collect();
        let conversion = match spec["conversion"]["strategy"].as_str() {
            Some("Webhook") => {
                let webhook = &spec["conversion"]["webhook"];
                let versions = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
                Conversion::Webhook(WebhookConversion {
                    client_config: webhook["clientConfig"].clone(),
                    review_versions: versions.filter_map(Value::as_str).map(str::to_owned).collect(),
                })
            }
            _ => Conversion::None,
        };
        let namespaced = crd.str_at("spec.scope") == "Namespaced";
        let name = crd.name().to_owned();
        let fingerprint = fingerprint(crd);
        Ok(Self { name, group, namespaced, names, versions, storage, conversion, since, fingerprint, source })
    }

    /// The `openAPIV3Schema` of a version, as the CRD has it.
    pub fn schema(&self, index: usize) -> Value {
        // Read once already.
        let mut crd: Value = serde_json::from_slice(&self.source).unwrap_or_default();
        let schema = crd.pointer_mut(&format!("/spec/versions/{index}/schema/openAPIV3Schema"));
        schema.map(Value::take).unwrap_or_default()
    }

    /// The schema of a version, parsed.
    pub fn compiled(&self, index: usize) -> &Compiled {
        self.versions[index].compiled.get(|| {
            let schema = self.schema(index);
            // A schema that cannot be read says nothing, and so nothing is kept but metadata. Validation does not let one in.
            let props = Props::parse(&schema).unwrap_or_default();
            Compiled { props, schema: Schema::custom(&schema), rules: OnceLock::new() }
        })
    }
}

impl ServedVersion {
    fn new(group: &str, kind: &str, version: &Value) -> Self {
        let name = version["name"].as_str().unwrap_or_default().to_owned();
        let api_version = format!("{group}/{name}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let deprecation = (version["deprecated"] == true).then(|| match version["deprecationWarning"].as_str() {
            Some(warning) => warning.to_owned(),
            None => format!("{api_version} {kind} is deprecated"),
        });
        let subresources = &version["subresources"];
        let scale = subresources["scale"].is_object().then(|| {
            let scale = &subresources["scale"];
            ScalePaths {
                spec_replicas: text(&scale["specReplicasPath"]),
                status_replicas: text(&scale["statusReplicasPath"]),
                label_selector: scale["labelSelectorPath"].as_str().filter(|path| !path.is_empty()).map(str::to_owned),
            }
        });
        let columns = version["additionalPrinterColumns"].as_array().into_iter().flatten().filter_map(|column| {
            Some(Column {
                name: text(&column["name"]),
                ty: text(&column["type"]),
                format: text(&column["format"]),
                description: match column["description"].as_str() {
                    None | Some("") => {
                        let path = text(&column["jsonPath"]);
                        format!("Custom resource definition column (in JSONPath format): {path}")
                    }
                    Some(text) => text.to_owned(),
                },
                priority: column["priority"].as_i64().unwrap_or_default(),
                path: JsonPath::parse(column["jsonPath"].as_str()?).ok()?,
            })
        });
        let selectable = version["selectableFields"].as_array().into_iter().flatten();
        Self {
            stored_prefix: format!("{{\"apiVersion\":{},", Value::from(api_version.as_str())),
            served: version["served"] == true,
            has_status: subresources["status"].is_object(),
            columns: columns.collect(),
            selectable: selectable.map(|field| text(&field["jsonPath"])).collect(),
            name,
            api_version,
            deprecation,
            scale,
            compiled: Lazy::default(),
        }
    }
}

/// FNV-1a over what objects depend on: the spec and the names in force.
fn fingerprint(crd: &Value) -> u64 {
    let text = format!("{}{}", crd["spec"], crd["status"]["acceptedNames"]);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
