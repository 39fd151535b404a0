//! What every request passes, in upstream's order: panic guard, request info, who asks, on whose behalf, how many at
//! once, may they, how long; then the dispatcher; and what every response carries.

use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::api_server::Inner;
use crate::authn::{InProcess, Peer, impersonation};
use crate::authz::{Attributes, MASTERS};
use crate::config::Config;
use crate::handler::{Body, Query, RequestInfo, Response, UserInfo, Warnings};
use crate::request::decode_component;
use crate::routes;
use crate::status::Status;

/// Ordinary requests get this long; watches and streams as long as they like.
const REQUEST_TIME: Duration = Duration::from_secs(60);
/// How long a request waits for its turn before it is told to come back later.
const QUEUE_TIME: Duration = Duration::from_secs(5);
/// Smaller bodies are not worth compressing.
const GZIP_BYTES_MIN: u64 = 128 * 1024;
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// How many requests are worked on at once.
pub struct Limits {
    mutating: Arc<Semaphore>,
    read_only: Arc<Semaphore>,
}

impl Limits {
    pub fn new(config: &Config) -> Self {
        Self {
            mutating: Arc::new(Semaphore::new(config.mutating_in_flight_max.max(1))),
            read_only: Arc::new(Semaphore::new(config.read_only_in_flight_max.max(1))),
        }
    }

    /// A permit, or none needed: for streams, and for those that must get through to mend things.
    async fn enter(&self, user: &UserInfo, info: &RequestInfo) -> Result<Option<OwnedSemaphorePermit>, Status> {
        if info.is_long_running() || !info.is_resource || user.in_group(MASTERS) {
            return Ok(None);
        }
        let semaphore = if info.is_read_only() { &self.read_only } else { &self.mutating };
        match tokio::time::timeout(QUEUE_TIME, Arc::clone(semaphore).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            _ => Err(Status::too_many_requests("Too many requests, please try again later.", 1)),
        }
    }
}

pub(crate) async fn handle(server: &Arc<Inner>, mut request: http::Request<Body>) -> Response {
    let started = Instant::now();
    let path = decode_component(request.uri().path(), false);
    let mut query = Query::parse(request.uri().query().unwrap_or_default());
    let info = RequestInfo::new(request.method(), &path, &query);
    routes::complete_legacy_watch(&info, &mut query);
    let audit_id = audit_id(request.headers_mut());
    let wants_gzip = accepts_gzip(request.headers());
    let dry_run = query.get("dryRun").is_some_and(|value| !value.is_empty());
    let warnings = Warnings::default();
    let guard = server.context.metrics.in_flight(&info);

    let work = AssertUnwindSafe(admit(server, info.clone(), query, warnings.clone(), request)).catch_unwind();
    let mut response = match work.await {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => status.into_response(),
        Err(_) => {
            tracing::error!(path = %info.path, verb = %info.verb, "request handler panicked");
            Status::internal("the request could not be completed").into_response()
        }
    };
    let code = response.status().as_u16();
    let known = !info.is_resource || routes::is_served(server, &info);
    let took = started.elapsed();
    server.context.metrics.observe(&info, known, dry_run, code, took);
    if info.is_long_running() && code == 200 {
        // Counted as open until its body ends.
        response = response.map(|body| Body::new(Counted { body, _guard: guard }));
    } else {
        drop(guard);
    }
    tracing::trace!(verb = %info.verb, path = %info.path, code, ?took, "request");

    let headers = response.headers_mut();
    headers.insert(AUDIT_ID, audit_id);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    for text in warnings.take() {
        if let Some(value) = warning(&text) {
            headers.append(header::WARNING, value);
        }
    }
    if wants_gzip { compress(response).await } else { response }
}

/// Everything between the request's line and its work.
async fn admit(
    server: &Arc<Inner>,
    info: RequestInfo,
    query: Query,
    warnings: Warnings,
    mut request: http::Request<Body>,
) -> Result<Response, Status> {
    let context = &server.context;
    let user = match request.extensions().get::<InProcess>() {
        Some(InProcess(user)) => user.clone(),
        None => {
            let peer = request.extensions().get::<Peer>();
            match context.authenticator.authenticate(peer, request.headers()).await {
                Ok(user) => user,
                Err(error) => {
                    tracing::debug!(%error, path = %info.path, "unable to authenticate the request");
                    return Err(Status::unauthorized());
                }
            }
        }
    };
    // Nothing behind this point, least of all a proxied server, sees the credential.
    request.headers_mut().remove(header::AUTHORIZATION);
    let user = impersonation::apply(user, request.headers_mut(), &context.authorizer).await?;
    let _permit = server.limits.enter(&user, &info).await?;
    context.authorizer.require(&Attributes::of(&user, &info, &query)).await?;
    let is_long = info.is_long_running();
    let work = routes::dispatch(server, info, user, query, warnings, request);
    if is_long {
        return work.await;
    }
    match tokio::time::timeout(REQUEST_TIME, work).await {
        Ok(result) => result,
        Err(_) => Err(Status::timeout("request did not complete within requested timeout - context deadline exceeded")),
    }
}

/// The client's own id if it sent a sane one, else a new one.
fn audit_id(headers: &mut HeaderMap) -> HeaderValue {
    match headers.remove(AUDIT_ID) {
        Some(value) if !value.is_empty() && value.len() <= 64 => value,
        _ => HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).unwrap_or(HeaderValue::from_static("none")),
    }
}

/// `299 - "text"`, RFC 7234; `None` when the text cannot be a header.
fn warning(text: &str) -> Option<HeaderValue> {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
    HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()).ok()
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|list| list.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|weight| weight == "q=0")
    })
}

/// Compresses a body that is whole and large. Streams stay as they are.
async fn compress(response: Response) -> Response {
    let whole = response.body().size_hint().exact().is_some_and(|length| length >= GZIP_BYTES_MIN);
    if !whole || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let bytes = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return Status::internal(error).into_response(),
    };
    let plain = bytes.clone();
    let packed = tokio::task::spawn_blocking(move || {
        let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 6), Compression::new(4));
        encoder.write_all(&plain).and_then(|()| encoder.finish())
    });
    match packed.await {
        Ok(Ok(packed)) => {
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts.headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            parts.headers.remove(header::CONTENT_LENGTH);
            http::Response::from_parts(parts, Body::from(packed))
        }
        _ => http::Response::from_parts(parts, Body::from(bytes)),
    }
}

/// A body that holds a gauge up while it is open.
struct Counted {
    body: Body,
    _guard: crate::metrics::InFlight,
}

impl http_body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, axum::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted() {
        let value = warning("unknown field \"spec.foo\"\n").unwrap();
        assert_eq!(value, "299 - \"unknown field \\\"spec.foo\\\" \"");
    }

    #[tokio::test]
    async fn large_bodies_are_compressed_and_small_ones_not() {
        let large = compress(http::Response::new(Body::from("x".repeat(200_000)))).await;
        assert_eq!(large.headers()[header::CONTENT_ENCODING], "gzip");
        assert!(large.into_body().collect().await.unwrap().to_bytes().len() < 2_000);
        let small = compress(http::Response::new(Body::from("x"))).await;
        assert!(!small.headers().contains_key(header::CONTENT_ENCODING));
    }
}
