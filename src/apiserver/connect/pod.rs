//! A pod's log, exec, attach and port-forward, at its kubelet.

use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

use super::forward::{ForwardError, forward};
use super::wsstream::Handshake;
use super::{Connect, encode_component, is_upgrade, log_options, read, snapshot};
use crate::handler::{Body, Response};
use crate::request::Query;
use crate::status::Status;

/// How much of a kubelet's refusal is passed on.
const REFUSAL_BYTES_MAX: usize = 50_000;

pub async fn log(mut connect: Connect<'_>) -> Result<Response, Status> {
    let handshake = Handshake::of(&mut connect.request)?;
    let context = &connect.server.context;
    let answer = |body| match handshake {
        Some(handshake) => handshake.serve(body, &context.tasks, &context.stop),
        None => plain_text(body),
    };
    let name = connect.info.name.clone();
    let options = log_options::kubelet_query(&name, &connect.query)?;
    let snapshot = snapshot(connect.server).await?;
    let pod = read(&snapshot, "pods", &connect.info.namespace, &name)?;
    let container = container(&pod, &name, connect.query.get("container").unwrap_or_default())?;
    let Some(node) = node_of(&pod) else {
        // Not scheduled yet: there is nothing to read, which is no error.
        return Ok(answer(Body::empty()));
    };
    let backend = connect.server.kubelets.backend(&snapshot, node)?;
    let mut path = format!("/containerLogs/{}/{name}/{}", connect.info.namespace, encode_component(&container));
    if !options.is_empty() {
        path = format!("{path}?{options}");
    }
    let mut request = http::Request::new(Body::empty());
    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    let response = forward(&backend, &path, request, None, &context.tasks, &context.stop)
        .await
        .map_err(|error| Status::internal(format_args!("Get \"https://{}{path}\": {error}", backend.address)))?;
    if response.status().is_success() {
        return Ok(answer(response.into_body()));
    }
    Err(refusal(response, &name).await)
}

/// The kubelet's answer, as upstream turns it into a Status.
async fn refusal(response: Response, pod: &str) -> Status {
    let code = response.status();
    let text = match Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim_end().to_owned(),
        Err(_) => String::new(),
    };
    match code {
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::NOT_FOUND => {
            let message = format!("the server could not find the requested resource ( pods/log {pod})");
            Status::new(404, "NotFound", message).with_cause("UnexpectedServerResponse", &text, "")
        }
        StatusCode::FORBIDDEN => Status::forbidden("", "pods/log", pod, &text),
        _ => Status::new(
            code.as_u16(),
            "",
            format!(
                "the server responded with the status code {code} but did not return more information ( pods/log {pod}): {text}"
            ),
        ),
    }
}

pub async fn stream(connect: Connect<'_>) -> Result<Response, Status> {
    let name = connect.info.name.clone();
    let snapshot = snapshot(connect.server).await?;
    let pod = read(&snapshot, "pods", &connect.info.namespace, &name)?;
    let namespace = &connect.info.namespace;
    let path = match connect.info.subresource.as_str() {
        "portforward" => {
            let ports: Vec<String> = connect
                .query
                .all("ports")
                .flat_map(|list| list.split(','))
                .map(|p| format!("port={}", encode_component(p)))
                .collect();
            let path = format!("/portForward/{namespace}/{name}");
            if ports.is_empty() { path } else { format!("{path}?{}", ports.join("&")) }
        }
        verb => {
            let container = container(&pod, &name, connect.query.get("container").unwrap_or_default())?;
            let options = stream_options(&connect.query, verb == "exec")?;
            format!("/{verb}/{namespace}/{name}/{}?{options}", encode_component(&container))
        }
    };
    let Some(node) = node_of(&pod) else {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    };
    if !is_upgrade(connect.request.headers()) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let backend = connect.server.kubelets.backend(&snapshot, node)?;
    let context = &connect.server.context;
    let outcome = forward(&backend, &path, connect.request, None, &context.tasks, &context.stop).await;
    let response = outcome.map_err(|error| match error {
        ForwardError::Dial(error) => Status::internal(format_args!("error dialing backend: {error}")),
        error => Status::internal(format_args!("error sending request: {error}")),
    })?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    Err(upgrade_refusal(response).await)
}

async fn upgrade_refusal(response: Response) -> Status {
    let code = response.status();
    let text = match Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim_end().to_owned(),
        Err(_) => String::new(),
    };
    let reason = match code.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        _ => "",
    };
    Status::new(
        code.as_u16(),
        reason,
        if text.is_empty() { format!("unable to upgrade connection: {code}") } else { text },
    )
}

/// The kubelet's query for exec and attach.
fn stream_options(query: &Query, exec: bool) -> Result<String, Status> {
    let mut out = Vec::new();
    let tty = query.is_true("tty");
    for (theirs, ours) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error")] {
        // A terminal has one output.
        let wanted = query.is_true(theirs) && !(theirs == "stderr" && tty);
        if wanted {
            out.push(format!("{ours}=1"));
        }
    }
    if out.is_empty() {
        return Err(Status::bad_request("at least one of stdin, stdout, stderr must be true"));
    }
    if tty {
        out.push("tty=1".to_owned());
    }
    if exec {
        let command: Vec<String> =
            query.all("command").map(|argument| format!("command={}", encode_component(argument))).collect();
        if command.is_empty() {
            return Err(Status::bad_request("you must specify at least one command for the container"));
        }
        out.extend(command);
    }
    Ok(out.join("&"))
}

fn node_of(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())
}

/// The container meant: the one named, or the only one.
fn container(pod: &Value, name: &str, wanted: &str) -> Result<String, Status> {
    let names = |list: &str| -> Vec<&str> {
        pod["spec"][list].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (main, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if wanted.is_empty() {
        if let [only] = main.as_slice() {
            return Ok((*only).to_owned());
        }
        let mut text = format!("a container name must be specified for pod {name}");
        if !main.is_empty() {
            text = format!("{text}, choose one of: [{}]", main.join(" "));
        }
        if !init.is_empty() {
            text = format!("{text} or one of the init containers: [{}]", init.join(" "));
        }
        return Err(Status::bad_request(text));
    }
    if main.contains(&wanted) || init.contains(&wanted) || ephemeral.contains(&wanted) {
        return Ok(wanted.to_owned());
    }
    Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}")))
}

fn plain_text(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_container_is_found_or_asked_for() {
        let one = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&one, "p", "").unwrap(), "a");
        assert_eq!(container(&one, "p", "b").unwrap_err().message, "container b is not valid for pod p");
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&two, "p", "i").unwrap(), "i");
        assert_eq!(
            container(&two, "p", "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
    }

    #[test]
    fn stream_queries_are_translated() {
        let ask = |query: &str, exec| stream_options(&Query::parse(query), exec);
        assert_eq!(
            ask("command=sh&command=-c&command=a%20b&stdin=true&stdout=true&stderr=true&tty=true", true).unwrap(),
            "input=1&output=1&tty=1&command=sh&command=-c&command=a%20b"
        );
        assert_eq!(ask("stdout=1&stderr=1", false).unwrap(), "output=1&error=1");
        assert!(ask("stdout=1", true).is_err() && ask("command=ls", true).is_err());
    }
}
