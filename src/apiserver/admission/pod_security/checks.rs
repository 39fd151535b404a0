//! The controls of the pod security standards. Each finding reads as upstream's.

use serde_json::Value;

const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const SYSCTLS: [&str; 11] = [
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
];

const SELINUX_TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// Volume types that the restricted level knows.
const VOLUMES: [&str; 8] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected"];

fn containers(template: &Value) -> impl Iterator<Item = &Value> {
    LISTS.into_iter().flat_map(|list| template["spec"][list].as_array().into_iter().flatten())
}

fn name(container: &Value) -> String {
    format!("{:?}", container["name"].as_str().unwrap_or_default())
}

/// Names of the containers for which `bad` holds.
fn those(template: &Value, bad: impl Fn(&Value) -> bool) -> Vec<String> {
    containers(template).filter(|container| bad(container)).map(name).collect()
}

/// `container "a"`, `containers "a", "b"`.
fn plural(names: &[String]) -> String {
    format!("container{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// What the baseline level finds.
pub fn baseline(template: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let spec = &template["spec"];
    let privileged = those(template, |c| c["securityContext"]["privileged"] == true);
    if !privileged.is_empty() {
        found.push(format!("privileged ({} must not set securityContext.privileged=true)", plural(&privileged)));
    }
    let host: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| spec[*field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    if !host.is_empty() {
        found.push(format!("host namespaces ({})", host.join(", ")));
    }
    let host_paths: Vec<String> =
        spec["volumes"].as_array().into_iter().flatten().filter(|v| v["hostPath"].is_object()).map(name).collect();
    if !host_paths.is_empty() {
        let plural = if host_paths.len() == 1 { "" } else { "s" };
        found.push(format!("hostPath volumes (volume{plural} {})", host_paths.join(", ")));
    }
    let mut ports: Vec<String> = Vec::new();
    let with_ports = those(template, |c| {
        c["ports"].as_array().into_iter().flatten().any(|port| port["hostPort"].as_i64().unwrap_or(0) != 0)
    });
    for container in containers(template) {
        for port in container["ports"].as_array().into_iter().flatten().filter_map(|port| port["hostPort"].as_i64()) {
            if port != 0 && !ports.contains(&port.to_string()) {
                ports.push(port.to_string());
            }
        }
    }
    if !with_ports.is_empty() {
        let plural_ports = if ports.len() == 1 { "" } else { "s" };
        let verb = if with_ports.len() == 1 { "uses" } else { "use" };
        found.push(format!("hostPort ({} {verb} hostPort{plural_ports} {})", plural(&with_ports), ports.join(", ")));
    }
    let mut added: Vec<String> = Vec::new();
    let adding = those(template, |c| {
        strings(&c["securityContext"]["capabilities"]["add"]).any(|cap| !CAPABILITIES.contains(&cap))
    });
    for container in containers(template) {
        for capability in strings(&container["securityContext"]["capabilities"]["add"]) {
            let quoted = format!("{capability:?}");
            if !CAPABILITIES.contains(&capability) && !added.contains(&quoted) {
                added.push(quoted);
            }
        }
    }
    if !adding.is_empty() {
        added.sort();
        found.push(format!(
            "non-default capabilities ({} must not include {} in securityContext.capabilities.add)",
            plural(&adding),
            added.join(", ")
        ));
    }
    let proc_mount = |c: &Value| c["securityContext"]["procMount"].as_str().is_some_and(|mount| mount != "Default");
    let mounts = those(template, proc_mount);
    if !mounts.is_empty() && spec["hostUsers"] != false {
        found.push(format!("procMount ({} must not set securityContext.procMount)", plural(&mounts)));
    }
    let unconfined = |holder: &Value| holder["securityContext"]["seccompProfile"]["type"] == "Unconfined";
    let open = those(template, unconfined);
    if unconfined(spec) || !open.is_empty() {
        let what = "must not set securityContext.seccompProfile.type to \"Unconfined\"";
        found.push(format!("seccompProfile ({})", who(unconfined(spec), &open, what)));
    }
    let armor = |holder: &Value| holder["securityContext"]["appArmorProfile"]["type"] == "Unconfined";
    let armored = those(template, armor);
    if armor(spec) || !armored.is_empty() {
        found.push(format!(
            "forbidden AppArmor profile ({})",
            who(armor(spec), &armored, "must not set AppArmor profile type to \"Unconfined\"")
        ));
    }
    let selinux = |holder: &Value| {
        let options = &holder["securityContext"]["seLinuxOptions"];
        let set = |field: &str| options[field].as_str().is_some_and(|text| !text.is_empty());
        !SELINUX_TYPES.contains(&options["type"].as_str().unwrap_or_default()) || set("user") || set("role")
    };
    let labelled = those(template, selinux);
    if selinux(spec) || !labelled.is_empty() {
        found.push(format!(
            "seLinuxOptions ({})",
            who(selinux(spec), &labelled, "set forbidden securityContext.seLinuxOptions")
        ));
    }
    let sysctls: Vec<&str> = spec["securityContext"]["sysctls"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|sysctl| sysctl["name"].as_str())
        .filter(|name| !SYSCTLS.contains(name))
        .collect();
    if !sysctls.is_empty() {
        found.push(format!("forbidden sysctls ({})", sysctls.join(", ")));
    }
    let windows = |holder: &Value| holder["securityContext"]["windowsOptions"]["hostProcess"] == true;
    let processes = those(template, windows);
    if windows(spec) || !processes.is_empty() {
        let what = "must not set securityContext.windowsOptions.hostProcess=true";
        found.push(format!("hostProcess ({})", who(windows(spec), &processes, what)));
    }
    found
}

fn who(pod: bool, names: &[String], what: &str) -> String {
    match (pod, names.is_empty()) {
        (true, true) => format!("pod {what}"),
        (true, false) => format!("pod and {} {what}", plural(names)),
        (false, _) => format!("{} {what}", plural(names)),
    }
}

/// Adds what only the restricted level finds, and replaces findings that it has words of its own for.
pub fn restrict(template: &Value, found: &mut Vec<String>) {
    let spec = &template["spec"];
    let escalates = those(template, |c| c["securityContext"]["allowPrivilegeEscalation"] != false);
    if !escalates.is_empty() {
        found.push(format!(
            "allowPrivilegeEscalation != false ({} must set securityContext.allowPrivilegeEscalation=false)",
            plural(&escalates)
        ));
    }
    let drops_not =
        those(template, |c| !strings(&c["securityContext"]["capabilities"]["drop"]).any(|cap| cap == "ALL"));
    let more = |c: &Value| strings(&c["securityContext"]["capabilities"]["add"]).any(|cap| cap != "NET_BIND_SERVICE");
    let adds = those(template, more);
    if !drops_not.is_empty() || !adds.is_empty() {
        found.retain(|text| !text.starts_with("non-default capabilities"));
        let mut parts = Vec::new();
        if !drops_not.is_empty() {
            parts.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", plural(&drops_not)));
        }
        if !adds.is_empty() {
            let mut added: Vec<String> = containers(template)
                .flat_map(|c| {
                    strings(&c["securityContext"]["capabilities"]["add"]).map(str::to_owned).collect::<Vec<_>>()
                })
                .filter(|cap| cap != "NET_BIND_SERVICE")
                .map(|cap| format!("{cap:?}"))
                .collect();
            added.sort();
            added.dedup();
            parts.push(format!(
                "{} must not include {} in securityContext.capabilities.add",
                plural(&adds),
                added.join(", ")
            ));
        }
        found.push(format!("unrestricted capabilities ({})", parts.join("; ")));
    }
    let other_volumes: Vec<(String, String)> = spec["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|volume| {
            let kind = volume.as_object()?.keys().find(|key| *key != "name")?;
            (!VOLUMES.contains(&kind.as_str())).then(|| (name(volume), format!("{kind:?}")))
        })
        .collect();
    if !other_volumes.is_empty() {
        let (names, mut kinds): (Vec<String>, Vec<String>) = other_volumes.into_iter().unzip();
        kinds.sort();
        kinds.dedup();
        let (s, verb) = if names.len() == 1 { ("", "uses") } else { ("s", "use") };
        let types = if kinds.len() == 1 { "type" } else { "types" };
        found.push(format!(
            "restricted volume types (volume{s} {} {verb} restricted volume {types} {})",
            names.join(", "),
            kinds.join(", ")
        ));
    }
    let pod_non_root = spec["securityContext"]["runAsNonRoot"] == true;
    let says_root = those(template, |c| c["securityContext"]["runAsNonRoot"] == false);
    let says_nothing = those(template, |c| c["securityContext"]["runAsNonRoot"].is_null());
    if !says_root.is_empty() {
        found.push(format!(
            "runAsNonRoot != true ({} must not set securityContext.runAsNonRoot=false)",
            plural(&says_root)
        ));
    } else if !pod_non_root && !says_nothing.is_empty() {
        found.push(format!(
            "runAsNonRoot != true (pod or {} must set securityContext.runAsNonRoot=true)",
            plural(&says_nothing)
        ));
    }
    let roots = those(template, |c| c["securityContext"]["runAsUser"] == 0);
    let pod_root = spec["securityContext"]["runAsUser"] == 0;
    if pod_root || !roots.is_empty() {
        found.push(format!("runAsUser=0 ({})", who(pod_root, &roots, "must not set runAsUser=0")));
    }
    let fits = |holder: &Value| {
        matches!(holder["securityContext"]["seccompProfile"]["type"].as_str(), Some("RuntimeDefault" | "Localhost"))
    };
    let open = those(template, |c| c["securityContext"]["seccompProfile"].is_null());
    if !found.iter().any(|text| text.starts_with("seccompProfile")) && !fits(spec) && !open.is_empty() {
        found.push(format!(
            "seccompProfile (pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
            plural(&open)
        ));
    }
}
