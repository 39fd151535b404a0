//! From a CRI container config to the OCI runtime documents that libcontainer reads. Pure but for looks at the host
//! that the plan carries in [`Host`].
//!
//! `noNewPrivileges` is left out when false, HOME and PATH are always set, and cgroups are shown by bind mounts: each
//! of these keeps libcontainer from doing something unwanted.

use std::path::{Path, PathBuf};

use mussel_cri::v1::security_profile::ProfileType;
use mussel_cri::v1::{
    ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, MountPropagation, NamespaceMode,
};
use serde_json::{Map, Value, json};

use crate::capabilities::Capabilities;
use crate::cgroup::Hierarchies;
use crate::devices::{self, DeviceNode};
use crate::image::ImageConfig;
use crate::seccomp::{self, SeccompError};
use crate::user::User;

/// What a process finds programs by when neither pod nor image says so.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Facts of the host that the spec depends on.
#[derive(Debug, Clone)]
pub struct Host {
    pub hierarchies: Hierarchies,
    /// The lowest OOM score that a child may get: lower ones need a capability that not every host gives us.
    pub oom_score_adj_min: i64,
    /// The kernel has seccomp filters.
    pub seccomp: bool,
    /// The use of devices is checked: by version 1 of cgroups, or by a program of ours.
    pub device_filter: bool,
    /// The kernel has AppArmor, and it is on.
    pub apparmor: bool,
}

/// The namespaces of the pod that containers join; `None` is the node's.
#[derive(Debug, Clone, Default)]
pub struct PodNamespaces {
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
}

/// A container's PID namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    Own,
    Node,
    Join(PathBuf),
}

/// A resolved mount: the source exists.
#[derive(Debug, Clone)]
pub struct BindMount {
    pub source: PathBuf,
    pub destination: String,
    pub read_only: bool,
    pub recursive_read_only: bool,
    pub propagation: MountPropagation,
}

/// Everything that goes into the documents.
pub struct Plan<'a> {
    pub host: &'a Host,
    pub config: &'a ContainerConfig,
    pub image: &'a ImageConfig,
    pub user: &'a User,
    pub rootfs: &'a Path,
    pub hostname: &'a str,
    pub namespaces: &'a PodNamespaces,
    pub pid: &'a PidNamespace,
    pub cgroup: &'a str,
    /// Those of the config, then the runtime's own that the config does not give.
    pub mounts: &'a [BindMount],
    /// Host directories of the cgroup and where in the container each shall be seen.
    pub devices: &'a [DeviceNode],
    /// Its processes load a filter.
    pub seccomp: bool,
}

/// The security context, which CRI allows to be absent.
pub fn security(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

fn resources(config: &ContainerConfig) -> LinuxContainerResources {
    config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
}

/// What to run: the pod's command replaces the image's entrypoint and cmd, the pod's args only its cmd.
pub fn arguments(config: &ContainerConfig, image: &ImageConfig) -> Vec<String> {
    match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
        (true, false) => [image.entrypoint.clone(), config.args.clone()].concat(),
        (false, _) => [config.command.clone(), config.args.clone()].concat(),
    }
}

/// Where the process starts; never empty.
pub fn working_dir(config: &ContainerConfig, image: &ImageConfig) -> String {
    let dir = [&config.working_dir, &image.working_dir].into_iter().find(|dir| !dir.is_empty());
    dir.map_or_else(|| "/".to_owned(), |dir| if dir.starts_with('/') { dir.clone() } else { format!("/{dir}") })
}

/// Later settings of a variable win, at the place of the first.
fn environment(plan: &Plan<'_>) -> Vec<String> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match variables.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value.to_owned(),
        None => variables.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", DEFAULT_PATH);
    set("HOSTNAME", plan.hostname);
    if plan.config.tty {
        set("TERM", "xterm");
    }
    set("HOME", &plan.user.home);
    for variable in &plan.image.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(name, value);
    }
    for variable in &plan.config.envs {
        set(&variable.key, &variable.value);
    }
    variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn capabilities_of(security: &LinuxContainerSecurityContext, host: &Host) -> Capabilities {
    if security.privileged {
        return Capabilities::all();
    }
    // A container that can make device nodes where nobody checks their use could use any device.
    Capabilities::of_container(&security.capabilities.clone().unwrap_or_default(), host.device_filter)
}

/// The filter of the container's profile; none for privileged containers and those that want none.
pub fn seccomp(config: &ContainerConfig, host: &Host) -> Result<Option<seccomp::Program>, SeccompError> {
    let security = security(config);
    let Some(wanted) = security.seccomp.as_ref().filter(|_| !security.privileged) else { return Ok(None) };
    let profile = match wanted.profile_type() {
        ProfileType::Unconfined => return Ok(None),
        // As elsewhere: the default is what the kernel can do, and a profile that was asked for by name is a demand.
        ProfileType::RuntimeDefault if !host.seccomp => return Ok(None),
        ProfileType::RuntimeDefault => seccomp::runtime_default(capabilities_of(&security, host).names()),
        ProfileType::Localhost if !host.seccomp => {
            return Err(SeccompError::Unsupported("seccomp by this kernel".into()));
        }
        ProfileType::Localhost => seccomp::load(Path::new(&wanted.localhost_ref))?,
    };
    seccomp::compile(&profile).map(Some)
}

/// The process document of the container's first process. Others start from it ([`exec_process`]).
pub fn process(plan: &Plan<'_>) -> Value {
    let security = security(plan.config);
    let mut capabilities = capabilities_of(&security, plan.host);
    if plan.seccomp && !security.no_new_privs {
        capabilities.lend("SYS_ADMIN");
    }
    let mut process = json!({
        "terminal": plan.config.tty,
        "user": {"uid": plan.user.uid, "gid": plan.user.gid, "additionalGids": plan.user.groups},
        "args": arguments(plan.config, plan.image),
        "env": environment(plan),
        "cwd": working_dir(plan.config, plan.image),
        "capabilities": capabilities.to_json(),
        "oomScoreAdj": resources(plan.config).oom_score_adj.clamp(plan.host.oom_score_adj_min, 1000),
    });
    if security.no_new_privs {
        process["noNewPrivileges"] = true.into();
    }
    // A profile of the node, by name. Where there is no AppArmor the kubelet does not admit the pod.
    let armor = security.apparmor.as_ref().filter(|_| plan.host.apparmor && !security.privileged);
    if let Some(armor) = armor.filter(|armor| armor.profile_type() == ProfileType::Localhost) {
        process["apparmorProfile"] = armor.localhost_ref.clone().into();
    }
    process
}

/// The document of one more process, from that of the first.
pub fn exec_process(first: &Value, command: &[String], tty: bool) -> Value {
    let mut process = first.clone();
    process["args"] = json!(command);
    process["terminal"] = tty.into();
    if tty && let Some(env) = process["env"].as_array_mut() {
        let has_term = env.iter().any(|variable| variable.as_str().is_some_and(|text| text.starts_with("TERM=")));
        if !has_term {
            env.push("TERM=xterm".into());
        }
    }
    process
}

/// The whole `config.json`.
pub fn spec(plan: &Plan<'_>) -> Value {
    let security = security(plan.config);
    json!({
        "ociVersion": "1.0.2",
        "process": process(plan),
        "root": {"path": plan.rootfs, "readonly": security.readonly_rootfs},
        "mounts": mounts(plan),
        "linux": linux(plan),
    })
}

fn mounts(plan: &Plan<'_>) -> Vec<Value> {
    let privileged = security(plan.config).privileged;
    let sys = if privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
    ];
    mounts.extend(cgroup_mounts(plan, privileged, &mount));
    // Parents before children, whatever order the caller chose: a mount hides what is below it.
    let mut binds: Vec<&BindMount> = plan.mounts.iter().collect();
    binds.sort_by_key(|bind| Path::new(&bind.destination).components().count());
    for bind in binds {
        let mut options = vec!["rbind"];
        options.push(match bind.propagation {
            MountPropagation::PropagationPrivate => "rprivate",
            MountPropagation::PropagationHostToContainer => "rslave",
            MountPropagation::PropagationBidirectional => "rshared",
        });
        options.push(match (bind.read_only, bind.recursive_read_only) {
            (true, true) => "rro",
            (true, false) => "ro",
            _ => "rw",
        });
        mounts.retain(|mount| mount["destination"] != bind.destination.as_str());
        let source = bind.source.to_string_lossy();
        mounts.push(mount(&bind.destination, "bind", &source, &options));
    }
    mounts
}

/// `/sys/fs/cgroup` as a container expects it: the node's for a privileged one, else its own cgroup, read-only.
fn cgroup_mounts(plan: &Plan<'_>, privileged: bool, mount: &dyn Fn(&str, &str, &str, &[&str]) -> Value) -> Vec<Value> {
    let bind = |destination: &str, source: &Path, options: &[&str]| {
        mount(destination, "bind", &source.to_string_lossy(), options)
    };
    if privileged {
        return vec![bind("/sys/fs/cgroup", Path::new("/sys/fs/cgroup"), &["rbind", "rprivate", "rw"])];
    }
    let own = ["bind", "rprivate", "nosuid", "noexec", "nodev", "ro"];
    match &plan.host.hierarchies {
        Hierarchies::V2(_) => {
            plan.host.hierarchies.dirs(plan.cgroup).iter().map(|dir| bind("/sys/fs/cgroup", dir, &own)).collect()
        }
        Hierarchies::V1(hierarchies) => {
            let tmpfs = mount("/sys/fs/cgroup", "tmpfs", "tmpfs", &["nosuid", "noexec", "nodev", "mode=755"]);
            let binds = hierarchies.iter().zip(plan.host.hierarchies.dirs(plan.cgroup)).filter_map(|((_, at), dir)| {
                let name = at.file_name()?.to_str()?;
                Some(bind(&format!("/sys/fs/cgroup/{name}"), &dir, &own))
            });
            [tmpfs].into_iter().chain(binds).collect()
        }
    }
}

fn linux(plan: &Plan<'_>) -> Value {
    let security = security(plan.config);
    let mut namespaces = vec![json!({"type": "mount"})];
    let mut join = |kind: &str, path: &Option<PathBuf>| {
        if let Some(path) = path {
            namespaces.push(json!({"type": kind, "path": path}));
        }
    };
    join("network", &plan.namespaces.net);
    join("ipc", &plan.namespaces.ipc);
    join("uts", &plan.namespaces.uts);
    match plan.pid {
        PidNamespace::Own => namespaces.push(json!({"type": "pid"})),
        PidNamespace::Node => {}
        PidNamespace::Join(path) => namespaces.push(json!({"type": "pid", "path": path})),
    }
    let propagation = plan.mounts.iter().map(|mount| mount.propagation).max().unwrap_or_default();
    let mut read_only = if security.privileged { Vec::new() } else { security.readonly_paths };
    if !security.privileged && !plan.host.hierarchies.is_v2() {
        // The directory that holds the hierarchies; it could not be before they were mounted.
        read_only.push("/sys/fs/cgroup".to_owned());
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": plan.cgroup,
        "resources": limits(plan, security.privileged),
        "devices": plan.devices.iter().map(DeviceNode::to_json).collect::<Vec<_>>(),
        "maskedPaths": if security.privileged { Vec::new() } else { security.masked_paths },
        "readonlyPaths": read_only,
    });
    // Recursive in libcontainer, though not in name. Its default is slave.
    if propagation == MountPropagation::PropagationBidirectional {
        linux["rootfsPropagation"] = "shared".into();
    }
    linux
}

fn limits(plan: &Plan<'_>, privileged: bool) -> Value {
    let resources = resources(plan.config);
    let hierarchies = &plan.host.hierarchies;
    let mut cpu = Map::new();
    let mut set = |name: &str, value: Value, wanted: bool| {
        if wanted {
            cpu.insert(name.to_owned(), value);
        }
    };
    set("shares", resources.cpu_shares.into(), resources.cpu_shares > 0);
    set("quota", resources.cpu_quota.into(), resources.cpu_quota != 0);
    set("period", resources.cpu_period.into(), resources.cpu_period > 0 && resources.cpu_quota != 0);
    set("cpus", resources.cpuset_cpus.clone().into(), !resources.cpuset_cpus.is_empty());
    set("mems", resources.cpuset_mems.clone().into(), !resources.cpuset_mems.is_empty());
    let mut limits = json!({
        "devices": devices::rules(plan.devices, privileged).iter().map(devices::Rule::to_json).collect::<Vec<_>>(),
    });
    if !cpu.is_empty() {
        limits["cpu"] = cpu.into();
    }
    if resources.memory_limit_in_bytes != 0 {
        limits["memory"] = json!({"limit": resources.memory_limit_in_bytes});
        let parent = Path::new(plan.cgroup).parent().map(|parent| parent.to_string_lossy()).unwrap_or_default();
        if resources.memory_swap_limit_in_bytes != 0 && hierarchies.limits_swap(&parent) {
            limits["memory"]["swap"] = resources.memory_swap_limit_in_bytes.into();
        }
    }
    // The kubelet sends zeroes for every page size; a limit without its controller would be an error.
    if hierarchies.has_controller("hugetlb") && !resources.hugepage_limits.is_empty() {
        let pages =
            resources.hugepage_limits.iter().map(|limit| json!({"pageSize": limit.page_size, "limit": limit.limit}));
        limits["hugepageLimits"] = pages.collect::<Vec<_>>().into();
    }
    if hierarchies.is_v2() && !resources.unified.is_empty() {
        limits["unified"] = json!(resources.unified);
    }
    limits
}

/// Which PID namespace a container gets. `target` and `pause` are processes of this pod.
pub fn pid_namespace(mode: NamespaceMode, pause: Option<i32>, target: Option<i32>) -> Result<PidNamespace, String> {
    let of = |pid: i32| PidNamespace::Join(format!("/proc/{pid}/ns/pid").into());
    match mode {
        NamespaceMode::Container => Ok(PidNamespace::Own),
        NamespaceMode::Node => Ok(PidNamespace::Node),
        NamespaceMode::Pod => pause.map(of).ok_or_else(|| "the sandbox has no PID namespace to share".to_owned()),
        NamespaceMode::Target => target.map(of).ok_or_else(|| "the target container is not running".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mussel_cri::v1::{KeyValue, LinuxContainerConfig};

    fn with_plan(config: &ContainerConfig, image: &ImageConfig, check: impl FnOnce(&Plan<'_>)) {
        let host = Host {
            hierarchies: Hierarchies::V2("/sys/fs/cgroup".into()),
            oom_score_adj_min: -10,
            seccomp: true,
            device_filter: false,
            apparmor: false,
        };
        let user = User { uid: 5, gid: 6, groups: vec![6, 7], home: "/home/u".into() };
        let mounts = [BindMount {
            source: "/src".into(),
            destination: "/dst".into(),
            read_only: true,
            recursive_read_only: false,
            propagation: MountPropagation::PropagationHostToContainer,
        }];
        check(&Plan {
            host: &host,
            config,
            image,
            user: &user,
            rootfs: Path::new("/r"),
            hostname: "pod",
            namespaces: &PodNamespaces { net: Some("/ns".into()), ..Default::default() },
            pid: &PidNamespace::Own,
            cgroup: "/kubepods/x/c",
            mounts: &mounts,
            devices: &[],
            seccomp: false,
        });
    }

    #[test]
    fn commands_follow_kubernetes() {
        let image = ImageConfig { entrypoint: vec!["e".into()], cmd: vec!["c".into()], ..Default::default() };
        let run = |command: &[&str], args: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
            arguments(&ContainerConfig { command: own(command), args: own(args), ..Default::default() }, &image)
                .join(" ")
        };
        assert_eq!(run(&[], &[]), "e c");
        assert_eq!(run(&[], &["a"]), "e a");
        assert_eq!(run(&["x"], &[]), "x");
        assert_eq!(run(&["x"], &["a"]), "x a");
    }

    #[test]
    fn the_environment_is_layered() {
        let image = ImageConfig { env: vec!["PATH=/bin".into(), "A=1".into()], ..Default::default() };
        let envs = vec![KeyValue { key: "A".into(), value: "2".into() }];
        with_plan(&ContainerConfig { envs, ..Default::default() }, &image, |plan| {
            assert_eq!(environment(plan), ["PATH=/bin", "HOSTNAME=pod", "HOME=/home/u", "A=2"]);
        });
    }

    #[test]
    fn the_spec_says_what_was_asked() {
        let resources = LinuxContainerResources { oom_score_adj: -997, memory_limit_in_bytes: 5, ..Default::default() };
        let linux = LinuxContainerConfig { resources: Some(resources), security_context: None };
        with_plan(&ContainerConfig { linux: Some(linux), ..Default::default() }, &ImageConfig::default(), |plan| {
            let spec = spec(plan);
            assert_eq!(spec["process"]["oomScoreAdj"], -10);
            assert_eq!(spec["process"].get("noNewPrivileges"), None);
            assert_eq!(spec["linux"]["resources"]["memory"], json!({"limit": 5}));
            assert_eq!(spec["linux"].get("rootfsPropagation"), None);
            assert_eq!(spec["linux"]["namespaces"][1], json!({"type": "network", "path": "/ns"}));
            let mounts = spec["mounts"].as_array().unwrap();
            assert_eq!(mounts.last().unwrap()["options"], json!(["rbind", "rslave", "ro"]));
        });
    }

    #[test]
    fn further_processes_keep_the_user() {
        with_plan(&ContainerConfig::default(), &ImageConfig::default(), |plan| {
            let process = exec_process(&process(plan), &["id".into()], true);
            assert_eq!((&process["args"][0], &process["user"]["uid"]), (&json!("id"), &json!(5)));
            assert!(process["env"].as_array().unwrap().contains(&json!("TERM=xterm")));
        });
    }
}
