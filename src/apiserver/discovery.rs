//! What is served: `/api`, `/apis` and below, plain and aggregated. All of it is read off the catalog.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use mussel_api::resource::{Resource, Subresource};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256, Sha512};

use crate::Context;
use crate::catalog::Catalog;
use crate::handler::{Body, Response};
use crate::routes::{json_response, with_type};

type Rows = Vec<std::sync::Arc<Resource>>;

/// Answers a path that begins with `api` or `apis`; `None` when it names nothing served.
pub fn answer(context: &Context, path: &str, headers: &HeaderMap) -> Option<Response> {
    let parts: Vec<&str> = path.split('/').collect();
    let rows = context.catalog.all();
    match parts.as_slice() {
        ["api"] | ["apis"] => {
            let core = parts[0] == "api";
            if let Some(version) = aggregated_version(headers) {
                return Some(aggregated(&rows, core, version, headers));
            }
            if !core {
                let groups: Vec<Value> = groups(&rows).into_iter().map(|g| group(&rows, g, true)).collect();
                return Some(json_response(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})));
            }
            let address = format!("{}:{}", context.config.advertise_address, context.config.secure_port);
            Some(json_response(&json!({
                "kind": "APIVersions",
                "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
            })))
        }
        ["api", version] => resource_list(&rows, "", version),
        ["apis", name] => groups(&rows).contains(name).then(|| json_response(&group(&rows, name, false))),
        ["apis", group, version] => resource_list(&rows, group, version),
        _ => None,
    }
}

/// The named groups, in order.
fn groups(rows: &Rows) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| !row.group.is_empty()) {
        if !names.contains(&&*row.group) {
            names.push(&row.group);
        }
    }
    names
}

/// The versions of a group, the preferred one first.
fn versions<'a>(rows: &'a Rows, group: &str) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| row.group == group) {
        if !names.contains(&&*row.version) {
            names.push(&row.version);
        }
    }
    names.sort_by_key(|version| std::cmp::Reverse(priority(version)));
    names
}

/// Upstream's order of versions: stable before beta before alpha, larger numbers first.
fn priority(version: &str) -> (u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let end = digits(rest);
    let major = rest[..end].parse().unwrap_or(0);
    let tail = &rest[end..];
    let minor = |text: &str| text.parse().unwrap_or(0);
    match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
        _ if tail.is_empty() => (3, major, 0),
        (Some(number), _) => (2, major, minor(number)),
        (_, Some(number)) => (1, major, minor(number)),
        _ => (0, 0, 0),
    }
}

fn group(rows: &Rows, name: &str, in_list: bool) -> Value {
    let versions: Vec<Value> = versions(rows, name)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    let mut object = json!({"name": name, "versions": versions, "preferredVersion": preferred});
    if !in_list {
        object["kind"] = "APIGroup".into();
        object["apiVersion"] = "v1".into();
    }
    object
}

fn resource_list(rows: &Rows, group: &str, version: &str) -> Option<Response> {
    let mut resources: Vec<Value> = Vec::new();
    for row in rows.iter().filter(|row| row.group == group && row.version == version) {
        let mut object = json!({
            "name": row.plural,
            "singularName": row.singular,
            "namespaced": row.namespaced,
            "kind": row.kind,
            "verbs": row.verbs,
        });
        optional_lists(row, &mut object);
        if row.verbs.contains(&"list") {
            object["storageVersionHash"] = storage_version_hash(row).into();
        }
        resources.push(object);
        for sub in row.subresources.iter() {
            let (sub_group, sub_version, kind) = response_kind(row, sub);
            let mut object = json!({
                "name": format!("{}/{}", row.plural, sub.name),
                "singularName": "",
                "namespaced": row.namespaced,
                "kind": kind,
                "verbs": sub.verbs,
            });
            if (sub_group, sub_version) != (&*row.group, &*row.version) {
                object["group"] = sub_group.into();
                object["version"] = sub_version.into();
            }
            resources.push(object);
        }
    }
    if resources.is_empty() {
        return None;
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(json_response(&json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    })))
}

fn optional_lists(row: &Resource, object: &mut Value) {
    if !row.short_names.is_empty() {
        object["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        object["categories"] = json!(row.categories);
    }
}

fn response_kind<'a>(row: &'a Resource, sub: &'a Subresource) -> (&'a str, &'a str, &'a str) {
    sub.kind.unwrap_or((&row.group, &row.version, &row.kind))
}

/// Changes when the version that objects are stored in changes.
fn storage_version_hash(row: &Resource) -> String {
    let (group, version) = row.storage_version();
    let digest = Sha256::digest(format!("{group}/{version}/{}", row.kind));
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &digest[..8])
}

/// `v2` or `v2beta1` when the client asks for the aggregated form before the plain one.
fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for media in values.flat_map(|list| list.split(',')) {
        let mut parts = media.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let parameters: Vec<&str> = parts.collect();
        if kind == "application/json" || kind == "*/*" || kind == "application/*" {
            if !parameters.contains(&"as=APIGroupDiscoveryList") {
                if parameters.iter().any(|p| p.starts_with("as=")) {
                    continue;
                }
                return None;
            }
            if parameters.contains(&"g=apidiscovery.k8s.io") {
                for version in ["v2", "v2beta1"] {
                    if parameters.iter().any(|p| p.strip_prefix("v=") == Some(version)) {
                        return Some(version);
                    }
                }
            }
        }
    }
    None
}

fn aggregated(rows: &Rows, core: bool, version: &str, headers: &HeaderMap) -> Response {
    let names = if core { vec![""] } else { groups(rows) };
    let items: Vec<Value> = names.into_iter().map(|name| aggregated_group(rows, name)).collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let body = list.to_string();
    let digest: String = Sha512::digest(body.as_bytes()).iter().map(|byte| format!("{byte:02X}")).collect();
    let etag = format!("\"{digest}\"");
    let unchanged = headers.get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == etag.as_bytes());
    let mut response = if unchanged {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let kind = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        with_type(
            Body::from(body),
            HeaderValue::from_str(&kind).unwrap_or(HeaderValue::from_static("application/json")),
        )
    };
    if let Ok(value) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn aggregated_group(rows: &Rows, name: &str) -> Value {
    let versions: Vec<Value> = versions(rows, name)
        .into_iter()
        .map(|version| {
            let resources: Vec<Value> = rows
                .iter()
                .filter(|row| row.group == name && row.version == version)
                .map(|row| aggregated_resource(row))
                .collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let mut metadata = Map::new();
    if !name.is_empty() {
        metadata.insert("name".to_owned(), name.into());
    }
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(row: &Resource) -> Value {
    let kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let mut object = json!({
        "resource": row.plural,
        "responseKind": kind((&row.group, &row.version, &row.kind)),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    optional_lists(row, &mut object);
    if !row.subresources.is_empty() {
        object["subresources"] = row
            .subresources
            .iter()
            .map(|sub| {
                json!({
                    "subresource": sub.name,
                    "responseKind": kind(response_kind(row, sub)),
                    "verbs": sub.verbs,
                })
            })
            .collect();
    }
    object
}

/// What `/` lists.
pub fn paths(catalog: &Catalog) -> Vec<String> {
    let rows = catalog.all();
    let mut paths: Vec<String> =
        ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis"].map(str::to_owned).to_vec();
    for group in groups(&rows) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions(&rows, group).into_iter().map(|version| format!("/apis/{group}/{version}")));
    }
    let rest =
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"];
    paths.extend(rest.map(str::to_owned));
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_header_picks_the_form() {
        let table = [
            ("application/json", None),
            ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json", Some("v2")),
            ("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList", Some("v2beta1")),
            (
                "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                None,
            ),
            ("", None),
        ];
        for (accept, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(aggregated_version(&headers), expected, "{accept}");
        }
    }

    #[test]
    fn stable_versions_come_first() {
        let mut versions = ["v1beta1", "v2", "v1", "v2alpha1", "other"];
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(versions, ["v2", "v1", "v1beta1", "v2alpha1", "other"]);
    }
}
