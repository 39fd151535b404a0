//! `/containerLogs`: what `kubectl logs` reads.

use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::PodStatus;
use mussel_cri::v1::ContainerState;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{Server, refuse};
use crate::logs::{Options, stream};
use crate::observed::{Observed, Seen};
use crate::pod;

/// Pieces on their way to a slow reader.
const PIECES_MAX: usize = 64;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Parameters {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<u64>,
    limit_bytes: Option<u64>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    stream: Option<String>,
}

fn is_true(text: Option<&String>) -> bool {
    text.is_some_and(|t| matches!(t.as_str(), "true" | "1" | "t" | "T" | "TRUE" | "True"))
}

pub async fn container(
    State(server): State<Server>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(parameters): Query<Parameters>,
) -> Response {
    let shared = server.shared;
    let Some((pod, published)) = shared.registry.find(&namespace, &name) else {
        return refuse(StatusCode::NOT_FOUND, format!("pod \"{name}\" does not exist"));
    };
    if pod::find_container(&pod, &container).is_none() {
        return refuse(StatusCode::NOT_FOUND, format!("container \"{container}\" not found in pod \"{name}\""));
    }
    let since = match (parameters.since_seconds, &parameters.since_time) {
        (Some(seconds), _) => Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok(),
        (None, Some(time)) => match time.parse() {
            Ok(time) => Some(time),
            Err(_) => return refuse(StatusCode::BAD_REQUEST, format!("parsing time \"{time}\"")),
        },
        (None, None) => None,
    };
    let observed = match Observed::of_pod(&shared.cri, pod::uid(&pod)).await {
        Ok(observed) => observed,
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let previous = is_true(parameters.previous.as_ref());
    let found = if previous {
        previous_run(&observed, &published.status, &container)
    } else {
        newest_run(&observed, &container)
    };
    let Some(seen) = found else {
        if previous {
            let text = format!("previous terminated container \"{container}\" in pod \"{name}\" not found");
            return refuse(StatusCode::BAD_REQUEST, text);
        }
        let status = &published.status;
        let all = status.container_statuses.iter().chain(&status.init_container_statuses);
        let waiting = all
            .chain(&status.ephemeral_container_statuses)
            .flatten()
            .find(|s| s.name == container)
            .and_then(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone());
        let text = match waiting.as_deref() {
            Some("ErrImagePull" | "ImagePullBackOff") => {
                format!(
                    "container \"{container}\" in pod \"{name}\" is waiting to start: trying and failing to pull image"
                )
            }
            Some("ErrImageNeverPull" | "InvalidImageName") => {
                format!("container \"{container}\" in pod \"{name}\" is waiting to start: image can't be pulled")
            }
            Some(reason) => format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"),
            None => format!("container \"{container}\" in pod \"{name}\" is not available"),
        };
        return refuse(StatusCode::BAD_REQUEST, text);
    };
    let path = PathBuf::from(&seen.status.log_path);
    if seen.status.log_path.is_empty() || !path.exists() {
        let text =
            format!("failed to try resolving symlinks in path \"{}\": no such file or directory", path.display());
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, text);
    }
    let options = Options {
        follow: is_true(parameters.follow.as_ref()) && seen.is_running(),
        timestamps: is_true(parameters.timestamps.as_ref()),
        since,
        tail: parameters.tail_lines,
        limit_bytes: parameters.limit_bytes,
        stream: match parameters.stream.as_deref() {
            Some("Stdout") => Some("stdout"),
            Some("Stderr") => Some("stderr"),
            _ => None,
        },
    };
    let (sender, mut receiver) = mpsc::channel::<std::io::Result<Bytes>>(PIECES_MAX);
    let (cri, id) = (shared.cri.clone(), seen.id().to_owned());
    let changes = shared.registry.lock().get(pod::uid(&pod)).map(|h| h.published.clone());
    let stop = shared.stop.clone();
    shared.spawn(async move {
        let alive = move || {
            let (cri, id) = (cri.clone(), id.clone());
            async move {
                match cri.container_status(&id).await {
                    Ok(status) => status.state() == ContainerState::ContainerRunning,
                    // A runtime that restarts says nothing about the container.
                    Err(error) => !error.is_not_found(),
                }
            }
        };
        let change = move || {
            let changes = changes.clone();
            async move {
                let Some(mut changes) = changes else { return std::future::pending().await };
                changes.mark_unchanged();
                // A pod that is forgotten closes this; look then, but not in a tight loop.
                if changes.changed().await.is_err() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        tokio::select! {
            () = stream(path, options, sender, alive, change) => {}
            () = stop.cancelled() => {}
        }
    });
    let body = Body::from_stream(futures::stream::poll_fn(move |context| receiver.poll_recv(context)));
    let mut response = Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    response
}

/// The newest run that has begun.
fn newest_run<'a>(observed: &'a Observed, name: &str) -> Option<&'a Seen> {
    observed.containers.iter().find(|c| c.name == name && c.state() != ContainerState::ContainerCreated)
}

/// The run that the status calls the last one.
fn previous_run<'a>(observed: &'a Observed, status: &PodStatus, name: &str) -> Option<&'a Seen> {
    let all = status.container_statuses.iter().chain(&status.init_container_statuses);
    let last = all.flatten().find(|s| s.name == name)?.last_state.as_ref()?.terminated.as_ref()?;
    let id = last.container_id.as_deref()?.rsplit('/').next()?;
    observed.containers.iter().find(|c| c.id() == id)
}
