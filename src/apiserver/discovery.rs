//! What is served: `/api`, `/apis` and below, plain and aggregated. All of it is read off the catalog, and of what extension
//! servers say of themselves.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use mussel_api::resource::{Resource, Subresource};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

use crate::Context;
use crate::aggregator;
use crate::aggregator::documents::{self, Extension};
use crate::handler::{Body, Response};
use crate::routes::{json_response, with_type};

type Rows = Vec<std::sync::Arc<Resource>>;

/// Answers a path that begins with `api` or `apis`; `None` when it names nothing served here.
pub async fn answer(context: &Context, path: &str, headers: &HeaderMap) -> Option<Response> {
    let parts: Vec<&str> = path.split('/').collect();
    let rows = context.catalog.all();
    match parts.as_slice() {
        ["api"] | ["apis"] => {
            let core = parts[0] == "api";
            if let Some(version) = aggregated_version(headers) {
                return Some(aggregated(context, &rows, core, version, headers).await);
            }
            if !core {
                let groups: Vec<Value> = groups(context, &rows).iter().map(|group| group.plain(true)).collect();
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
        ["apis", name] => {
            let groups = groups(context, &rows);
            groups.iter().find(|group| group.name == *name).map(|group| json_response(&group.plain(false)))
        }
        ["apis", group, version] => resource_list(&rows, group, version),
        _ => None,
    }
}

/// A named group: who serves which of its versions does not matter here.
struct Group {
    name: String,
    /// The preferred one first.
    versions: Vec<String>,
}

/// The named groups, in order: by the priorities that their APIServices have.
fn groups(context: &Context, rows: &Rows) -> Vec<Group> {
    let table = context.aggregator.table();
    let mut served: BTreeMap<(&str, &str), (i64, i64)> = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.group.is_empty()) {
        served.entry((&row.group, &row.version)).or_insert_with(|| {
            let told = table.get(&format!("{}.{}", row.version, row.group));
            told.map_or_else(
                || aggregator::priorities(&row.group, &row.version),
                |service| (service.group_priority, service.version_priority),
            )
        });
    }
    for service in table.values().filter(|service| service.is_elsewhere()) {
        let priorities = (service.group_priority, service.version_priority);
        served.insert((&service.group, &service.version), priorities);
    }
    in_order(served)
}

/// By priorities of group and version, larger first; equal ones by name, and by what the names of versions say.
fn in_order(served: BTreeMap<(&str, &str), (i64, i64)>) -> Vec<Group> {
    let mut of_groups: BTreeMap<&str, (i64, Vec<(i64, &str)>)> = BTreeMap::new();
    for ((group, version), (of_group, of_version)) in served {
        let entry = of_groups.entry(group).or_default();
        entry.0 = entry.0.max(of_group);
        entry.1.push((of_version, version));
    }
    let mut in_order: Vec<_> = of_groups.into_iter().collect();
    in_order.sort_by_key(|(_, (of_group, _))| Reverse(*of_group));
    let group = |(name, (_, mut versions)): (&str, (i64, Vec<(i64, &str)>))| {
        versions.sort_by_key(|(of_version, version)| Reverse((*of_version, priority(version))));
        Group { name: name.to_owned(), versions: versions.into_iter().map(|(_, name)| name.to_owned()).collect() }
    };
    in_order.into_iter().map(group).collect()
}

impl Group {
    fn plain(&self, in_list: bool) -> Value {
        let name = &self.name;
        let versions: Vec<Value> = self
            .versions
            .iter()
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

async fn aggregated(context: &Context, rows: &Rows, core: bool, version: &str, headers: &HeaderMap) -> Response {
    let items: Vec<Value> = if core {
        vec![json!({"metadata": {}, "versions": [aggregated_version_of(rows, "", "v1")]})]
    } else {
        let elsewhere = documents::discovery(context).await;
        let version = |group: &str, version: &str| {
            let mut extensions = elsewhere.iter();
            let of = |e: &&Extension| e.service.group == group && e.service.version == version;
            match extensions.find(of) {
                Some(extension) => aggregated_extension(extension),
                None => aggregated_version_of(rows, group, version),
            }
        };
        let item = |group: &Group| {
            let versions: Vec<Value> = group.versions.iter().map(|name| version(&group.name, name)).collect();
            json!({"metadata": {"name": group.name}, "versions": versions})
        };
        groups(context, rows).iter().map(item).collect()
    };
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

fn aggregated_version_of(rows: &Rows, group: &str, version: &str) -> Value {
    let of_version = rows.iter().filter(|row| row.group == group && row.version == version);
    let resources: Vec<Value> = of_version.map(|row| aggregated_resource(row)).collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_extension(extension: &Extension) -> Value {
    let service = &extension.service;
    let resources = from_plain(&service.group, &service.version, &extension.resources);
    json!({"version": service.version, "resources": resources,
        "freshness": if extension.current { "Current" } else { "Stale" }})
}

/// The resources of an `APIResourceList` as the aggregated form has them.
fn from_plain(group: &str, version: &str, resources: &[Value]) -> Vec<Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = |resource: &Value| {
        let or = |field: &str, other: &str| match resource[field].as_str() {
            Some(own) if !own.is_empty() => own.to_owned(),
            _ => other.to_owned(),
        };
        json!({"group": or("group", group), "version": or("version", version), "kind": resource["kind"]})
    };
    let mut found: Vec<Value> = Vec::new();
    for resource in resources.iter().filter(|resource| !text(&resource["name"]).contains('/')) {
        let mut object = json!({
            "resource": resource["name"],
            "responseKind": kind(resource),
            "scope": if resource["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "singularResource": text(&resource["singularName"]),
            "verbs": resource["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if resource[field].is_array() {
                object[field] = resource[field].clone();
            }
        }
        found.push(object);
    }
    for resource in resources {
        let name = text(&resource["name"]);
        let Some((parent, sub)) = name.split_once('/') else { continue };
        let Some(parent) = found.iter_mut().find(|object| object["resource"] == *parent) else { continue };
        let sub = json!({"subresource": sub, "responseKind": kind(resource), "verbs": resource["verbs"]});
        match parent["subresources"].as_array_mut() {
            Some(list) => list.push(sub),
            None => parent["subresources"] = json!([sub]),
        }
    }
    found
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
pub fn paths(context: &Context) -> Vec<String> {
    let mut paths: Vec<String> =
        ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis"].map(str::to_owned).to_vec();
    for Group { name, versions } in groups(context, &context.catalog.all()) {
        paths.push(format!("/apis/{name}"));
        paths.extend(versions.into_iter().map(|version| format!("/apis/{name}/{version}")));
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
    fn groups_and_versions_have_their_order() {
        let served = BTreeMap::from([
            (("apps", "v1"), (17_800, 15)),
            (("b.example.com", "v1alpha1"), (1_000, 100)),
            (("b.example.com", "v1"), (1_000, 100)),
            (("a.example.com", "v1"), (1_000, 100)),
            (("autoscaling", "v1"), (17_500, 15)),
            (("autoscaling", "v2"), (17_500, 30)),
            (("first.example.com", "v1"), (19_000, 1)),
        ]);
        let seen: Vec<String> =
            in_order(served).into_iter().map(|group| format!("{} {}", group.name, group.versions.join(","))).collect();
        assert_eq!(
            seen,
            ["first.example.com v1", "apps v1", "autoscaling v2,v1", "a.example.com v1", "b.example.com v1,v1alpha1"]
        );
    }

    #[test]
    fn plain_lists_become_aggregated() {
        let plain = json!([
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"],
                "shortNames": ["fl"]},
            {"name": "flunders/scale", "namespaced": true, "group": "autoscaling", "version": "v1", "kind": "Scale",
                "verbs": ["update"]},
        ]);
        let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
        assert_eq!(
            from_plain("g", "v1", plain.as_array().unwrap()),
            [json!({"resource": "flunders", "responseKind": kind("g", "v1", "Flunder"), "scope": "Namespaced",
                "singularResource": "flunder", "verbs": ["get"], "shortNames": ["fl"], "subresources": [
                    {"subresource": "scale", "responseKind": kind("autoscaling", "v1", "Scale"), "verbs": ["update"]}]})]
        );
    }

    #[test]
    fn stable_versions_come_first() {
        let mut versions = ["v1beta1", "v2", "v1", "v2alpha1", "other"];
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(versions, ["v2", "v1", "v1beta1", "v2alpha1", "other"]);
    }
}
