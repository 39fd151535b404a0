//! Lifecycle hooks: postStart and preStop.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::cri::Cri;
use crate::{net, probes};

/// # Errors
/// A text for the event.
pub async fn run(
    cri: &Cri,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    pod_ip: Option<&str>,
    limit: Duration,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        let answer = cri.exec_sync(id, command, limit).await.map_err(|e| e.to_string())?;
        if answer.exit_code != 0 {
            let output = String::from_utf8_lossy(&answer.stderr);
            return Err(format!("command '{shown}' exited with {}: {output}", answer.exit_code));
        }
        return Ok(());
    }
    if let Some(http) = &handler.http_get {
        let get = probes::http_get(http, container, pod_ip.ok_or("failed to find networking container")?)?;
        let limit = if limit.is_zero() { Duration::from_secs(60) } else { limit };
        let (code, body) = net::get(get, limit).await?;
        if code >= 400 {
            return Err(format!("http request failed with status {code}: {body}"));
        }
        return Ok(());
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("invalid handler".into())
}
