//! Security contexts, from the pod's and the container's to what the runtime is told.

use std::path::Path;

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SELinuxOptions, SeccompProfile, SecurityContext};
use mussel_cri::v1;
use mussel_cri::v1::security_profile::ProfileType;

use crate::pod;

/// Paths of `/proc` and `/sys` that tell or change too much about the node.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|s| s.privileged).unwrap_or(false)
}

pub fn run_as_user(pod: &Pod, container: &Container) -> Option<i64> {
    let own = container.security_context.as_ref().and_then(|s| s.run_as_user);
    own.or_else(|| pod::spec(pod)?.security_context.as_ref()?.run_as_user)
}

fn value(number: Option<i64>) -> Option<v1::Int64Value> {
    number.map(|value| v1::Int64Value { value })
}

/// Which namespaces are shared. `target` is the container whose processes an ephemeral container sees.
pub fn namespaces(pod: &Pod, target: Option<&str>) -> v1::NamespaceOption {
    let spec = pod::spec(pod);
    let flag = |f: fn(&k8s_openapi::api::core::v1::PodSpec) -> Option<bool>| spec.and_then(f).unwrap_or(false);
    let node = |on: bool| if on { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod };
    let pid = if flag(|s| s.host_pid) {
        v1::NamespaceMode::Node
    } else if flag(|s| s.share_process_namespace) {
        v1::NamespaceMode::Pod
    } else if target.is_some() {
        v1::NamespaceMode::Target
    } else {
        v1::NamespaceMode::Container
    };
    v1::NamespaceOption {
        network: node(flag(|s| s.host_network)).into(),
        pid: pid.into(),
        ipc: node(flag(|s| s.host_ipc)).into(),
        target_id: target.unwrap_or_default().to_owned(),
        userns_options: None,
    }
}

/// Supplemental groups of every container of the pod; the group of its volumes is one.
fn groups(pod: &Pod) -> (Vec<i64>, i32) {
    let Some(context) = pod::spec(pod).and_then(|s| s.security_context.as_ref()) else { return (Vec::new(), 0) };
    let mut groups = context.supplemental_groups.clone().unwrap_or_default();
    groups.extend(context.fs_group);
    let strict = context.supplemental_groups_policy.as_deref() == Some("Strict");
    (groups, i32::from(strict))
}

fn seccomp(profile: Option<&SeccompProfile>, privileged: bool, root_dir: &Path) -> v1::SecurityProfile {
    let mut out = v1::SecurityProfile { profile_type: ProfileType::Unconfined.into(), localhost_ref: String::new() };
    if privileged {
        return out;
    }
    match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => out.profile_type = ProfileType::RuntimeDefault.into(),
        Some("Localhost") => {
            let name = profile.and_then(|p| p.localhost_profile.as_deref()).unwrap_or_default();
            out.profile_type = ProfileType::Localhost.into();
            out.localhost_ref = root_dir.join("seccomp").join(name).display().to_string();
        }
        _ => {}
    }
    out
}

fn apparmor(profile: Option<&AppArmorProfile>, privileged: bool) -> Option<v1::SecurityProfile> {
    let profile = profile.filter(|_| !privileged)?;
    let (type_, name) = match profile.type_.as_str() {
        "RuntimeDefault" => (ProfileType::RuntimeDefault, String::new()),
        "Localhost" => (ProfileType::Localhost, profile.localhost_profile.clone().unwrap_or_default()),
        _ => (ProfileType::Unconfined, String::new()),
    };
    Some(v1::SecurityProfile { profile_type: type_.into(), localhost_ref: name })
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<v1::SeLinuxOption> {
    options.map(|o| v1::SeLinuxOption {
        user: o.user.clone().unwrap_or_default(),
        role: o.role.clone().unwrap_or_default(),
        r#type: o.type_.clone().unwrap_or_default(),
        level: o.level.clone().unwrap_or_default(),
    })
}

pub fn of_sandbox(pod: &Pod, root_dir: &Path) -> v1::LinuxSandboxSecurityContext {
    let context = pod::spec(pod).and_then(|s| s.security_context.as_ref());
    let privileged = pod::all_containers(pod).iter().any(is_privileged);
    let (supplemental_groups, policy) = groups(pod);
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None)),
        selinux_options: selinux(context.and_then(|c| c.se_linux_options.as_ref())),
        run_as_user: value(context.and_then(|c| c.run_as_user)),
        run_as_group: value(context.and_then(|c| c.run_as_group)),
        supplemental_groups,
        supplemental_groups_policy: policy,
        privileged,
        seccomp: Some(seccomp(context.and_then(|c| c.seccomp_profile.as_ref()), privileged, root_dir)),
        ..Default::default()
    }
}

/// What the image says about its user.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

pub fn of_container(
    pod: &Pod,
    container: &Container,
    target: Option<&str>,
    image: &ImageUser,
    root_dir: &Path,
) -> v1::LinuxContainerSecurityContext {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let shared = pod::spec(pod).and_then(|s| s.security_context.as_ref());
    let privileged = own.privileged.unwrap_or(false);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() };
    let capabilities = own.capabilities.as_ref().map(|c| v1::Capability {
        add_capabilities: c.add.clone().unwrap_or_default(),
        drop_capabilities: c.drop.clone().unwrap_or_default(),
        add_ambient_capabilities: Vec::new(),
    });
    let user = run_as_user(pod, container).or(image.uid);
    let (supplemental_groups, policy) = groups(pod);
    let group = own.run_as_group.or_else(|| shared.and_then(|s| s.run_as_group));
    let profile = own.seccomp_profile.as_ref().or_else(|| shared.and_then(|s| s.seccomp_profile.as_ref()));
    let armor = own.app_armor_profile.as_ref().or_else(|| shared.and_then(|s| s.app_armor_profile.as_ref()));
    let labels = own.se_linux_options.as_ref().or_else(|| shared.and_then(|s| s.se_linux_options.as_ref()));
    v1::LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options: Some(namespaces(pod, target)),
        selinux_options: selinux(labels),
        run_as_user: value(user),
        run_as_group: value(group),
        run_as_username: if user.is_none() { image.name.clone() } else { String::new() },
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups,
        supplemental_groups_policy: policy,
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(profile, privileged, root_dir)),
        apparmor: apparmor(armor, privileged),
    }
}

/// The check behind `runAsNonRoot`.
///
/// # Errors
/// Upstream's text, for a `CreateContainerConfigError`.
pub fn check_non_root(pod: &Pod, container: &Container, image: &ImageUser) -> Result<(), String> {
    let own = container.security_context.as_ref().and_then(|s| s.run_as_non_root);
    let wanted = own.or_else(|| pod::spec(pod)?.security_context.as_ref()?.run_as_non_root).unwrap_or(false);
    if !wanted {
        return Ok(());
    }
    let whose = || format!("(pod: \"{}\", container: {})", pod::full(pod), container.name);
    match run_as_user(pod, container) {
        Some(0) => return Err(format!("container's runAsUser breaks non-root policy {}", whose())),
        Some(_) => return Ok(()),
        None => {}
    }
    match (image.uid, image.name.as_str()) {
        (Some(0), _) | (None, "") => Err(format!("container has runAsNonRoot and image will run as root {}", whose())),
        (None, name) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {}",
            whose()
        )),
        (Some(_), _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn non_root_is_checked_against_spec_and_image() {
        let user = |uid, name: &str| ImageUser { uid, name: name.into() };
        for (context, image, ok) in [
            (json!({}), user(Some(0), ""), true),
            (json!({"runAsNonRoot": true}), user(Some(0), ""), false),
            (json!({"runAsNonRoot": true}), user(None, ""), false),
            (json!({"runAsNonRoot": true}), user(None, "web"), false),
            (json!({"runAsNonRoot": true}), user(Some(7), ""), true),
            (json!({"runAsNonRoot": true, "runAsUser": 5}), user(Some(0), ""), true),
            (json!({"runAsNonRoot": true, "runAsUser": 0}), user(Some(7), ""), false),
        ] {
            let value = json!({"spec": {"containers": [{"name": "c", "securityContext": context}]}});
            let pod: Pod = serde_json::from_value(value).unwrap();
            assert_eq!(check_non_root(&pod, &pod::containers(&pod)[0], &image).is_ok(), ok, "{context}");
        }
    }
}
