//! The provisioner of local volumes has their directories made and removed here. Whoever may use `nodes/proxy` may.

use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde_json::Value;

use super::refuse;
use crate::volumes::local_path::{self, LocalPathError};

const BODY_BYTES_MAX: usize = 8192;

pub async fn make(request: Request) -> Response {
    act(request, local_path::make).await
}

pub async fn remove(request: Request) -> Response {
    act(request, local_path::remove).await
}

/// The body is `{"path": "/var/lib/…/pvc-…"}`.
async fn act(request: Request, action: fn(&str) -> Result<(), LocalPathError>) -> Response {
    let body: Bytes = match to_bytes(request.into_body(), BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let path = serde_json::from_slice::<Value>(&body).ok().and_then(|body| Some(body["path"].as_str()?.to_owned()));
    let Some(path) = path else { return refuse(StatusCode::BAD_REQUEST, "no path is given") };
    // A large volume takes its time; it goes on when nobody waits for it any more.
    match tokio::task::spawn_blocking(move || action(&path)).await {
        Ok(Ok(())) => StatusCode::OK.into_response(),
        Ok(Err(error @ LocalPathError::Path { .. })) => refuse(StatusCode::BAD_REQUEST, error.to_string()),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
