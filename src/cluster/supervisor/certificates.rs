//! Signs what joining nodes ask for. The machine brings a key; what the certificate says is decided here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http_body_util::{BodyExt as _, Limited};
use mussel_apiserver::{Body, Response, Status};

use super::{Caller, Supervisor, addresses, text};
use crate::node_password::{self, PasswordError};
use crate::pki::{Leaf, PkiError};
use crate::protocol::{self, Certificate};

const REQUEST_BYTES_MAX: usize = 16 * 1024;

impl Supervisor {
    pub(super) async fn sign(
        &self,
        certificate: Certificate,
        caller: &Caller,
        request: http::Request<Body>,
    ) -> Result<Response, Status> {
        let (parts, body) = request.into_parts();
        // Before any refusal: some HTTP/2 clients take an answer that comes before their body is read for a broken stream.
        let csr = Limited::new(body, REQUEST_BYTES_MAX).collect().await;
        let csr = csr.map_err(|error| Status::bad_request(format!("the body cannot be read: {error}")))?.to_bytes();
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let node = header(protocol::NODE_NAME_HEADER);
        let wrong = mussel_api::names::is_dns1123_subdomain(node);
        if !wrong.is_empty() {
            return Err(Status::bad_request(format!("{}: {}", protocol::NODE_NAME_HEADER, wrong.join("; "))));
        }
        // A node with a server's name in its certificate could pass for that server.
        let reserved = &self.0.config.reserved;
        if reserved.dns_names.iter().any(|name| name == node) {
            return Err(Status::bad_request(format!("no node may have the name {node:?}: it is the servers'")));
        }
        if let Caller::Node(own) = caller
            && own != node
        {
            let message = format!("node {own:?} may not have certificates of node {node:?}");
            return Err(Status::new(403, "Forbidden", message));
        }
        let mut ips = addresses(&parts.headers, protocol::NODE_IP_HEADER)?;
        // Nor their addresses; two sites may have the same private ones, so that is no reason to refuse.
        let servers = self.server_ips();
        ips.retain(|ip| !reserved.ip_addresses.contains(ip) && !servers.contains(ip) && !ip.is_loopback());
        let (_, client) = self.api()?;
        node_password::ensure(client, node, header(protocol::NODE_PASSWORD_HEADER)).await.map_err(password_status)?;
        let signed = self.0.config.pki.sign(&leaf(certificate, node, ips), &csr).map_err(|error| match error {
            PkiError::Request(source) => Status::bad_request(format!("the body is no signing request: {source}")),
            other => Status::internal(other),
        })?;
        tracing::info!(node, certificate = certificate.file(), "certificate signed");
        Ok(text(&signed))
    }

    /// The addresses of all servers.
    fn server_ips(&self) -> Vec<IpAddr> {
        let members = self.0.store.get().map(mussel_store::Store::members).unwrap_or_default();
        members.iter().filter_map(|member| Some(member.address.parse::<SocketAddr>().ok()?.ip())).collect()
    }
}

pub(super) fn password_status(error: PasswordError) -> Status {
    match &error {
        PasswordError::Taken { .. } => Status::new(403, protocol::reason::NAME_TAKEN, error.to_string()),
        PasswordError::Unusable => Status::bad_request(error.to_string()),
        PasswordError::Api { source, .. } => Status::unavailable(format!("{error}: {source}")),
    }
}

/// What the certificate says.
fn leaf(certificate: Certificate, node: &str, ips: Vec<IpAddr>) -> Leaf {
    match certificate {
        Certificate::ServingKubelet => kubelet_serving(node, ips),
        Certificate::ClientKubelet => {
            Leaf::client(certificate.file(), &format!("system:node:{node}"), &["system:nodes"])
        }
        Certificate::ClientProxy => Leaf::client(certificate.file(), "system:kube-proxy", &[]),
        Certificate::ClientController => Leaf::client(certificate.file(), "system:mussel-controller", &[]),
    }
}

/// The certificate that a kubelet shows.
fn kubelet_serving(node: &str, mut ips: Vec<IpAddr>) -> Leaf {
    ips.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    ips.sort();
    ips.dedup();
    let names = vec![node.to_owned(), "localhost".to_owned()];
    Leaf::server(Certificate::ServingKubelet.file(), &format!("system:node:{node}"), names, ips)
}
