//! The client: reviews out, answers back.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::Value;

use super::target::{Target, TargetError};
use crate::handler::Body;
use crate::outbound::{Pools, innermost};
use crate::registry::view::View;

/// Answers beyond this are refused.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How much of a refusal's body is told on.
const REFUSAL_BYTES_MAX: usize = 2048;

/// Why a call brought no answer. `Display` is upstream's text.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("{0}")]
    Trust(String),
    #[error("Post {url:?}: {why}")]
    Transport { url: String, why: String },
    #[error("Post {url:?}: context deadline exceeded")]
    Timeout { url: String },
    #[error("Post {url:?}: answer is larger than {ANSWER_BYTES_MAX} bytes")]
    TooLarge { url: String },
    /// The server answered, but not with success.
    #[error("{message}")]
    Refused { code: u16, message: String },
    #[error("{0}")]
    Answer(serde_json::Error),
}

/// Calls webhooks. Cheap to share.
#[derive(Default)]
pub struct Client {
    pools: Pools,
}

impl Client {
    /// Posts a review and returns the answer, within `timeout`.
    ///
    /// # Errors
    /// See [`CallError`]. The other end may have acted on the review all the same.
    pub async fn post(
        &self,
        target: &Target,
        view: &View,
        review: &Value,
        timeout: Duration,
    ) -> Result<Value, CallError> {
        let url = format!("https://{}{}?timeout={}s", target.authority, target.path, timeout.as_secs());
        let body = Bytes::from(serde_json::to_vec(review).map_err(CallError::Answer)?);
        match tokio::time::timeout(timeout, self.exchange(target, view, &url, body)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CallError::Timeout { url }),
        }
    }

    async fn exchange(&self, target: &Target, view: &View, url: &str, body: Bytes) -> Result<Value, CallError> {
        let failed = |why: String| CallError::Transport { url: url.to_owned(), why };
        let uri: Uri = url.parse().map_err(|_| failed("invalid URL".to_owned()))?;
        let mut last = failed("no address".to_owned());
        for address in target.addresses(view).await? {
            let pool = self.pools.to(address, &target.host, &target.trust).map_err(CallError::Trust)?;
            let mut request = http::Request::new(Body::from(body.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = uri.clone();
            let headers = request.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, */*"));
            headers.insert(header::USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"));
            match pool.request(request).await {
                Ok(response) => return answer(response, url).await,
                Err(error) => {
                    let before_it_was_sent = error.is_connect();
                    last = failed(innermost(&error));
                    if !before_it_was_sent {
                        break;
                    }
                }
            }
        }
        Err(last)
    }
}

async fn answer(response: http::Response<hyper::body::Incoming>, url: &str) -> Result<Value, CallError> {
    let code = response.status();
    let body = match Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(CallError::TooLarge { url: url.to_owned() }),
        Err(error) => return Err(CallError::Transport { url: url.to_owned(), why: error.to_string() }),
    };
    if code.is_success() {
        return serde_json::from_slice(&body).map_err(CallError::Answer);
    }
    Err(CallError::Refused { code: code.as_u16(), message: refusal(code, &body) })
}

/// What upstream's client makes of an answer that is no success.
fn refusal(code: StatusCode, body: &[u8]) -> String {
    if let Ok(status) = serde_json::from_slice::<Value>(body)
        && status["kind"] == "Status"
        && let Some(message) = status["message"].as_str()
    {
        return message.to_owned();
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_BYTES_MAX)]);
    let text = text.trim();
    match code.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => text.to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the \
                request"
            .to_owned(),
        500.. => {
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        }
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_worded_as_upstreams_client_does() {
        assert_eq!(refusal(StatusCode::NOT_FOUND, b"x"), "the server could not find the requested resource");
        assert_eq!(
            refusal(StatusCode::INTERNAL_SERVER_ERROR, b"boom\n"),
            "an error on the server (\"boom\") has prevented the request from succeeding"
        );
        assert_eq!(refusal(StatusCode::FORBIDDEN, br#"{"kind": "Status", "message": "no"}"#), "no");
    }
}
