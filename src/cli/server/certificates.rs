//! What a server shows to others, and what its administrators get, kept from expiring.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mussel_apiserver::ServingCert;
use mussel_client::ClientIdentity;
use mussel_cluster::kubeconfig;
use mussel_cluster::pki::{Leaf, Pki};
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{Settings, admin_leaf};
use crate::cli::node_address::OwnAddress;
use crate::cli::{host_user, node_address};

/// Certificates are looked at this often; they are made anew when 120 of their 365 days are left.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(12 * 3600);

/// The certificates that are shown, replaceable under way.
#[derive(Clone)]
pub struct Certificates {
    pub api: Arc<ServingCert>,
    pub kubelet: Arc<ServingCert>,
    /// To other servers, as their server and as their client.
    pub peer: Arc<ServingCert>,
    pub peer_client: Arc<ClientIdentity>,
}

impl Certificates {
    pub fn ensure(pki: &Pki, settings: &Settings) -> anyhow::Result<Self> {
        let (api, _) = pki.leaf(&settings.serving_leaf()?)?;
        let (kubelet, _) = pki.leaf(&settings.kubelet_leaf())?;
        let (peer, _) = pki.leaf(&Leaf::peer(&settings.node_name))?;
        Ok(Self {
            peer: ServingCert::new(peer.cert_pem.as_bytes(), peer.key_pem.as_bytes())?,
            peer_client: ClientIdentity::new(peer.cert_pem.as_bytes(), peer.key_pem.as_bytes())?,
            api: ServingCert::new(api.cert_pem.as_bytes(), api.key_pem.as_bytes())?,
            kubelet: ServingCert::new(kubelet.cert_pem.as_bytes(), kubelet.key_pem.as_bytes())?,
        })
    }

    fn renew(&self, pki: &Pki, settings: &Settings) -> anyhow::Result<()> {
        for (leaf, shown) in [(settings.serving_leaf()?, &self.api), (settings.kubelet_leaf(), &self.kubelet)] {
            let (pair, new) = pki.leaf(&leaf)?;
            if new {
                shown.replace(pair.cert_pem.as_bytes(), pair.key_pem.as_bytes())?;
            }
        }
        let (peer, new) = pki.leaf(&Leaf::peer(&settings.node_name))?;
        if new {
            self.peer.replace(peer.cert_pem.as_bytes(), peer.key_pem.as_bytes())?;
            self.peer_client.replace(peer.cert_pem.as_bytes(), peer.key_pem.as_bytes())?;
        }
        Ok(())
    }
}

pub fn write_kubeconfig(pki: &Pki, settings: &Settings) -> anyhow::Result<()> {
    let (admin, _) = pki.leaf(&admin_leaf())?;
    let host = match settings.args.node.bind_address {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    let server = format!("https://{}", SocketAddr::new(host, settings.args.https_listen_port));
    let args = &settings.args;
    let text = kubeconfig::render(&args.write_kubeconfig_name, &server, pki.server_ca.cert_pem(), &admin);
    kubeconfig::write(&args.write_kubeconfig, &text, args.write_kubeconfig_mode)?;
    if let Some(group) = &args.write_kubeconfig_group {
        host_user::give_to_group(&args.write_kubeconfig, group)?;
    }
    Ok(())
}

/// Renews certificates before they expire, and when this machine gets another address, for as long as the server runs.
pub async fn renew(pki: Arc<Pki>, certificates: Certificates, mut settings: Settings, stop: CancellationToken) {
    let (ip, interface) = (settings.args.node.node_ip, settings.args.node.flannel_iface.clone());
    let own_ip = move || node_address::node_ip(ip, interface.as_deref());
    let mut addresses = OwnAddress::watch(settings.node_ip);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = time::sleep(CERTIFICATE_CHECK) => {}
            // The advertised address stays in the certificate, whether or not it is the one that went.
            ip = addresses.changed(&own_ip) => settings.node_ip = ip,
        }
        let renewed = certificates.renew(&pki, &settings).and_then(|()| write_kubeconfig(&pki, &settings));
        if let Err(error) = renewed {
            tracing::error!(error = format!("{error:#}"), "certificates are not renewed");
        }
    }
}
