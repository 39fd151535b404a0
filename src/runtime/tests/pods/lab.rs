//! A runtime in a temporary directory with its own cgroups, and an end to everything in it, come what may.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mussel_cri::v1::runtime_service_client::RuntimeServiceClient;
use mussel_cri::v1::runtime_service_server::RuntimeServiceServer;
use mussel_cri::v1::*;
use mussel_runtime::image::{ImageConfig, ImageSource, ResolveError, ResolvedImage};
use mussel_runtime::network::LoopbackOnly;
use mussel_runtime::{Config, Runtime};

const BUSYBOX: &str = "/bin/busybox";

/// No case takes longer unless something hangs.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

pub type Case = fn(Lab) -> Pin<Box<dyn Future<Output = ()>>>;
pub type Client = RuntimeServiceClient<RuntimeServiceServer<Runtime>>;

/// Why the tests cannot run here.
pub fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    (!Path::new(BUSYBOX).exists()).then_some("no /bin/busybox")
}

/// Runs one case and cleans up after it. A failed assertion does not stop the others.
pub fn run(case: &Case) -> bool {
    let dir = tempfile::tempdir().expect("temporary directory");
    let cgroup = format!("/mussel-test-{}", uuid::Uuid::new_v4().simple());
    let lab = Lab { dir: dir.path().to_owned(), cgroup: cgroup.clone() };
    lab.make_image();
    let case = *case;
    let thread = std::thread::spawn(move || {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("tokio");
        tokio.block_on(async {
            tokio::time::timeout(CASE_TIMEOUT, case(lab)).await.expect("the case takes too long");
        });
    });
    let passed = thread.join().is_ok();
    if !passed {
        show_logs(dir.path());
    }
    clean(dir.path(), &cgroup);
    let leftovers = leftovers(dir.path(), &cgroup);
    if !leftovers.is_empty() {
        println!("left behind: {leftovers:?}");
    }
    passed && leftovers.is_empty()
}

fn show_logs(dir: &Path) {
    for entry in fs::read_dir(dir.join("run/shim")).into_iter().flatten().flatten() {
        if let Ok(text) = fs::read_to_string(entry.path().join("shim.log")) {
            println!("shim.log: {text}");
        }
    }
}

fn shims(dir: &Path) -> Vec<i32> {
    let wanted = dir.as_os_str().as_encoded_bytes();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        *pid != std::process::id().cast_signed()
            && fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.windows(wanted.len()).any(|part| part == wanted))
    })
    .collect()
}

fn cgroups(cgroup: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts.lines().filter(|line| line.contains(" - cgroup"));
    let dirs = mounts.filter_map(|line| line.split(' ').nth(4)).map(|mount| Path::new(mount).join(&cgroup[1..]));
    dirs.filter(|dir| dir.exists()).collect()
}

fn kill_and_remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        kill_and_remove(&entry.path());
    }
    for _ in 0..200 {
        let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines().filter_map(|line| line.parse().ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        if fs::remove_dir(dir).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn clean(dir: &Path, cgroup: &str) {
    for pid in shims(dir) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
    for dir in cgroups(cgroup) {
        kill_and_remove(&dir);
    }
    let _ = mussel_runtime::snapshot::unmount_below(dir);
}

fn leftovers(dir: &Path, cgroup: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let text = dir.to_string_lossy();
    let mounts = mounts.lines().filter(|line| line.contains(text.as_ref())).map(str::to_owned);
    let cgroups = cgroups(cgroup).into_iter().map(|dir| dir.display().to_string());
    mounts.chain(cgroups).collect()
}

struct OneImage(PathBuf);

#[async_trait::async_trait]
impl ImageSource for OneImage {
    async fn resolve(&self, image: &str) -> Result<ResolvedImage, ResolveError> {
        if image != "busybox" {
            return Err(ResolveError::NotFound(image.to_owned()));
        }
        Ok(ResolvedImage {
            id: "sha256:b".into(),
            reference: "sha256:b".into(),
            config: ImageConfig {
                env: vec!["IMAGE=yes".into()],
                cmd: vec!["sh".into()],
                labels: BTreeMap::new(),
                ..ImageConfig::default()
            },
            layers: vec![self.0.join("upper-layer"), self.0.join("layer")],
        })
    }
}

/// Where one case plays.
#[derive(Clone)]
pub struct Lab {
    pub dir: PathBuf,
    pub cgroup: String,
}

impl Lab {
    fn make_image(&self) {
        let layer = self.dir.join("images/layer");
        for name in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
            fs::create_dir_all(layer.join(name)).expect("layer");
        }
        fs::create_dir_all(self.dir.join("images/upper-layer/etc")).expect("layer");
        fs::copy(BUSYBOX, layer.join("bin/busybox")).expect("busybox");
        for name in [
            "sh", "cat", "echo", "sleep", "id", "env", "true", "kill", "ps", "ls", "hostname", "stty", "dd", "yes",
            "seq", "mount", "touch", "trap", "readlink", "pwd", "tail", "grep", "head", "mknod", "nc", "setsid",
        ] {
            let _ = std::os::unix::fs::symlink("busybox", layer.join("bin").join(name));
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\n")
            .expect("passwd");
        fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:33:\nextra:x:50:web\n").expect("group");
        fs::write(self.dir.join("images/upper-layer/etc/layered"), "top\n").expect("layer");
    }

    pub async fn open(&self) -> Runtime {
        Runtime::open(Config {
            root_dir: self.dir.join("root"),
            run_dir: self.dir.join("run"),
            shim_exe: "/proc/self/exe".into(),
            cgroup_root: self.cgroup.clone(),
            network: Arc::new(LoopbackOnly),
            images: Arc::new(OneImage(self.dir.join("images"))),
        })
        .await
        .expect("runtime opens")
    }

    pub fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.dir.join("logs").join(name).to_string_lossy().into_owned(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/kubepods/{name}", self.cgroup),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Ends all processes and mounts, as a reboot would.
    pub fn kill_everything(&self) {
        clean(&self.dir, &self.cgroup);
    }

    pub fn log(&self, pod: &str, container: &str) -> String {
        fs::read_to_string(self.dir.join("logs").join(pod).join(format!("{container}.log"))).unwrap_or_default()
    }
}

pub fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }
}

pub async fn run_sandbox(client: &mut Client, config: &PodSandboxConfig) -> String {
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    client.run_pod_sandbox(request).await.expect("sandbox runs").into_inner().pod_sandbox_id
}

/// A container that runs a shell script.
pub fn script(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: "busybox".into(), ..Default::default() }),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub async fn create(client: &mut Client, sandbox: &str, pod: &PodSandboxConfig, config: ContainerConfig) -> String {
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(config),
        sandbox_config: Some(pod.clone()),
    };
    client.create_container(request).await.expect("container is created").into_inner().container_id
}

pub async fn start(client: &mut Client, container: &str) {
    client.start_container(StartContainerRequest { container_id: container.into() }).await.expect("container starts");
}

pub async fn status(client: &mut Client, container: &str) -> ContainerStatus {
    let request = ContainerStatusRequest { container_id: container.into(), verbose: false };
    client.container_status(request).await.expect("status").into_inner().status.expect("status")
}

/// Waits for the end of a container, by its events.
pub async fn wait(client: &mut Client, container: &str) -> ContainerStatus {
    let mut events = client.get_container_events(GetEventsRequest {}).await.expect("events").into_inner();
    loop {
        let status = status(client, container).await;
        if status.state() == ContainerState::ContainerExited {
            return status;
        }
        events.message().await.expect("event").expect("event");
    }
}

pub async fn exec(client: &mut Client, container: &str, command: &str) -> (String, i32) {
    let cmd = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
    let request = ExecSyncRequest { container_id: container.into(), cmd, timeout: 10 };
    let answer = client.exec_sync(request).await.expect("exec").into_inner();
    assert_eq!(String::from_utf8_lossy(&answer.stderr), "", "{command}");
    (String::from_utf8_lossy(&answer.stdout).into_owned(), answer.exit_code)
}

/// Creates and starts a container and returns what it printed.
pub async fn output(
    client: &mut Client,
    lab: &Lab,
    sandbox: &str,
    pod: &PodSandboxConfig,
    config: ContainerConfig,
) -> String {
    let name = config.metadata.clone().expect("metadata").name;
    let id = create(client, sandbox, pod, config).await;
    start(client, &id).await;
    let status = wait(client, &id).await;
    let pod = pod.metadata.clone().expect("metadata").name;
    let log = lab.log(&pod, &name);
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"), "{name}: {log}");
    log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(|line| format!("{line}\n")).collect()
}

pub async fn remove_sandbox(client: &mut Client, id: &str) {
    client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.into() }).await.expect("sandbox stops");
    client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.into() }).await.expect("sandbox goes");
}
