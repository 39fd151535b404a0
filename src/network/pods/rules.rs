//! The iptables rules around pods: masquerading, forwarding and host ports.

use std::fmt::Write;

use super::Attachment;
use crate::cidr::Cidr;
use crate::iptables::{Iptables, IptablesError};
use crate::peers::VXLAN_INTERFACE;

const POSTROUTING: &str = "MUSSEL-POSTROUTING";
const FORWARD: &str = "MUSSEL-FORWARD";
const HOSTPORTS: &str = "MUSSEL-HOSTPORTS";
/// Host port traffic that has to come back through the node.
const HOSTPORT_MASQ: &str = "MUSSEL-HOSTPORT-MASQ";

/// The rules that do not change while the node runs.
pub async fn install(iptables: &Iptables, bridge: &str, cluster_cidr: Cidr) -> Result<(), IptablesError> {
    iptables.restore(&fixed(cluster_cidr)).await?;
    let local = ["-m", "addrtype", "--dst-type", "LOCAL", "-j", HOSTPORTS];
    iptables.ensure_rule("nat", "PREROUTING", &local, false).await?;
    iptables.ensure_rule("nat", "OUTPUT", &local, false).await?;
    iptables.ensure_rule("nat", "POSTROUTING", &["-j", POSTROUTING], true).await?;
    // Behind the service proxy's rules, which refuse packets to Services without endpoints.
    iptables.ensure_rule("filter", "FORWARD", &["-j", FORWARD], true).await?;
    // A host port on 127.0.0.1 leaves by the bridge with a loopback address, until it is masqueraded.
    let setting = format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet");
    if let Err(error) = std::fs::write(&setting, "1") {
        tracing::warn!(setting, %error, "host ports will not answer on 127.0.0.1");
    }
    Ok(())
}

fn fixed(cluster_cidr: Cidr) -> String {
    // What enters the tunnel from others than pods gets the node's address there: answers come back the same way, and not
    // by a way on which the kernel does not expect them (rp_filter).
    format!(
        "*nat\n\
        :{POSTROUTING} - [0:0]\n\
        :{HOSTPORTS} - [0:0]\n\
        :{HOSTPORT_MASQ} - [0:0]\n\
        -A {POSTROUTING} -j {HOSTPORT_MASQ}\n\
        -A {POSTROUTING} -s {cluster_cidr} -d {cluster_cidr} -j RETURN\n\
        -A {POSTROUTING} -s {cluster_cidr} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\n\
        -A {POSTROUTING} -o {VXLAN_INTERFACE} -j MASQUERADE --random-fully\n\
        COMMIT\n\
        *filter\n\
        :{FORWARD} - [0:0]\n\
        -A {FORWARD} -s {cluster_cidr} -j ACCEPT\n\
        -A {FORWARD} -d {cluster_cidr} -j ACCEPT\n\
        COMMIT\n"
    )
}

/// Replaces the host port rules by those of the given attachments.
pub async fn load_host_ports<'a>(
    iptables: &Iptables,
    attachments: impl Iterator<Item = &'a Attachment>,
) -> Result<(), IptablesError> {
    iptables.restore(&host_ports(attachments)).await
}

fn host_ports<'a>(attachments: impl Iterator<Item = &'a Attachment>) -> String {
    let mut text = format!("*nat\n:{HOSTPORTS} - [0:0]\n:{HOSTPORT_MASQ} - [0:0]\n");
    for attachment in attachments {
        for port in &attachment.host_ports {
            let (ip, protocol) = (attachment.ip, port.protocol.as_str());
            let destination =
                port.host_ip.filter(|ip| !ip.is_unspecified()).map(|ip| format!(" -d {ip}")).unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "-A {HOSTPORTS}{destination} -p {protocol} --dport {} -j DNAT --to-destination {ip}:{}",
                port.host_port, port.container_port
            );
            // From the pod itself and from 127.0.0.1 the answer would not find its way back.
            for source in [ip.to_string(), "127.0.0.0/8".to_owned()] {
                let _ = writeln!(
                    text,
                    "-A {HOSTPORT_MASQ} -s {source} -d {ip} -p {protocol} --dport {} -j MASQUERADE",
                    port.container_port
                );
            }
        }
    }
    text.push_str("COMMIT\n");
    text
}

#[cfg(test)]
mod tests {
    use super::super::{HostPort, Protocol};
    use super::*;

    #[test]
    fn host_ports_lead_to_their_pod() {
        let port = HostPort {
            protocol: Protocol::Tcp,
            host_port: 8080,
            container_port: 80,
            host_ip: Some("192.0.2.1".parse().unwrap()),
        };
        let attachment = Attachment {
            sandbox_id: "a".to_owned(),
            ip: "10.42.0.7".parse().unwrap(),
            mac: String::new(),
            veth: String::new(),
            host_ports: vec![port],
            owner: super::super::Owner::default(),
        };
        assert_eq!(
            host_ports([&attachment].into_iter()),
            "*nat\n:MUSSEL-HOSTPORTS - [0:0]\n:MUSSEL-HOSTPORT-MASQ - [0:0]\n\
            -A MUSSEL-HOSTPORTS -d 192.0.2.1 -p tcp --dport 8080 -j DNAT --to-destination 10.42.0.7:80\n\
            -A MUSSEL-HOSTPORT-MASQ -s 10.42.0.7 -d 10.42.0.7 -p tcp --dport 80 -j MASQUERADE\n\
            -A MUSSEL-HOSTPORT-MASQ -s 127.0.0.0/8 -d 10.42.0.7 -p tcp --dport 80 -j MASQUERADE\nCOMMIT\n"
        );
    }
}
