//! An API server and a runtime that live in memory, for tests of the kubelet between them.

// Each test file uses its part of this.
#![allow(dead_code)]

pub mod api;
pub mod runtime;

use std::path::Path;
use std::sync::Arc;

use mussel_client::Informers;
use mussel_kubelet::{Config, Cri, Kubelet};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const NODE: &str = "node1";

/// A node in a temporary directory. Dropping it leaves nothing behind.
pub struct Node {
    pub api: Arc<api::Api>,
    pub runtime: Arc<runtime::Runtime>,
    pub dir: tempfile::TempDir,
    cgroup_root: String,
    /// Set before the start, for tests of the HTTPS server.
    pub server: Option<fn() -> mussel_kubelet::ServerConfig>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Node {
    /// `None` when not root: volumes need mounts.
    pub fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        // Shown only by a test that fails: RUST_LOG=mussel_kubelet=debug.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir().unwrap();
        let cgroup_root = format!("mussel-test-{}", dir.path().file_name().unwrap().to_string_lossy());
        let runtime = runtime::Runtime::new(dir.path());
        Some(Self { api: api::Api::new(), runtime, dir, cgroup_root, server: None, running: None })
    }

    pub fn start(&mut self) {
        let stop = CancellationToken::new();
        let client = self.api.client();
        let informers = Informers::new(client.clone(), stop.clone());
        let root = self.dir.path();
        let config = Config {
            node_name: NODE.into(),
            node_ips: vec!["192.0.2.1".parse().unwrap()],
            external_ips: Vec::new(),
            labels: Default::default(),
            annotations: Default::default(),
            taints: Vec::new(),
            provider_id: None,
            root_dir: root.join("kubelet"),
            pod_logs_dir: root.join("logs"),
            container_logs_dir: root.join("container-logs"),
            pod_manifests_dir: root.join("manifests"),
            run_dir: root.join("run"),
            cgroup_root: self.cgroup_root.clone(),
            cluster_dns: vec!["10.43.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            tuning: mussel_kubelet::Tuning::default(),
            client,
            informers,
            cri: Cri::new(self.runtime.clone().runtime_server(), self.runtime.clone().image_server()),
            server: self.server.map(|make| make()),
        };
        let token = stop.clone();
        let task = tokio::spawn(async move { Kubelet::new(config).run(token).await.unwrap() });
        self.running = Some((stop, task));
    }

    pub async fn stop(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            stop.cancel();
            task.await.unwrap();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some((stop, _)) = &self.running {
            stop.cancel();
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in mounts.lines().rev().filter_map(|l| l.split(' ').nth(4)) {
            if Path::new(point).starts_with(self.dir.path()) {
                let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        let top = Path::new("/sys/fs/cgroup");
        let trees = std::fs::read_dir(top).into_iter().flatten().flatten().map(|e| e.path());
        for tree in trees.chain([top.to_path_buf()]) {
            remove_dirs(&tree.join(&self.cgroup_root));
        }
    }
}

fn remove_dirs(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_dirs(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}
