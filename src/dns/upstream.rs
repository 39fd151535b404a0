//! Names outside the cluster: asked of the machine's own name servers, and cached.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_server::net::{DnsError, NetError};

/// systemd-resolved's stub listens on loopback, where it would only be asked through us again; behind it is this file.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
const CACHE_ENTRIES: u64 = 1024;
/// As CoreDNS' cache: a record is kept at most this long, a refusal less.
const POSITIVE_MAX: Duration = Duration::from_secs(30);
const NEGATIVE_MAX: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(2);

pub struct Upstream(Option<TokioResolver>);

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    NoSuchName,
    /// The name exists, without a record of this type.
    NoRecord,
    Failed,
}

impl Upstream {
    /// `own` are the addresses that this server answers on; asking them would go round in circles.
    pub fn new(resolv_conf: &Path, own: &[IpAddr]) -> Result<Self, NetError> {
        let servers = name_servers(resolv_conf, own);
        if servers.is_empty() {
            tracing::warn!(file = %resolv_conf.display(), "no name server to ask for names outside the cluster");
            return Ok(Self(None));
        }
        let servers = servers.into_iter().map(NameServerConfig::udp_and_tcp).collect();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.timeout = TIMEOUT;
        options.cache_size = CACHE_ENTRIES;
        options.positive_max_ttl = Some(POSITIVE_MAX);
        options.negative_max_ttl = Some(NEGATIVE_MAX);
        options.use_hosts_file = ResolveHosts::Never;
        options.preserve_intermediates = true;
        Ok(Self(Some(builder.build()?)))
    }

    pub async fn lookup(&self, mut name: Name, record_type: RecordType) -> Result<Vec<Record>, Refusal> {
        let Some(resolver) = &self.0 else { return Err(Refusal::Failed) };
        name.set_fqdn(true);
        match resolver.lookup(name, record_type).await {
            Ok(lookup) => Ok(lookup.answers().to_vec()),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match none.response_code {
                ResponseCode::NXDomain => Err(Refusal::NoSuchName),
                ResponseCode::NoError => Err(Refusal::NoRecord),
                _ => Err(Refusal::Failed),
            },
            Err(error) => {
                tracing::debug!(%error, "name server did not answer");
                Err(Refusal::Failed)
            }
        }
    }
}

/// The name servers of `resolv_conf`; where those are only this machine's stub, what stands behind it.
fn name_servers(resolv_conf: &Path, own: &[IpAddr]) -> Vec<IpAddr> {
    let usable = |path: &Path| -> Vec<IpAddr> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        parse(&text)
            .into_iter()
            .filter(|ip| *ip != IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)) && !own.contains(ip))
            .collect()
    };
    let servers = usable(resolv_conf);
    if servers.is_empty() { usable(Path::new(RESOLVED)) } else { servers }
}

/// resolv.conf(5): at most three name servers count.
fn parse(text: &str) -> Vec<IpAddr> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    servers.take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_stubs_and_our_own_address_are_not_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "# x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver\t10.43.0.10\noptions a\n")
            .unwrap();
        let own = ["10.43.0.10".parse().unwrap()];
        assert_eq!(name_servers(&path, &own), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    }
}
