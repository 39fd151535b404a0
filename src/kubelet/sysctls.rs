//! Which kernel settings a pod may change: those that are its own and cannot harm others, and what the operator allows of the
//! rest that is its own. All others are the machine's.

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// Upstream's list of what every pod may set.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Which namespace a setting belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Network,
    Ipc,
}

impl Namespace {
    fn of(name: &str) -> Option<Self> {
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix));
        match name {
            "kernel.sem" => Some(Self::Ipc),
            _ if ipc => Some(Self::Ipc),
            _ if name.starts_with("net.") => Some(Self::Network),
            _ => None,
        }
    }
}

/// Whether an operator can allow it: a name, or the beginning of names with a star behind it.
pub fn is_pattern(pattern: &str) -> bool {
    Namespace::of(pattern).is_some() && !pattern.trim_end_matches('*').contains('*')
}

/// # Errors
/// Why the pod must not run here, in upstream's words.
pub fn check(pod: &Pod, allowed_unsafe: &[String]) -> Result<(), String> {
    let spec = pod::spec(pod);
    let sysctls = spec.and_then(|s| s.security_context.as_ref()?.sysctls.as_ref());
    let host_ipc = spec.and_then(|s| s.host_ipc).unwrap_or(false);
    for sysctl in sysctls.into_iter().flatten() {
        let name = with_dots(&sysctl.name);
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name,
        };
        let shared = match Namespace::of(&name) {
            Some(Namespace::Network) => pod::host_network(pod).then_some("host net"),
            Some(Namespace::Ipc) => host_ipc.then_some("host ipc"),
            None => return Err(format!("forbidden sysctl: {name:?} not allowlisted")),
        };
        if !SAFE.contains(&name.as_str()) && !allowed_unsafe.iter().any(fits) {
            return Err(format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        if let Some(shared) = shared {
            return Err(format!("forbidden sysctl: {name:?} not allowed with {shared} enabled"));
        }
    }
    Ok(())
}

/// `net/ipv4/conf/eth0.1/forwarding` is `net.ipv4.conf.eth0/1.forwarding`.
fn with_dots(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => {
            let swap = |letter| match letter {
                '/' => '.',
                '.' => '/',
                other => other,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_the_pods_own_may_be_set() {
        let of = |name: &str, more: serde_json::Value| {
            let mut spec = json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            let allowed = ["net.core.*".to_owned(), "kernel.msgmax".to_owned()];
            check(&pod, &allowed).map_err(|message| message.trim_start_matches("forbidden sysctl: ").to_owned())
        };
        for fine in ["kernel.shm_rmid_forced", "net.ipv4.tcp_syncookies", "net.core.somaxconn", "kernel/msgmax"] {
            assert_eq!(of(fine, json!({})), Ok(()), "{fine}");
        }
        for other in
            ["kernel.core_pattern", "net.ipv4.ip_forward", "vm.swappiness", "kernel/core_pattern", "kernel.msgmni"]
        {
            assert_eq!(of(other, json!({})), Err(format!("{:?} not allowlisted", other.replace('/', "."))));
        }
        let host = json!({"hostNetwork": true, "hostIPC": true});
        assert!(of("net.ipv4.tcp_syncookies", host.clone()).unwrap_err().contains("host net"));
        assert!(of("kernel.shm_rmid_forced", host).unwrap_err().contains("host ipc"));
    }

    #[test]
    fn nobody_can_allow_what_is_the_machines() {
        assert!(is_pattern("net.*") && is_pattern("kernel.msgmax") && is_pattern("kernel.sem"));
        assert!(!is_pattern("*") && !is_pattern("kernel.*") && !is_pattern("vm.swappiness") && !is_pattern("net.*.x*"));
    }
}
