//! The paths of a document and what can be done there.

use serde_json::{Map, Value, json};

use super::definitions::META;
use super::{Form, write};
use crate::resource::{self, Resource, Subresource};

const LIST: &[Param] = &[
    ("allowWatchBookmarks", "boolean", "Whether a watch may send BOOKMARK events."),
    ("continue", "string", "The token that the previous page ended with."),
    ("fieldSelector", "string", "Restricts the list by the fields of objects."),
    ("labelSelector", "string", "Restricts the list by the labels of objects."),
    ("limit", "integer", "The most objects to return at once."),
    ("resourceVersion", "string", "Constrains the versions that the answer may be served from."),
    ("resourceVersionMatch", "string", "How resourceVersion is applied to lists."),
    ("sendInitialEvents", "boolean", "Whether a watch starts with the objects that there are."),
    ("timeoutSeconds", "integer", "Ends the call after this time."),
    ("watch", "boolean", "Answers with a stream of changes."),
];
const WRITE: &[Param] = &[
    ("dryRun", "string", "Nothing is kept when this is All."),
    ("fieldManager", "string", "The name of the one who makes the change."),
    ("fieldValidation", "string", "What becomes of unknown and duplicate fields: Ignore, Warn or Strict."),
];
const FORCE: &[Param] = &[("force", "boolean", "Takes fields over from other managers, for apply.")];
const DELETE: &[Param] = &[
    ("dryRun", "string", "Nothing is kept when this is All."),
    ("gracePeriodSeconds", "integer", "The time before the object is deleted."),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Deletes an object that cannot be read, whatever that breaks.",
    ),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
];
const PRETTY: Param = ("pretty", "string", "Whether the output is for people to read.");
const BODY_TYPES: &[&str] = &["application/json", "application/yaml"];
const CUSTOM_PATCH_TYPES: &[&str] =
    &["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
const PATCH_TYPES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Name, type, description.
type Param = (&'static str, &'static str, &'static str);

struct Operation<'a> {
    method: &'static str,
    /// `list`, `post`, `connect`, …
    action: &'static str,
    id: String,
    kind: (&'a str, &'a str, &'a str),
    tag: String,
    parameters: Vec<Param>,
    body: Option<(String, &'static [&'static str])>,
    answer: Option<String>,
}

pub(super) fn write_paths(out: &mut Vec<u8>, form: Form, rows: &[&Resource]) {
    out.push(b'{');
    let mut first = true;
    for row in rows {
        for (path, operations) in paths(row) {
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            let item = path_item(form, &path, &operations);
            write(out, format_args!("{comma}{}:{item}", Value::from(path)));
        }
    }
    out.push(b'}');
}

fn paths(row: &Resource) -> Vec<(String, Vec<Operation<'_>>)> {
    let prefix = format!("/{}", super::v3_path(&row.group, &row.version));
    let scope = if row.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{prefix}{scope}/{}", row.plural);
    let item = format!("{collection}/{{name}}");
    let mut paths = vec![
        (collection, operations(row, &["list", "create", "deletecollection"], true)),
        (item.clone(), operations(row, &["get", "update", "patch", "delete"], true)),
    ];
    for sub in row.subresources.iter() {
        let path = format!("{item}/{}", sub.name);
        let of_sub = sub_operations(row, sub);
        if sub.name == "proxy" {
            let mut with_path = sub_operations(row, sub);
            with_path.iter_mut().for_each(|operation| operation.id.push_str("WithPath"));
            paths.push((format!("{path}/{{path}}"), with_path));
        }
        paths.push((path, of_sub));
    }
    if row.namespaced {
        paths.push((format!("{prefix}/{}", row.plural), operations(row, &["list"], false)));
    }
    paths.retain(|(_, operations)| !operations.is_empty());
    paths
}

fn operations<'a>(row: &'a Resource, verbs: &[&str], in_namespace: bool) -> Vec<Operation<'a>> {
    let schema = &*row.schema;
    let status = format!("{META}Status");
    let options = (format!("{META}DeleteOptions"), BODY_TYPES);
    let mut operations = Vec::new();
    for verb in verbs.iter().filter(|verb| row.verbs.contains(verb)) {
        let (method, action, parameters, body, answer) = match *verb {
            "list" => ("get", "list", LIST.to_vec(), None, format!("{schema}List")),
            "create" => ("post", "post", WRITE.to_vec(), Some((schema.to_owned(), BODY_TYPES)), schema.to_owned()),
            "deletecollection" => {
                let parameters = [&LIST[1..7], DELETE].concat();
                ("delete", "deletecollection", parameters, Some(options.clone()), status.clone())
            }
            "get" => ("get", "get", Vec::new(), None, schema.to_owned()),
            "update" => ("put", "put", WRITE.to_vec(), Some((schema.to_owned(), BODY_TYPES)), schema.to_owned()),
            "patch" => {
                let body = (format!("{META}Patch"), patch_types(row));
                ("patch", "patch", [WRITE, FORCE].concat(), Some(body), schema.to_owned())
            }
            _ => ("delete", "delete", DELETE.to_vec(), Some(options.clone()), status.clone()),
        };
        let scope = match (row.namespaced, in_namespace) {
            (true, true) => "Namespaced",
            _ => "",
        };
        let many = if action == "deletecollection" { "Collection" } else { "" };
        let suffix = if row.namespaced && !in_namespace { "ForAllNamespaces" } else { "" };
        let verb = match action {
            "get" => "read",
            "put" => "replace",
            "post" => "create",
            "deletecollection" => "delete",
            other => other,
        };
        operations.push(Operation {
            method,
            action,
            id: format!("{verb}{}{many}{scope}{}{suffix}", group_version(row), row.kind),
            kind: (&row.group, &row.version, &row.kind),
            tag: tag(row),
            parameters,
            body,
            answer: Some(answer),
        });
    }
    operations
}

fn sub_operations<'a>(row: &'a Resource, sub: &'a Subresource) -> Vec<Operation<'a>> {
    let kind = sub.kind.unwrap_or((&row.group, &row.version, &row.kind));
    let schema = match sub.kind {
        Some((group, version, kind)) => resource::schema_name(group, version, kind),
        None => row.schema.to_string(),
    };
    let connects = kind.2.ends_with("Options");
    let methods: &[&'static str] = match sub.name {
        "proxy" => &["get", "put", "post", "delete", "options", "head", "patch"],
        _ if connects => &["get", "post"],
        _ => &["get", "put", "patch", "post"],
    };
    let verb_of = |method: &str| match method {
        "put" => "update",
        "post" => "create",
        "patch" => "patch",
        _ => "get",
    };
    let scope = if row.namespaced { "Namespaced" } else { "" };
    let mut name = sub.name.to_owned();
    name[..1].make_ascii_uppercase();
    let methods = methods.iter().filter(|method| connects || sub.verbs.contains(&verb_of(method)));
    methods
        .map(|method| {
            let (parameters, body) = match *method {
                _ if connects => (Vec::new(), None),
                "put" | "post" => (WRITE.to_vec(), Some((schema.clone(), BODY_TYPES))),
                "patch" => ([WRITE, FORCE].concat(), Some((format!("{META}Patch"), patch_types(row)))),
                _ => (Vec::new(), None),
            };
            let verb = match *method {
                _ if connects => "connect".to_owned(),
                "get" => "read".to_owned(),
                "put" => "replace".to_owned(),
                "post" => "create".to_owned(),
                other => other.to_owned(),
            };
            let by = if connects { capital(method) } else { String::new() };
            Operation {
                method,
                action: if connects { "connect" } else { method },
                id: format!("{verb}{}{by}{scope}{}{name}", group_version(row), row.kind),
                kind,
                tag: tag(row),
                parameters,
                body,
                answer: (!connects && sub.name != "log").then(|| schema.clone()),
            }
        })
        .collect()
}

fn patch_types(row: &Resource) -> &'static [&'static str] {
    if row.custom.is_some() { CUSTOM_PATCH_TYPES } else { PATCH_TYPES }
}

/// `CoreV1`, `RbacAuthorizationV1`
fn group_version(row: &Resource) -> String {
    let group = if row.group.is_empty() { "core" } else { row.group.trim_end_matches(".k8s.io") };
    group.split('.').chain([&*row.version]).map(capital).collect()
}

fn tag(row: &Resource) -> String {
    let group = if row.group.is_empty() { "core" } else { row.group.trim_end_matches(".k8s.io") };
    let group: String =
        group.split('.').enumerate().map(|(i, part)| if i == 0 { part.to_owned() } else { capital(part) }).collect();
    format!("{group}_{}", row.version)
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

fn path_item(form: Form, path: &str, operations: &[Operation<'_>]) -> Value {
    let mut item = Map::new();
    let in_path = ["namespace", "name", "path"].into_iter().filter(|name| path.contains(&format!("{{{name}}}")));
    let mut parameters: Vec<Value> =
        in_path.map(|name| parameter(form, "path", &(name, "string", "A part of the path."))).collect();
    parameters.push(parameter(form, "query", &PRETTY));
    item.insert("parameters".to_owned(), parameters.into());
    for operation in operations {
        item.insert(operation.method.to_owned(), operation_object(form, operation));
    }
    Value::Object(item)
}

fn operation_object(form: Form, operation: &Operation<'_>) -> Value {
    let (group, version, kind) = operation.kind;
    let mut parameters: Vec<Value> = operation.parameters.iter().map(|p| parameter(form, "query", p)).collect();
    let mut object = json!({
        "description": format!("{} {kind}", operation.action),
        "operationId": operation.id,
        "tags": [operation.tag],
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": {"group": group, "kind": kind, "version": version},
    });
    let answer = operation.answer.as_ref().map(|name| schema(form, name)).unwrap_or(json!({"type": "string"}));
    let answers: &[(&str, &str)] = match operation.action {
        "post" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
        "put" | "patch" => &[("200", "OK"), ("201", "Created")],
        "delete" => &[("200", "OK"), ("202", "Accepted")],
        _ => &[("200", "OK")],
    };
    let mut responses = Map::new();
    for (code, text) in answers {
        let response = match form {
            Form::V2 => json!({"description": text, "schema": answer}),
            Form::V3 => {
                let content: Map<_, _> =
                    BODY_TYPES.iter().map(|ty| ((*ty).to_owned(), json!({"schema": answer}))).collect();
                json!({"description": text, "content": content})
            }
        };
        responses.insert((*code).to_owned(), response);
    }
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    object["responses"] = Value::Object(responses);
    if let Some((name, types)) = &operation.body {
        let required = !matches!(operation.action, "delete" | "deletecollection");
        let body = schema(form, name);
        match form {
            Form::V2 => {
                object["consumes"] = json!(if required { types } else { &["*/*"][..] });
                parameters.push(json!({"in": "body", "name": "body", "required": required, "schema": body}));
            }
            Form::V3 => {
                let content: Map<_, _> = types.iter().map(|ty| ((*ty).to_owned(), json!({"schema": body}))).collect();
                object["requestBody"] = json!({"content": content, "required": required});
            }
        }
    }
    if form == Form::V2 {
        object["produces"] = json!(BODY_TYPES);
        object["schemes"] = json!(["https"]);
    }
    object["parameters"] = parameters.into();
    object
}

fn parameter(form: Form, place: &str, (name, ty, description): &Param) -> Value {
    let mut object = json!({"name": name, "in": place, "description": description});
    match form {
        Form::V2 => {
            object["type"] = (*ty).into();
            object["uniqueItems"] = true.into();
        }
        Form::V3 => object["schema"] = json!({"type": ty, "uniqueItems": true}),
    }
    if place == "path" {
        object["required"] = true.into();
    }
    object
}

fn schema(form: Form, name: &str) -> Value {
    let prefix = match form {
        Form::V2 => "#/definitions/",
        Form::V3 => "#/components/schemas/",
    };
    json!({"$ref": format!("{prefix}{name}")})
}
