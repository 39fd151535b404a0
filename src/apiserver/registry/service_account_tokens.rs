//! `serviceaccounts/token`: a signed token for the account, bound to a pod, secret or node when asked.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use mussel_api::field::{FieldError, FieldErrors, Path};
use mussel_api::object::ObjectExt;
use mussel_store::Freshness;
use serde_json::{Value, json};

use super::body::{self, Expected};
use super::call::{Call, definition};
use super::negotiate;
use super::options::WriteOptions;
use super::view::View;
use super::write::time_text;
use crate::handler::Response;
use crate::status::Status;
use crate::tokens::{Claims, KubernetesClaims, Reference};

const SECONDS_MIN: i64 = 10 * 60;
const SECONDS_MAX: i64 = 1 << 32;
const SECONDS_DEFAULT: i64 = 3600;

/// Pods ask for tokens of this life; they get one that outlives clients which never read it again. Upstream's trick.
const EXTENDED_FROM: i64 = 3607;
const EXTENDED_TO: i64 = 365 * 24 * 3600;

pub async fn create(call: &Call<'_>) -> Result<Response, Status> {
    let request = call.request;
    let options = WriteOptions::of(request, "CreateOptions")?;
    let schema = definition("io.k8s.api.authentication.v1.TokenRequest")?;
    let expected = Expected {
        api_version: "authentication.k8s.io/v1".to_owned(),
        kind: "TokenRequest",
        schema: &schema,
        custom: None,
    };
    let format = body::format(&request.headers)?;
    let mut wish = body::decode(&request.body, format, &expected, options.strictness, &request.warnings)?;
    let view = call.view(Freshness::Linearizable).await?;
    let name = call.name();
    let account = call.find(&view, name).await?.ok_or_else(|| call.not_found(name))?.object;
    if !wish.name().is_empty() && wish.name() != name {
        let path = Path::new("metadata").child("name");
        let error = FieldError::invalid(&path, wish.name(), "must match the service account name");
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", wish.name(), &vec![error]));
    }
    call.pass(name, "token", options.dry_run, &schema, &view, &mut wish).await?;

    let spec = &wish["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(SECONDS_DEFAULT);
    let mut errors = FieldErrors::new();
    let path = Path::new("spec").child("expirationSeconds");
    if seconds < SECONDS_MIN {
        errors.push(FieldError::invalid(&path, seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > SECONDS_MAX {
        errors.push(FieldError::invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", name, &errors));
    }
    let asked: Vec<String> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(|a| a.as_str().map(str::to_owned)).collect();
    let ours = call.context.config.audiences();
    let for_us = asked.is_empty();
    let audiences = if for_us { vec![call.context.config.issuer()] } else { asked };

    let mut claims = KubernetesClaims {
        namespace: call.namespace.clone(),
        serviceaccount: Reference { name: name.to_owned(), uid: account.uid().to_owned() },
        ..KubernetesClaims::default()
    };
    let bound = &spec["boundObjectRef"];
    if bound.is_object() {
        bind(call, &view, name, bound, &mut claims)?;
    }
    let now = Timestamp::now();
    let mut lasts = seconds;
    let in_pod = claims.pod.is_some();
    let extends = call.context.config.extend_tokens;
    if extends && in_pod && seconds == EXTENDED_FROM && audiences.iter().all(|audience| ours.contains(audience)) {
        lasts = EXTENDED_TO;
        claims.warnafter = Some(now.as_second() + seconds);
    }
    let issued = now.as_second();
    let token = call
        .context
        .tokens
        .sign(Claims {
            aud: audiences.clone(),
            exp: Some(issued + lasts),
            iat: Some(issued),
            iss: String::new(),
            jti: Some(uuid::Uuid::new_v4().to_string()),
            sub: format!("system:serviceaccount:{}:{name}", call.namespace),
            nbf: Some(issued),
            kubernetes: claims,
        })
        .map_err(Status::internal)?;

    // The client is to come back when the token it asked for would have expired.
    let expires = now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    let metadata = wish.meta_mut();
    metadata.insert("name".to_owned(), name.into());
    metadata.insert("namespace".to_owned(), call.namespace.as_str().into());
    metadata.insert("creationTimestamp".to_owned(), time_text(now).into());
    wish["spec"]["audiences"] = audiences.into();
    wish["spec"]["expirationSeconds"] = seconds.into();
    wish["status"] = json!({"token": token, "expirationTimestamp": time_text(expires)});
    negotiate::respond(StatusCode::CREATED, call.form, &wish)
}

/// What the token is bound to must exist, and a pod must be of this account.
fn bind(
    call: &Call<'_>,
    view: &View,
    account: &str,
    bound: &Value,
    claims: &mut KubernetesClaims,
) -> Result<(), Status> {
    let text = |field: &str| bound[field].as_str().unwrap_or_default();
    let (kind, name, wanted) = (text("kind"), text("name"), text("uid"));
    let find = |resource: &str, namespace: &str| -> Result<Value, Status> {
        let object = view.get(resource, namespace, name).ok_or_else(|| Status::not_found("", resource, name))?;
        if !wanted.is_empty() && wanted != object.uid() {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Status::conflict("", resource, name, &why));
        }
        Ok(object)
    };
    let reference = |object: &Value| Reference { name: object.name().to_owned(), uid: object.uid().to_owned() };
    match (text("apiVersion"), kind) {
        ("v1", "Pod") => {
            let pod = find("pods", &call.namespace)?;
            let used = pod.str_at("spec.serviceAccountName");
            if used != account {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            claims.pod = Some(reference(&pod));
            let node = pod.str_at("spec.nodeName");
            if !node.is_empty() {
                let uid = view.get("nodes", "", node).map(|node| node.uid().to_owned()).unwrap_or_default();
                claims.node = Some(Reference { name: node.to_owned(), uid });
            }
        }
        ("v1", "Secret") => claims.secret = Some(reference(&find("secrets", &call.namespace)?)),
        ("v1", "Node") => claims.node = Some(reference(&find("nodes", "")?)),
        (version, kind) => {
            return Err(Status::bad_request(format!("cannot bind token to object of type {version}, Kind={kind}")));
        }
    }
    Ok(())
}
