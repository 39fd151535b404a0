//! The CRI configuration of a pod's sandbox.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use mussel_cri::v1;

use crate::config::Config;
use crate::{dns, labels, pod, resources, security};

/// Where the logs of the pod's containers lie.
pub fn log_dir(logs: &Path, pod: &Pod) -> PathBuf {
    logs.join(format!("{}_{}_{}", pod::namespace(pod), pod::name(pod), pod::uid(pod)))
}

/// # Errors
/// A text for the user, when the pod's names do not fit.
pub fn config(
    config: &Config,
    pod: &Pod,
    attempt: u32,
    cgroup_parent: &str,
    memory_capacity: i64,
) -> Result<v1::PodSandboxConfig, String> {
    let (hostname, _) = dns::hostname(pod, &config.cluster_domain)?;
    let resolv_conf = std::fs::read_to_string(&config.resolv_conf).unwrap_or_default();
    let spec = pod::spec(pod);
    let port_mappings = pod::init_containers(pod)
        .iter()
        .filter(|c| pod::is_sidecar(c))
        .chain(pod::containers(pod))
        .flat_map(|c| c.ports.iter().flatten())
        .filter(|p| !pod::host_network(pod) && p.host_port.is_some_and(|h| h > 0))
        .map(|p| v1::PortMapping {
            protocol: match p.protocol.as_deref() {
                Some("UDP") => v1::Protocol::Udp,
                Some("SCTP") => v1::Protocol::Sctp,
                _ => v1::Protocol::Tcp,
            }
            .into(),
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or_default(),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        })
        .collect();
    let sysctls = spec
        .and_then(|s| s.security_context.as_ref())
        .and_then(|s| s.sysctls.as_ref())
        .into_iter()
        .flatten()
        .map(|s| (s.name.clone(), s.value.clone()))
        .collect::<HashMap<_, _>>();
    let limits = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: resources::pod_limit(pod, "cpu").map_or(0, |q| resources::cpu_quota(q.to_milli())),
        cpu_shares: resources::cpu_shares(resources::pod_request(pod, "cpu").to_milli()),
        memory_limit_in_bytes: resources::pod_limit(pod, "memory").map_or(0, |q| q.value().min(memory_capacity)),
        ..Default::default()
    };
    Ok(v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: pod::name(pod).into(),
            uid: pod::uid(pod).into(),
            namespace: pod::namespace(pod).into(),
            attempt,
        }),
        hostname: if pod::host_network(pod) { String::new() } else { hostname },
        log_directory: log_dir(&config.pod_logs_dir, pod).display().to_string(),
        dns_config: Some(dns::resolver(pod, &config.cluster_dns, &config.cluster_domain, &resolv_conf)),
        port_mappings,
        labels: labels::sandbox_labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.to_owned(),
            security_context: Some(security::of_sandbox(pod, &config.root_dir)),
            sysctls,
            overhead: None,
            resources: Some(limits),
        }),
    })
}
