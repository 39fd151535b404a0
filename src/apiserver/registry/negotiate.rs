//! In which form an answer is wanted (`Accept`), and putting objects and lists into that form.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use mussel_api::object::ObjectExt;
use mussel_api::resource::Resource;
use mussel_api::table;
use serde_json::{Map, Value, json};

use crate::handler::{Body, Query, Response};
use crate::status::Status;

/// What the client wants to see of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    /// `as=PartialObjectMetadata` and `…List`.
    Metadata,
    /// `as=Table`.
    Table(IncludeObject),
}

/// What a Table's rows carry of their object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

/// The outcome of the negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub shape: Shape,
    pub yaml: bool,
}

impl Form {
    pub const JSON: Self = Self { shape: Shape::Object, yaml: false };

    /// Whether stored bytes can be sent as they are.
    pub fn is_plain(self) -> bool {
        self == Self::JSON
    }
}

/// The media types that there are answers in.
pub const ACCEPTED: [&str; 2] = ["application/json", "application/yaml"];

/// Picks the first form of the `Accept` header, by weight, that we can answer in.
pub fn negotiate(headers: &HeaderMap, query: &Query) -> Result<Form, Status> {
    let values: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = values.join(",");
    if accept.trim().is_empty() {
        return Ok(Form::JSON);
    }
    let mut clauses: Vec<(f32, &str)> = accept.split(',').map(|clause| (weight(clause), clause.trim())).collect();
    clauses.sort_by(|a, b| b.0.total_cmp(&a.0));
    let include = || match query.get("includeObject") {
        None | Some("" | "Metadata") => Ok(IncludeObject::Metadata),
        Some("None") => Ok(IncludeObject::None),
        Some("Object") => Ok(IncludeObject::Object),
        Some(other) => Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}"))),
    };
    for (_, clause) in clauses {
        let mut parts = clause.split(';').map(str::trim);
        let yaml = match parts.next() {
            Some("application/json" | "*/*" | "application/*") => false,
            Some("application/yaml") => true,
            _ => continue,
        };
        let (mut kind, mut group, mut version) = ("", "", "");
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => kind = value,
                Some(("g", value)) => group = value,
                Some(("v", value)) => version = value,
                _ => {}
            }
        }
        let shape = match (kind, group, version) {
            ("", _, _) => Shape::Object,
            ("Table", "meta.k8s.io", "v1") => Shape::Table(include()?),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => Shape::Metadata,
            _ => continue,
        };
        return Ok(Form { shape, yaml });
    }
    Err(Status::not_acceptable(&ACCEPTED))
}

fn weight(clause: &str) -> f32 {
    let q = clause.split(';').find_map(|part| part.trim().strip_prefix("q="));
    q.and_then(|q| q.parse().ok()).unwrap_or(1.0)
}

/// One object in the wanted shape.
pub fn shape_object(resource: &Resource, form: Form, object: Value) -> Value {
    match form.shape {
        Shape::Object => object,
        Shape::Metadata => partial(&object),
        Shape::Table(include) => {
            let metadata = json!({"resourceVersion": object.resource_version()});
            table_of(resource, metadata, std::slice::from_ref(&object), include, true)
        }
    }
}

/// An object's metadata alone.
pub fn partial(object: &Value) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// A list in the wanted shape. `metadata` is the list's.
pub fn shape_list(resource: &Resource, form: Form, metadata: Map<String, Value>, mut objects: Vec<Value>) -> Value {
    let metadata = Value::Object(metadata);
    match form.shape {
        Shape::Object => {
            // Custom objects keep theirs, as upstream's untyped ones do.
            for object in objects.iter_mut().filter(|_| resource.custom.is_none()) {
                if let Some(map) = object.as_object_mut() {
                    map.remove("apiVersion");
                    map.remove("kind");
                }
            }
            json!({"kind": resource.list_kind(), "apiVersion": resource.api_version(), "metadata": metadata,
                "items": objects})
        }
        Shape::Metadata => {
            let items: Vec<Value> = objects.iter().map(partial).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items})
        }
        Shape::Table(include) => table_of(resource, metadata, &objects, include, true),
    }
}

/// A Table of these objects. Watch events after the first leave the column definitions out.
pub fn table_of(
    resource: &Resource,
    metadata: Value,
    objects: &[Value],
    include: IncludeObject,
    columns: bool,
) -> Value {
    let now = jiff::Timestamp::now();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut row = Map::new();
            row.insert("cells".to_owned(), table::row(resource, object, now).into());
            match include {
                IncludeObject::None => {}
                IncludeObject::Metadata => {
                    row.insert("object".to_owned(), partial(object));
                }
                IncludeObject::Object => {
                    row.insert("object".to_owned(), object.clone());
                }
            }
            Value::Object(row)
        })
        .collect();
    let columns = if columns { table::columns(resource) } else { Value::Null };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}

/// The response that carries `value`.
pub fn respond(code: StatusCode, form: Form, value: &Value) -> Result<Response, Status> {
    if form.yaml {
        let text = serde_saphyr::to_string(value).map_err(Status::internal)?;
        return Ok(response(code, "application/yaml", text.into()));
    }
    let bytes = serde_json::to_vec(value).map_err(Status::internal)?;
    Ok(response(code, "application/json", bytes.into()))
}

/// A response of encoded bytes.
pub fn response(code: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str, query: &str) -> Result<Form, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        negotiate(&headers, &Query::parse(query)).map_err(|status| status.code)
    }

    #[test]
    fn the_first_form_we_know_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(form(table, "").unwrap().shape, Shape::Table(IncludeObject::Metadata));
        assert_eq!(form(table, "includeObject=Object").unwrap().shape, Shape::Table(IncludeObject::Object));
        assert_eq!(form(table, "includeObject=x"), Err(400));
        let proto = "application/vnd.kubernetes.protobuf";
        assert_eq!(form(proto, ""), Err(406));
        assert_eq!(form(&format!("{proto},application/json"), ""), Ok(Form::JSON));
        assert!(form("application/json;q=0.1,application/yaml", "").unwrap().yaml);
        assert_eq!(form("*/*", ""), Ok(Form::JSON));
        let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(form(metadata, "").unwrap().shape, Shape::Metadata);
    }
}
