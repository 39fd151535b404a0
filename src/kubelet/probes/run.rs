//! One probe, run once.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cri::Cri;
use crate::net;

/// Longer output is cut in messages.
const OUTPUT_BYTES_MAX: usize = 10 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a warning, sometimes.
    Success(Option<String>),
    Failure(String),
    Unknown(String),
}

pub async fn run(
    cri: &Cri,
    probe: &Probe,
    container: &Container,
    id: &str,
    pod_ip: Option<&str>,
    limit: Duration,
) -> Outcome {
    if let Some(exec) = &probe.exec {
        return exec_probe(cri, id, exec.command.clone().unwrap_or_default(), limit).await;
    }
    let Some(pod_ip) = pod_ip else { return Outcome::Unknown("pod has no address yet".into()) };
    if let Some(http) = &probe.http_get {
        let get = match http_get(http, container, pod_ip) {
            Ok(get) => get,
            Err(e) => return Outcome::Unknown(e),
        };
        return match net::get(get, limit).await {
            Ok((200..300, _)) => Outcome::Success(None),
            Ok((300..400, body)) => {
                Outcome::Success(Some(format!("Probe terminated redirects, Response body: {body}")))
            }
            Ok((code, _)) => Outcome::Failure(format!("HTTP probe failed with statuscode: {code}")),
            Err(e) => Outcome::Failure(e),
        };
    }
    if let Some(socket) = &probe.tcp_socket {
        let host = socket.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
        return match port(&socket.port, container) {
            Ok(port) => net::tcp(host, port, limit).await.map_or_else(Outcome::Failure, |()| Outcome::Success(None)),
            Err(e) => Outcome::Unknown(e),
        };
    }
    if let Some(grpc) = &probe.grpc {
        let Ok(port) = u16::try_from(grpc.port) else { return Outcome::Unknown("invalid port number".into()) };
        let service = grpc.service.as_deref().unwrap_or_default();
        return match net::grpc(pod_ip, port, service, limit).await {
            Ok(true) => Outcome::Success(None),
            Ok(false) => Outcome::Failure("service unhealthy (responded with \"NOT_SERVING\")".into()),
            Err(e) => Outcome::Failure(e),
        };
    }
    Outcome::Unknown("missing probe handler".into())
}

async fn exec_probe(cri: &Cri, id: &str, command: Vec<String>, limit: Duration) -> Outcome {
    let shown = command.join(" ");
    match cri.exec_sync(id, command, limit).await {
        Ok(answer) if answer.exit_code == 0 => Outcome::Success(None),
        Ok(answer) => {
            let mut output = String::from_utf8_lossy(&answer.stdout).into_owned();
            output.push_str(&String::from_utf8_lossy(&answer.stderr));
            if output.len() > OUTPUT_BYTES_MAX {
                let end = (0..=OUTPUT_BYTES_MAX).rev().find(|i| output.is_char_boundary(*i)).unwrap_or(0);
                output.truncate(end);
            }
            Outcome::Failure(output)
        }
        Err(e) if e.0.code() == tonic::Code::DeadlineExceeded => {
            Outcome::Failure(format!("command timed out: \"{shown}\" timed out after {}s", limit.as_secs()))
        }
        Err(e) => Outcome::Unknown(e.to_string()),
    }
}

/// The request of an HTTP probe or hook.
pub fn http_get(action: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<net::Get, String> {
    let path = action.path.as_deref().unwrap_or("/");
    Ok(net::Get {
        https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host: action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip).to_owned(),
        port: port(&action.port, container)?,
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        headers: action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
    })
}

/// A number, or the name of one of the container's ports.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named.map(|p| p.container_port).or_else(|| name.parse().ok()) {
                Some(number) => number,
                None => return Err(format!("couldn't find port: \"{name}\" in container \"{}\"", container.name)),
            }
        }
    };
    u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port number: {number}"))
}
