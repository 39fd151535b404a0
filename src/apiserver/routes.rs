//! The dispatcher: which part answers an authorized request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use mussel_api::protobuf::{self, ProtobufError};
use mussel_api::resource::Resource;
use serde_json::{Value, json};

use crate::aggregator;
use crate::api_server::Inner;
use crate::connect;
use crate::custom;
use crate::discovery;
use crate::handler::{Body, Query, Request, RequestInfo, Response, UserInfo, Warnings};
use crate::health::Probe;
use crate::resource_metrics;
use crate::status::Status;

/// What upstream takes at most.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// `/api/v1/watch/pods/x`, the old form of a watch: the rest reads `?watch=1&fieldSelector=metadata.name=x`.
pub fn complete_legacy_watch(info: &RequestInfo, query: &mut Query) {
    if info.verb != "watch" || query.is_true("watch") {
        return;
    }
    query.0.retain(|(key, _)| key != "watch");
    query.0.push(("watch".to_owned(), "true".to_owned()));
    if !info.name.is_empty() && query.get("fieldSelector").is_none() {
        query.0.push(("fieldSelector".to_owned(), format!("metadata.name={}", info.name)));
    }
}

/// Whether metrics may name this request's resource.
pub(crate) fn is_served(server: &Inner, info: &RequestInfo) -> bool {
    let row = server.context.catalog.by_plural(&info.group, &info.version, &info.resource);
    row.is_some_and(|row| info.subresource.is_empty() || row.subresource(&info.subresource).is_some())
}

pub(crate) async fn dispatch(
    server: &Arc<Inner>,
    info: RequestInfo,
    user: UserInfo,
    query: Query,
    warnings: Warnings,
    request: http::Request<Body>,
) -> Result<Response, Status> {
    if let Some(service) = server.context.aggregator.route(&info.path) {
        return Ok(aggregator::proxy(&server.context, &service, &user, request).await);
    }
    if info.is_resource {
        return resource(server, info, user, query, warnings, request).await;
    }
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let path = info.path.trim_matches('/');
    let mut parts = path.splitn(2, '/');
    let (head, rest) = (parts.next().unwrap_or_default(), parts.next());
    if !is_read && !path.is_empty() {
        return if is_known(head) { Err(Status::method_not_allowed()) } else { Ok(page_not_found()) };
    }
    let context = &server.context;
    let probe = match head {
        "livez" => Some(Probe::Livez),
        "readyz" => Some(Probe::Readyz),
        "healthz" => Some(Probe::Healthz),
        _ => None,
    };
    if let Some(probe) = probe {
        return Ok(context.health.answer(probe, rest, &query).await.unwrap_or_else(page_not_found));
    }
    match (head, rest) {
        ("", None) => Ok(json_response(&json!({"paths": discovery::paths(context)}))),
        ("version", None) => Ok(json_response(&version())),
        ("metrics", None) => match context.metrics.print() {
            Ok(text) => {
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                Ok(with_type(Body::from(text), HeaderValue::from_static(kind)))
            }
            Err(error) => Err(Status::internal(error)),
        },
        ("api" | "apis", _) => {
            Ok(discovery::answer(context, path, request.headers()).await.unwrap_or_else(page_not_found))
        }
        ("openapi", Some(rest)) => {
            if let Some(service) = rest.strip_prefix("v3/").and_then(|path| context.aggregator.route(path)) {
                return Ok(aggregator::proxy(context, &service, &user, request).await);
            }
            let answer = server.openapi.answer(context, rest, &query, request.headers()).await?;
            Ok(answer.unwrap_or_else(page_not_found))
        }
        (".well-known", Some("openid-configuration")) => {
            let issuer = context.tokens.issuer();
            Ok(json_response(&json!({
                "issuer": issuer,
                "jwks_uri": format!("https://{}:{}/openid/v1/jwks", context.config.advertise_address, context.config.secure_port),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": context.tokens.algorithms(),
            })))
        }
        ("openid", Some("v1/jwks")) => {
            let body = Body::from(context.tokens.jwks().to_string());
            Ok(with_type(body, HeaderValue::from_static("application/jwk-set+json")))
        }
        _ => Ok(page_not_found()),
    }
}

fn is_known(head: &str) -> bool {
    matches!(head, "livez" | "readyz" | "healthz" | "version" | "metrics" | "api" | "apis" | "openapi")
}

async fn resource(
    server: &Arc<Inner>,
    info: RequestInfo,
    user: UserInfo,
    query: Query,
    warnings: Warnings,
    request: http::Request<Body>,
) -> Result<Response, Status> {
    let row = custom::find(&server.context, &info.group, &info.version, &info.resource).await?;
    check_shape(&row, &info, request.method())?;
    if connect::is_connect(&info) {
        return connect::handle(server, info, user, query, &warnings, request).await;
    }
    if resource_metrics::is_metrics(&row) {
        return resource_metrics::handle(server, &row, &info, &query, request.headers()).await;
    }
    let (parts, mut body) = request.into_parts();
    let body = match Limited::new(&mut body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            discard(body).await;
            return Err(body_too_large());
        }
        Err(error) => return Err(Status::bad_request(format!("the body of the request could not be read: {error}"))),
    };
    let (headers, body) = as_json(parts.headers, body)?;
    let request = Request { info, user, query, headers, body, warnings };
    server.registry.handle(row, request).await
}

/// Reads the rest of a body for nobody. On HTTP/2 a client whose body is cut off takes that for the answer, and never sees
/// the real one. Bounded, because what comes need not end.
async fn discard(mut body: Body) {
    const BYTES_MAX: usize = 64 << 20;
    const TIME_MAX: Duration = Duration::from_secs(10);
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > BYTES_MAX {
                return;
            }
        }
    };
    // Who takes longer has not been listening anyway.
    let _ = tokio::time::timeout(TIME_MAX, read).await;
}

/// Bodies in protobuf, as clients generated from upstream's types send them, go on as JSON.
fn as_json(mut headers: HeaderMap, body: Bytes) -> Result<(HeaderMap, Bytes), Status> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_protobuf = kind.split(';').next().map(str::trim) == Some("application/vnd.kubernetes.protobuf");
    if !is_protobuf {
        return Ok((headers, body));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if body.is_empty() {
        return Ok((headers, body));
    }
    match protobuf::decode(&body) {
        Ok(object) => Ok((headers, object.to_string().into())),
        Err(ProtobufError::UnknownKind { .. }) => {
            Err(Status::unsupported_media_type(&["application/json", "application/yaml"]))
        }
        Err(error) => Err(Status::bad_request(error.to_string())),
    }
}

fn body_too_large() -> Status {
    Status::too_large(&format!("limit is {BODY_BYTES_MAX}"))
}

/// Refuses what the row does not serve, so that handlers meet only what they know.
fn check_shape(row: &Resource, info: &RequestInfo, method: &Method) -> Result<(), Status> {
    let has_name = !info.name.is_empty();
    let is_namespace_itself = info.group.is_empty() && info.resource == "namespaces";
    let in_namespace = !info.namespace.is_empty() && !is_namespace_itself;
    if !row.namespaced && in_namespace {
        return Err(Status::unknown_resource());
    }
    if *method == Method::OPTIONS || info.verb.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let proxies = info.subresource == "proxy";
    if info.parts.len() > 3 && !proxies {
        return Err(Status::unknown_resource());
    }
    if !info.subresource.is_empty() {
        let sub = row.subresource(&info.subresource).ok_or_else(Status::unknown_resource)?;
        if row.namespaced && !in_namespace {
            return Err(Status::unknown_resource());
        }
        let verb = info.verb.as_str();
        // A watch of `…/status` and the like does not exist; a proxied request may carry `?watch` of its own.
        let verb = if proxies && verb == "watch" { "get" } else { verb };
        let served = sub.verbs.contains(&verb) || connect::is_connect(info);
        return if served { Ok(()) } else { Err(Status::method_not_allowed()) };
    }
    // With a field selector on its name, a list or watch carries the name without it being in the path.
    let named_path = info.parts.len() > 1;
    let verb = info.verb.as_str();
    let fits = match verb {
        "create" => !named_path && (!row.namespaced || in_namespace || !row.verbs.contains(&"list")),
        "list" | "deletecollection" => !named_path,
        "watch" => true,
        _ => named_path,
    };
    if named_path && row.namespaced && !in_namespace && verb != "watch" {
        return Err(Status::unknown_resource());
    }
    let collection_is_deletable = verb != "deletecollection" || !row.namespaced || in_namespace;
    if !fits || !row.verbs.contains(&verb) || !collection_is_deletable || (has_name && verb == "create") {
        return Err(Status::method_not_allowed());
    }
    Ok(())
}

fn version() -> Value {
    let version = mussel_api::version::GIT_VERSION;
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": version,
        "gitCommit": option_env!("MUSSEL_GIT_COMMIT").unwrap_or_default(),
        "gitTreeState": "clean",
        "buildDate": option_env!("MUSSEL_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": "none (rust)",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_arch()),
    })
}

/// The architecture as Kubernetes names it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn json_response(value: &Value) -> Response {
    with_type(Body::from(value.to_string()), HeaderValue::from_static("application/json"))
}

pub fn with_type(body: Body, kind: HeaderValue) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

pub fn page_not_found() -> Response {
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    let mut response = with_type(Body::from("404 page not found\n"), text);
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}
