//! Which kernel parameters a pod may set.
//!
//! Safe are those that belong to the pod's own namespaces and touch no other pod; all others have to be allowed on the
//! node, by `allowedUnsafeSysctls` of the kubelet's configuration
//! (<https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster>).

use k8s_openapi::api::core::v1::{Pod, PodSpec};

const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

/// The namespace that a parameter belongs to, or all those of a pattern that ends in `*`. The kernel's others are the
/// whole machine's.
fn namespace(name: &str) -> Option<Namespace> {
    let is_ipc = name == "kernel.sem" || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.starts_with(p));
    match name {
        _ if is_ipc => Some(Namespace::Ipc),
        _ if name.starts_with("net.") => Some(Namespace::Net),
        _ => None,
    }
}

/// A list entry of `allowedUnsafeSysctls`, a name or a beginning and `*`.
///
/// # Errors
/// When it is not one, or means parameters of the whole machine.
pub fn pattern(text: &str) -> Result<String, String> {
    let name = normal(text);
    let stem = name.strip_suffix('*').unwrap_or(&name);
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    if stem.is_empty() || !stem.chars().all(letters) {
        return Err(format!("{text:?} is not the name of a kernel parameter, nor the beginning of one and *"));
    }
    if namespace(&name).is_none() {
        return Err(format!("{text:?} is not namespaced: it would change the whole machine"));
    }
    Ok(name)
}

/// Slashes and dots both part a name.
fn normal(name: &str) -> String {
    let slashes_first = name.find('/').is_some_and(|slash| name.find('.').is_none_or(|dot| slash < dot));
    if slashes_first {
        name.chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect()
    } else {
        name.into()
    }
}

/// # Errors
/// Why the pod may not run here, in upstream's words.
pub fn check(pod: &Pod, allowed_unsafe: &[String]) -> Result<(), String> {
    let spec = pod.spec.as_ref();
    let of_host = |f: fn(&PodSpec) -> Option<bool>| spec.and_then(f).unwrap_or(false);
    let wanted = spec.and_then(|s| s.security_context.as_ref()?.sysctls.as_ref()).into_iter().flatten();
    for name in wanted.map(|sysctl| normal(&sysctl.name)) {
        let matches = |pattern: &String| pattern.strip_suffix('*').map_or(*pattern == name, |p| name.starts_with(p));
        if !SAFE.contains(&name.as_str()) && !allowed_unsafe.iter().any(matches) {
            return Err(format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        match namespace(&name) {
            Some(Namespace::Net) if of_host(|s| s.host_network) => {
                return Err(format!("forbidden sysctl: {name:?} not allowed with host net enabled"));
            }
            Some(Namespace::Ipc) if of_host(|s| s.host_ipc) => {
                return Err(format!("forbidden sysctl: {name:?} not allowed with host ipc enabled"));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(name: &str, more: serde_json::Value) -> Result<(), String> {
        let mut spec = json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
        check(&pod, &["kernel.msg*".to_owned(), "net.core.somaxconn".to_owned()])
    }

    #[test]
    fn only_what_is_safe_or_allowed_is_set() {
        for name in ["kernel.shm_rmid_forced", "net/ipv4/tcp_syncookies", "kernel.msgmax", "net.core.somaxconn"] {
            assert_eq!(said(name, json!({})), Ok(()), "{name}");
        }
        for name in ["kernel.sem", "net.core.somaxconn2", "vm.swappiness", "kernel.hostname"] {
            assert_eq!(said(name, json!({})), Err(format!("forbidden sysctl: {name:?} not allowlisted")));
        }
    }

    #[test]
    fn the_hosts_own_namespaces_stay_as_they_are() {
        let refused = said("net.ipv4.tcp_rmem", json!({"hostNetwork": true}));
        assert_eq!(refused, Err(r#"forbidden sysctl: "net.ipv4.tcp_rmem" not allowed with host net enabled"#.into()));
        let refused = said("kernel.msgmax", json!({"hostIPC": true}));
        assert_eq!(refused, Err(r#"forbidden sysctl: "kernel.msgmax" not allowed with host ipc enabled"#.into()));
        assert_eq!(said("kernel.msgmax", json!({"hostNetwork": true})), Ok(()));
    }

    #[test]
    fn a_pattern_stays_inside_a_namespace() {
        assert_eq!(pattern("net/core/somaxconn").as_deref(), Ok("net.core.somaxconn"));
        assert_eq!(pattern("kernel.shm*").as_deref(), Ok("kernel.shm*"));
        for wrong in ["*", "", "kernel.*", "vm.swappiness", "net.a b", "net.*.x"] {
            assert!(pattern(wrong).is_err(), "{wrong}");
        }
    }
}
