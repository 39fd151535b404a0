//! What matters of the cluster's pods, on disk: for a start while no server answers, and no more than policies need.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

const FILE: &str = "pods.json";

/// Writes the pods that have an address, when that changes the file.
pub fn store(dir: &Path, pods: &[Arc<Pod>]) {
    let reduced: Vec<Pod> = pods.iter().filter_map(|pod| reduced(pod)).collect();
    if let Err(error) = write(dir, &reduced) {
        tracing::warn!(dir = %dir.display(), %error, "pods are not kept for a start without a server");
    }
}

/// The pods of other nodes, as they were last; none when that is not known.
pub fn load(dir: &Path, node_name: &str) -> Vec<Arc<Pod>> {
    let read = || -> io::Result<Vec<Pod>> { Ok(serde_json::from_slice(&fs::read(dir.join(FILE))?)?) };
    match read() {
        Ok(pods) => {
            let elsewhere = |pod: &Pod| {
                pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref().is_some_and(|node| node != node_name))
            };
            pods.into_iter().filter(elsewhere).map(Arc::new).collect()
        }
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(dir = %dir.display(), %error, "the pods that were known last cannot be read");
            }
            Vec::new()
        }
    }
}

fn reduced(pod: &Pod) -> Option<Pod> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    status.pod_ip.as_ref()?;
    let ports = |container: &Container| Container {
        name: container.name.clone(),
        ports: container.ports.clone(),
        ..Container::default()
    };
    let before = spec.init_containers.iter().flatten();
    Some(Pod {
        metadata: ObjectMeta {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            labels: pod.metadata.labels.clone(),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: spec.node_name.clone(),
            host_network: spec.host_network,
            containers: spec.containers.iter().chain(before).map(ports).collect(),
            ..PodSpec::default()
        }),
        status: Some(PodStatus { pod_ip: status.pod_ip.clone(), phase: status.phase.clone(), ..PodStatus::default() }),
    })
}

fn write(dir: &Path, pods: &[Pod]) -> io::Result<()> {
    let bytes = serde_json::to_vec(pods)?;
    let path = dir.join(FILE);
    if fs::read(&path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let aside = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(&bytes)?;
    // On disk before it takes the old one's place, or a power cut leaves an empty file.
    file.sync_all()?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_policies_need_of_other_nodes_pods_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let pod = |name: &str, node: &str| {
            let pod = json!({"metadata": {"name": name, "namespace": "a", "labels": {"app": name}},
                "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x",
                    "env": [{"name": "PASSWORD", "value": "secret"}], "ports": [{"name": "http", "containerPort": 80}]}]},
                "status": {"podIP": "10.42.1.2", "phase": "Running"}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        assert!(load(dir.path(), "here").is_empty());
        store(dir.path(), &[pod("local", "here"), pod("remote", "there")]);
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(!text.contains("secret"), "{text}");
        let found = load(dir.path(), "here");
        assert_eq!(found.len(), 1);
        let pods = super::super::plan::pods("here", &found, &Default::default());
        assert_eq!((pods[0].name.as_str(), pods[0].ports.len()), ("remote", 1));
    }
}
