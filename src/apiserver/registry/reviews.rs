//! Resources that are answered and not stored: reviews of tokens and of access, and component statuses.

use std::collections::BTreeMap;

use http::StatusCode;
use mussel_api::field::{FieldError, Path};
use mussel_api::object::ObjectExt;
use mussel_api::resource::Resource;
use mussel_store::Freshness;
use serde_json::{Map, Value, json};

use super::Registry;
use super::body::{self, Expected};
use super::call::Call;
use super::negotiate::{self, Shape};
use super::options::{WriteOptions, write_options};
use super::passing::Passing;
use super::view::View;
use super::write::now;
use crate::admission::Operation;
use crate::authz::Attributes;
use crate::handler::{Request, Response, UserInfo};
use crate::status::Status;

/// A kind of review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Review {
    Token,
    SelfSubject,
    SubjectAccess,
    LocalSubjectAccess,
    SelfSubjectAccess,
    SelfSubjectRules,
}

impl Review {
    pub fn of(resource: &Resource) -> Option<Self> {
        Some(match (&*resource.group, &*resource.plural) {
            ("authentication.k8s.io", "tokenreviews") => Self::Token,
            ("authentication.k8s.io", "selfsubjectreviews") => Self::SelfSubject,
            ("authorization.k8s.io", "subjectaccessreviews") => Self::SubjectAccess,
            ("authorization.k8s.io", "localsubjectaccessreviews") => Self::LocalSubjectAccess,
            ("authorization.k8s.io", "selfsubjectaccessreviews") => Self::SelfSubjectAccess,
            ("authorization.k8s.io", "selfsubjectrulesreviews") => Self::SelfSubjectRules,
            _ => return None,
        })
    }

    pub async fn answer(self, registry: &Registry, resource: &Resource, request: &Request) -> Result<Response, Status> {
        let form = negotiate::negotiate(&request.headers, &request.query)?;
        // There is nothing to see in a review but itself.
        if form.shape != Shape::Object {
            return Err(Status::not_acceptable(&negotiate::ACCEPTED));
        }
        let options = WriteOptions::of(request, "CreateOptions")?;
        let format = body::format(&request.headers)?;
        let schema = registry.schema(resource)?;
        let expected =
            Expected { api_version: resource.api_version(), kind: &resource.kind, schema: &schema, custom: None };
        let mut review = body::decode(&request.body, format, &expected, options.strictness, &request.warnings)?;
        review.meta_mut().insert("creationTimestamp".to_owned(), Value::Null);
        let view = View::new(registry.context.store.snapshot(Freshness::Local).await?);
        let passing = Passing {
            operation: Operation::Create,
            resource,
            subresource: "",
            namespace: &request.info.namespace,
            name: "",
            user: &request.user,
            dry_run: options.dry_run,
            warnings: &request.warnings,
            schema: Some(&schema),
            options: &|| write_options(&request.query, "CreateOptions"),
        };
        registry.pass(&passing, &view, &mut review).await?;
        let invalid = |path: Path, why: &str| {
            let error = FieldError::required(&path, why);
            Status::invalid(&resource.group, &resource.kind, review.name(), &vec![error])
        };
        let context = &registry.context;
        let spec = &review["spec"];
        let status = match self {
            Self::Token => {
                let token = spec["token"].as_str().unwrap_or_default();
                if token.is_empty() {
                    return Err(invalid(Path::new("spec").child("token"), "must be specified"));
                }
                let audiences = strings(&spec["audiences"]);
                match context.authenticator.authenticate_token(token, &audiences).await {
                    Ok(Some(owner)) => {
                        json!({"authenticated": true, "user": owner.user, "audiences": owner.audiences})
                    }
                    Ok(None) => json!({"user": {}}),
                    Err(error) => json!({"user": {}, "error": error.to_string()}),
                }
            }
            Self::SelfSubject => json!({"userInfo": request.user}),
            Self::SelfSubjectAccess => {
                let asks = attributes(&request.user, spec).ok_or_else(|| {
                    invalid(
                        Path::new("spec").child("resourceAttributes"),
                        "exactly one of nonResourceAttributes or resourceAttributes must be specified",
                    )
                })?;
                decide(registry, &asks).await
            }
            Self::SubjectAccess | Self::LocalSubjectAccess => {
                let user = subject(spec);
                if user.name.is_empty() && user.groups.is_empty() {
                    return Err(invalid(
                        Path::new("spec").child("user"),
                        "at least one of user or group must be specified",
                    ));
                }
                let asks = attributes(&user, spec).ok_or_else(|| {
                    invalid(
                        Path::new("spec").child("resourceAttributes"),
                        "exactly one of nonResourceAttributes or resourceAttributes must be specified",
                    )
                })?;
                if self == Self::LocalSubjectAccess && asks.namespace != request.info.namespace {
                    return Err(Status::bad_request(format!(
                        "spec.resourceAttributes.namespace must match namespace: {}",
                        request.info.namespace
                    )));
                }
                decide(registry, &asks).await
            }
            Self::SelfSubjectRules => {
                let namespace = spec["namespace"].as_str().unwrap_or_default();
                if namespace.is_empty() {
                    return Err(Status::bad_request("no namespace on request"));
                }
                rules(registry, &request.user, namespace)
            }
        };
        review["status"] = status;
        if self == Self::SelfSubject {
            review.meta_mut().insert("creationTimestamp".to_owned(), now().into());
        }
        negotiate::respond(StatusCode::CREATED, form, &review)
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn subject(spec: &Value) -> UserInfo {
    let extra: BTreeMap<String, Vec<String>> =
        spec["extra"].as_object().into_iter().flatten().map(|(key, value)| (key.clone(), strings(value))).collect();
    UserInfo {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: strings(&spec["groups"]),
        extra,
    }
}

/// `None` unless exactly one of the two kinds of attributes is given.
fn attributes(user: &UserInfo, spec: &Value) -> Option<Attributes> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == path.is_object() {
        return None;
    }
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    if path.is_object() {
        return Some(Attributes {
            user: user.clone(),
            verb: text(path, "verb"),
            path: text(path, "path"),
            ..Attributes::default()
        });
    }
    let requirements = resource["fieldSelector"]["requirements"].as_array().into_iter().flatten();
    let equal = requirements.filter(|r| r["operator"] == "In").filter_map(|r| {
        let values = strings(&r["values"]);
        let [value] = values.as_slice() else { return None };
        Some(format!("{}={value}", r["key"].as_str()?))
    });
    let selector = match resource["fieldSelector"]["rawSelector"].as_str() {
        Some(raw) => raw.to_owned(),
        None => equal.collect::<Vec<_>>().join(","),
    };
    Some(Attributes {
        user: user.clone(),
        is_resource: true,
        verb: text(resource, "verb"),
        namespace: text(resource, "namespace"),
        group: text(resource, "group"),
        version: text(resource, "version"),
        resource: text(resource, "resource"),
        subresource: text(resource, "subresource"),
        name: text(resource, "name"),
        field_selector: selector,
        path: String::new(),
    })
}

async fn decide(registry: &Registry, asks: &Attributes) -> Value {
    let decision = registry.context.authorizer.authorize(asks).await;
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    status
}

fn rules(registry: &Registry, user: &UserInfo, namespace: &str) -> Value {
    let mut resource_rules = Vec::new();
    let mut path_rules = Vec::new();
    for rule in registry.context.authorizer.rules_for(user, namespace) {
        if rule.non_resource_urls.is_empty() {
            let mut map = Map::new();
            map.insert("verbs".to_owned(), json!(rule.verbs));
            for (field, list) in [
                ("apiGroups", &rule.api_groups),
                ("resources", &rule.resources),
                ("resourceNames", &rule.resource_names),
            ] {
                if !list.is_empty() {
                    map.insert(field.to_owned(), json!(list));
                }
            }
            resource_rules.push(Value::Object(map));
        } else {
            path_rules.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    json!({"resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": false})
}

/// What there was before `/livez`: the parts of the control plane, which live and die with us.
pub fn component_statuses(call: &Call<'_>) -> Result<Response, Status> {
    let one = |name: &str| {
        json!({"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name, "creationTimestamp": null},
            "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]})
    };
    let all = ["controller-manager", "etcd-0", "scheduler"];
    match call.request.info.verb.as_str() {
        "get" => {
            let name = call.name();
            let known = all.into_iter().find(|known| *known == name).ok_or_else(|| call.not_found(name))?;
            let object = negotiate::shape_object(&call.resource, call.form, one(known));
            negotiate::respond(StatusCode::OK, call.form, &object)
        }
        "list" => {
            let list = negotiate::shape_list(&call.resource, call.form, Map::new(), all.into_iter().map(one).collect());
            negotiate::respond(StatusCode::OK, call.form, &list)
        }
        _ => Err(Status::method_not_allowed()),
    }
}
