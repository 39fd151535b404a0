//! What sandboxes have: one file each, and in memory who has which address and host port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{AddRequest, PodNetworkError, VETH_PREFIX};
use crate::cidr::Cidr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port of the node that leads to the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    pub protocol: Protocol,
    pub host_port: u16,
    pub container_port: u16,
    /// Only packets to this address of the node; `None`: to any.
    pub host_ip: Option<IpAddr>,
}

impl HostPort {
    fn clashes(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && (self.host_ip.is_none() || other.host_ip.is_none() || self.host_ip == other.host_ip)
    }
}

/// The pod that a sandbox is of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// As of when the sandbox was made.
    pub labels: BTreeMap<String, String>,
}

/// What a sandbox has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub sandbox_id: String,
    pub ip: IpAddr,
    /// Of the pod's interface.
    pub mac: String,
    /// The node's end of the pod's interface.
    pub veth: String,
    pub host_ports: Vec<HostPort>,
    /// Not known of sandboxes that an earlier version attached.
    #[serde(default)]
    pub owner: Owner,
}

#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct AttachmentError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub struct Attachments {
    dir: PathBuf,
    by_sandbox: BTreeMap<String, Attachment>,
    /// Addresses go round, so that one that was just given back is not given out at once.
    last: Option<IpAddr>,
}

impl Attachments {
    pub fn load(dir: PathBuf) -> Result<Self, AttachmentError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| AttachmentError { action, path, source }
        };
        fs::create_dir_all(&dir).map_err(failed("create directory", &dir))?;
        let mut by_sandbox = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let path = entry.map_err(failed("list", &dir))?.path();
            let bytes = fs::read(&path).map_err(failed("read", &path))?;
            match serde_json::from_slice::<Attachment>(&bytes) {
                Ok(attachment) => drop(by_sandbox.insert(attachment.sandbox_id.clone(), attachment)),
                // Files are renamed into place, so this is not ours or half of one from a crash; the sandbox is attached anew.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "removing a file that is no attachment");
                    fs::remove_file(&path).map_err(failed("remove", &path))?;
                }
            }
        }
        Ok(Self { dir, by_sandbox, last: None })
    }

    pub fn get(&self, sandbox_id: &str) -> Option<&Attachment> {
        self.by_sandbox.get(sandbox_id)
    }

    pub fn all(&self) -> impl Iterator<Item = &Attachment> {
        self.by_sandbox.values()
    }

    pub fn host_port_clash(&self, wanted: &[HostPort]) -> Option<(u16, String)> {
        let taken = self.all().flat_map(|attachment| attachment.host_ports.iter().map(move |port| (port, attachment)));
        let mut clashes = taken.filter(|(port, _)| wanted.iter().any(|wanted| wanted.clashes(port)));
        clashes.next().map(|(port, attachment)| (port.host_port, attachment.sandbox_id.clone()))
    }

    /// Sets an address aside for the sandbox.
    pub fn lease(&mut self, request: &AddRequest, pod_cidr: Cidr) -> Result<Attachment, PodNetworkError> {
        let taken: BTreeSet<IpAddr> = self.all().map(|attachment| attachment.ip).collect();
        let after = pod_cidr.pod_addresses().filter(|ip| self.last.is_none_or(|last| *ip > last));
        let ip = after.chain(pod_cidr.pod_addresses()).find(|ip| !taken.contains(ip));
        let ip = ip.ok_or(PodNetworkError::PodCidrExhausted { pod_cidr })?;
        self.last = Some(ip);
        let attachment = Attachment {
            sandbox_id: request.sandbox_id.clone(),
            ip,
            mac: String::new(),
            veth: veth_name(&request.sandbox_id),
            host_ports: request.host_ports.clone(),
            owner: request.owner.clone(),
        };
        self.by_sandbox.insert(attachment.sandbox_id.clone(), attachment.clone());
        Ok(attachment)
    }

    /// Writes the sandbox's file.
    pub fn keep(&mut self, attachment: Attachment) -> Result<Attachment, AttachmentError> {
        let path = self.file(&attachment.sandbox_id);
        let aside = path.with_extension("new");
        let bytes = serde_json::to_vec(&attachment).unwrap_or_default();
        let written = fs::write(&aside, bytes).and_then(|()| fs::rename(&aside, &path));
        written.map_err(|source| AttachmentError { action: "write", path, source })?;
        self.by_sandbox.insert(attachment.sandbox_id.clone(), attachment.clone());
        Ok(attachment)
    }

    pub fn forget(&mut self, sandbox_id: &str) -> Result<(), AttachmentError> {
        let path = self.file(sandbox_id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(AttachmentError { action: "remove", path, source })
            }
            _ => {
                self.by_sandbox.remove(sandbox_id);
                Ok(())
            }
        }
    }

    /// Ids come from the runtime; the hash keeps any text from naming another file.
    fn file(&self, sandbox_id: &str) -> PathBuf {
        self.dir.join(hash(sandbox_id, 16))
    }
}

fn veth_name(sandbox_id: &str) -> String {
    format!("{VETH_PREFIX}{}", hash(sandbox_id, 5))
}

fn hash(text: &str, bytes: usize) -> String {
    Sha256::digest(text.as_bytes()).iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: &str) -> AddRequest {
        AddRequest { sandbox_id: id.to_owned(), netns: PathBuf::new(), host_ports: Vec::new(), owner: Owner::default() }
    }

    #[test]
    fn addresses_go_round_and_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let cidr: Cidr = "10.42.0.0/29".parse().unwrap();
        let mut state = Attachments::load(dir.path().join("pods")).unwrap();
        for (id, ip) in [("a", "10.42.0.2"), ("b", "10.42.0.3")] {
            let attachment = state.lease(&request(id), cidr).unwrap();
            assert_eq!(attachment.ip.to_string(), ip);
            state.keep(attachment).unwrap();
        }
        state.forget("a").unwrap();
        assert_eq!(state.lease(&request("c"), cidr).unwrap().ip.to_string(), "10.42.0.4");

        // Only what was kept is found again: c's process died before its interface was made.
        let mut state = Attachments::load(dir.path().join("pods")).unwrap();
        assert_eq!(state.all().map(|a| a.sandbox_id.as_str()).collect::<Vec<_>>(), ["b"]);
        for id in ["d", "e", "f", "g"] {
            state.lease(&request(id), cidr).unwrap();
        }
        assert!(matches!(state.lease(&request("h"), cidr), Err(PodNetworkError::PodCidrExhausted { .. })));
    }

    #[test]
    fn host_ports_clash_on_the_same_address_only() {
        let port = |ip: Option<&str>, protocol| HostPort {
            protocol,
            host_port: 80,
            container_port: 8080,
            host_ip: ip.map(|ip| ip.parse().unwrap()),
        };
        assert!(port(None, Protocol::Tcp).clashes(&port(Some("192.0.2.1"), Protocol::Tcp)));
        assert!(!port(None, Protocol::Tcp).clashes(&port(None, Protocol::Udp)));
        assert!(!port(Some("192.0.2.1"), Protocol::Tcp).clashes(&port(Some("192.0.2.2"), Protocol::Tcp)));
    }

    #[test]
    fn interface_names_fit() {
        assert!(veth_name("a-rather-long-sandbox-id").len() <= 15);
    }
}
