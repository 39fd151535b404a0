//! The CRI configuration of one container.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use mussel_cri::v1;

use crate::cri::image_spec;
use crate::security::ImageUser;
use crate::volumes::{Mounted, bind_sub_path};
use crate::{fields, labels, resources, security};

/// All that goes into a container's configuration and is not in its spec.
pub struct Making<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub pod_dir: &'a Path,
    pub root_dir: &'a Path,
    pub volumes: &'a HashMap<String, Mounted>,
    pub env: &'a [(String, String)],
    pub image_ref: &'a str,
    pub image_user: &'a ImageUser,
    pub restarts: i32,
    /// Of the container whose processes an ephemeral container sees.
    pub target: Option<&'a str>,
    pub hosts_file: Option<&'a Path>,
    pub memory_capacity: i64,
    pub cgroup_v2: bool,
}

/// # Errors
/// A text for a `CreateContainerConfigError`.
pub fn config(making: &Making) -> Result<v1::ContainerConfig, String> {
    let Making { pod, container, env, .. } = *making;
    security::check_non_root(pod, container, making.image_user)?;
    let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expand = |list: &Option<Vec<String>>| list.iter().flatten().map(|t| fields::expand(t, lookup)).collect();
    let mut mounts = Vec::new();
    for (i, mount) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(volume_mount(making, i, mount, &lookup)?);
    }
    let covers =
        |path: &str| container.volume_mounts.iter().flatten().any(|m| m.mount_path.trim_end_matches('/') == path);
    if let Some(hosts) = making.hosts_file.filter(|_| !covers("/etc/hosts")) {
        mounts.push(bind("/etc/hosts", hosts));
    }
    if let Some(path) = container.termination_message_path.as_deref().filter(|p| !p.is_empty()) {
        mounts.push(bind(path, &termination_file(making).map_err(|e| format!("termination message file: {e}"))?));
    }
    let mut image = image_spec(making.image_ref);
    image.user_specified_image = container.image.clone().unwrap_or_default();
    let stop_signal = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.stop_signal.as_deref())
        .and_then(v1::Signal::from_str_name)
        .unwrap_or_default();
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: container.name.clone(),
            attempt: u32::try_from(making.restarts).unwrap_or_default(),
        }),
        image: Some(image),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: env.iter().map(|(key, value)| v1::KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts,
        labels: labels::container_labels(pod, container),
        annotations: labels::container_annotations(pod, container, making.restarts),
        log_path: format!("{}/{}.log", container.name, making.restarts),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources::container_resources(pod, container, making.memory_capacity, making.cgroup_v2)),
            security_context: Some(security::of_container(
                pod,
                container,
                making.target,
                making.image_user,
                making.root_dir,
            )),
        }),
        stop_signal: stop_signal.into(),
        ..Default::default()
    })
}

fn bind(container_path: &str, host_path: &Path) -> v1::Mount {
    v1::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.display().to_string(),
        ..Default::default()
    }
}

fn volume_mount(
    making: &Making,
    index: usize,
    mount: &VolumeMount,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<v1::Mount, String> {
    let Some(volume) = making.volumes.get(&mount.name) else {
        return Err(format!(
            "cannot find volume \"{}\" to mount into container \"{}\"",
            mount.name, making.container.name
        ));
    };
    let sub_path = match (mount.sub_path_expr.as_deref(), mount.sub_path.as_deref()) {
        (Some(text), _) if !text.is_empty() => fields::expand_strict(text, lookup)?,
        (_, Some(path)) => path.to_owned(),
        _ => String::new(),
    };
    let mut out = v1::Mount {
        container_path: mount.mount_path.clone(),
        readonly: mount.read_only.unwrap_or(false) || volume.read_only,
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
            _ => v1::MountPropagation::PropagationPrivate,
        }
        .into(),
        recursive_read_only: mount.read_only.unwrap_or(false)
            && matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
        ..Default::default()
    };
    if !out.container_path.starts_with('/') {
        out.container_path.insert(0, '/');
    }
    if let Some(image) = &volume.image {
        out.image = Some(image_spec(image));
        out.image_sub_path = sub_path;
        return Ok(out);
    }
    let path = if sub_path.is_empty() {
        volume.path.clone()
    } else {
        if Path::new(&sub_path).is_absolute() {
            return Err(format!("error SubPath `{sub_path}` must not be an absolute path"));
        }
        let target = making
            .pod_dir
            .join("volume-subpaths")
            .join(&mount.name)
            .join(&making.container.name)
            .join(index.to_string());
        bind_sub_path(&volume.path, &sub_path, &target, !volume.read_only).map_err(|e| {
            format!(
                "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}",
                mount.name, making.container.name
            )
        })?
    };
    out.host_path = path.display().to_string();
    Ok(out)
}

/// A fresh file that any user of the container may write its last words to.
fn termination_file(making: &Making) -> std::io::Result<PathBuf> {
    let dir = making.pod_dir.join("containers").join(&making.container.name);
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{:08x}", rand::random::<u32>()));
    fs::write(&path, b"")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    Ok(path)
}
