//! Names: the hostname of a pod, its resolver configuration and its hosts file.

use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use mussel_cri::v1::DnsConfig;

use crate::pod;

const HOSTNAME_MAX: usize = 63;
const FQDN_MAX: usize = 64;
const SERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;

/// The hostname and, for a pod with a subdomain, the full name.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> Result<(String, Option<String>), String> {
    let spec = pod::spec(pod);
    if let Some(name) = spec.and_then(|s| s.hostname_override.clone()).filter(|n| !n.is_empty()) {
        return Ok((name, None));
    }
    let own = spec.and_then(|s| s.hostname.as_deref()).filter(|h| !h.is_empty());
    let mut host = own.unwrap_or_else(|| pod::name(pod)).to_owned();
    if host.len() > HOSTNAME_MAX {
        host.truncate(HOSTNAME_MAX);
        host.truncate(host.trim_end_matches(['-', '.']).len());
    }
    let subdomain = spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty());
    let domain = subdomain.map(|s| format!("{s}.{}.svc.{cluster_domain}", pod::namespace(pod)));
    let full = domain.map(|d| format!("{host}.{d}"));
    if spec.and_then(|s| s.set_hostname_as_fqdn).unwrap_or(false)
        && let Some(full) = &full
    {
        if full.len() > FQDN_MAX {
            return Err(format!(
                "failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long ({FQDN_MAX} characters is the max, {} characters requested)",
                full.len()
            ));
        }
        return Ok((full.clone(), Some(full.clone())));
    }
    Ok((host, full))
}

/// What `resolv_conf` (the text of the node's) and the pod's policy come to.
pub fn resolver(pod: &Pod, cluster_dns: &[IpAddr], cluster_domain: &str, resolv_conf: &str) -> DnsConfig {
    let spec = pod::spec(pod);
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host = parse(resolv_conf);
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod::host_network(pod),
        _ => false,
    };
    let mut config = if policy == "None" {
        DnsConfig::default()
    } else if cluster && !cluster_dns.is_empty() {
        let namespace = pod::namespace(pod);
        let mut searches = vec![
            format!("{namespace}.svc.{cluster_domain}"),
            format!("svc.{cluster_domain}"),
            cluster_domain.to_owned(),
        ];
        for search in host.searches {
            if !searches.contains(&search) {
                searches.push(search);
            }
        }
        DnsConfig {
            servers: cluster_dns.iter().map(IpAddr::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        host
    };
    if let Some(own) = spec.and_then(|s| s.dns_config.as_ref()) {
        for server in own.nameservers.iter().flatten() {
            if !config.servers.contains(server) {
                config.servers.push(server.clone());
            }
        }
        for search in own.searches.iter().flatten() {
            if !config.searches.contains(search) {
                config.searches.push(search.clone());
            }
        }
        for option in own.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else { continue };
            let text = match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            };
            match config.options.iter_mut().find(|o| o.split(':').next() == Some(name)) {
                Some(known) => *known = text,
                None => config.options.push(text),
            }
        }
    }
    config.servers.truncate(SERVERS_MAX);
    config.searches.truncate(SEARCHES_MAX);
    config
}

fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            // The last line wins.
            Some("search") => config.searches = words.map(|w| w.trim_end_matches('.').to_owned()).collect(),
            Some("options") => config.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config.searches.retain(|s| !s.is_empty());
    config
}

/// The hosts file that the kubelet manages for a pod. `node_hosts` is the node's own file, for host network pods.
pub fn hosts_file(pod: &Pod, ips: &[String], host: &str, full: Option<&str>, node_hosts: Option<&str>) -> String {
    let mut text = match node_hosts {
        Some(hosts) => format!("# Kubernetes-managed hosts file (host network).\n{hosts}"),
        None => {
            let mut text = String::from(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            for ip in ips {
                let _ = match full {
                    Some(full) if full != host => writeln!(text, "{ip}\t{full}\t{host}"),
                    Some(full) => writeln!(text, "{ip}\t{full}\t{}", host.split('.').next().unwrap_or(host)),
                    None => writeln!(text, "{ip}\t{host}"),
                };
            }
            text
        }
    };
    let aliases = pod::spec(pod).and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default();
            let _ = writeln!(text, "{}\t{}", alias.ip, names.join("\t"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(mut spec: serde_json::Value) -> Pod {
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).unwrap()
    }

    #[test]
    fn resolvers_follow_the_policy() {
        let dns: IpAddr = "10.43.0.10".parse().unwrap();
        let text = "nameserver 9.9.9.9 # x\nsearch lan.\noptions edns0 ndots:1\n";
        for (spec, servers, searches, options) in [
            (json!({}), "10.43.0.10", "n.svc.c n svc.c", "ndots:5"),
            (json!({"dnsPolicy": "Default"}), "9.9.9.9", "lan", "edns0 ndots:1"),
            (json!({"hostNetwork": true}), "9.9.9.9", "lan", "edns0 ndots:1"),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "1.1.1.1",
                "a",
                "ndots:2 edns0",
            ),
        ] {
            let config = resolver(&pod(spec), &[dns], "c", text);
            assert_eq!(config.servers.join(" "), servers);
            if searches == "n.svc.c n svc.c" {
                assert_eq!(config.searches, ["n.svc.c", "svc.c", "c", "lan"]);
            } else {
                assert_eq!(config.searches.join(" "), searches);
            }
            assert_eq!(config.options.join(" "), options);
        }
    }

    #[test]
    fn hostnames_and_hosts() {
        assert_eq!(hostname(&pod(json!({})), "c").unwrap(), ("p".into(), None));
        let sub = pod(
            json!({"hostname": "h", "subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
        );
        let (host, full) = hostname(&sub, "c").unwrap();
        assert_eq!((host.as_str(), full.as_deref()), ("h", Some("h.s.n.svc.c")));
        let text = hosts_file(&sub, &["10.0.0.2".into()], &host, full.as_deref(), None);
        assert!(text.contains("10.0.0.2\th.s.n.svc.c\th\n"), "{text}");
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
        let fqdn = pod(json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}));
        assert_eq!(hostname(&fqdn, "c").unwrap().0, "h.s.n.svc.c");
    }
}
