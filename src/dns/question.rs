//! What a name in the cluster's zone asks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A name under the cluster domain, taken apart. Labels are lower case.
#[derive(Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// A name that exists only because others lie below it: the zone itself, `svc`, `<namespace>.svc`.
    Above,
    /// `dns-version`
    Version,
    /// `<service>.<namespace>.svc`
    Service { namespace: &'a str, service: &'a str },
    /// `_<port>._<protocol>.<service>.<namespace>.svc`; without a protocol only names lie below.
    Port { namespace: &'a str, service: &'a str, protocol: &'a str, port: Option<&'a str> },
    /// `<hostname>.<service>.<namespace>.svc`
    Endpoint { namespace: &'a str, service: &'a str, hostname: &'a str },
    /// `<address with dashes>.<namespace>.pod`
    Pod { address: IpAddr },
    /// `ns.dns`: the name server itself.
    NameServer,
    /// Nothing of ours.
    Unknown,
}

/// `labels` are those in front of the cluster domain, from left to right.
pub fn parse<'a>(labels: &[&'a str]) -> Question<'a> {
    match labels {
        [] | ["svc"] | ["pod"] | ["dns"] | [_, "svc"] | [_, "pod"] => Question::Above,
        ["dns-version"] => Question::Version,
        ["ns", "dns"] => Question::NameServer,
        [service, namespace, "svc"] => Question::Service { namespace, service },
        [first, service, namespace, "svc"] => match first.strip_prefix('_') {
            Some(protocol) => Question::Port { namespace, service, protocol, port: None },
            None => Question::Endpoint { namespace, service, hostname: first },
        },
        [port, protocol, service, namespace, "svc"] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
            (Some(port), Some(protocol)) => Question::Port { namespace, service, protocol, port: Some(port) },
            _ => Question::Unknown,
        },
        [address, _namespace, "pod"] => match undash(address) {
            Some(address) => Question::Pod { address },
            None => Question::Unknown,
        },
        _ => Question::Unknown,
    }
}

/// `10-42-0-7` → 10.42.0.7; for IPv6 each dash is a colon.
fn undash(text: &str) -> Option<IpAddr> {
    let v4 = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

/// 10.42.0.7 → `10-42-0-7`: the name of an endpoint without a hostname.
pub fn dashed(address: &str) -> String {
    address.replace(['.', ':'], "-")
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` stands for.
pub fn reverse(labels: &[&str]) -> Option<IpAddr> {
    match labels {
        [octets @ .., "in-addr", "arpa"] if octets.len() == 4 => {
            let text = octets.iter().rev().copied().collect::<Vec<_>>().join(".");
            text.parse().ok().map(IpAddr::V4)
        }
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let mut value = 0_u128;
            for nibble in nibbles.iter().rev() {
                value = value << 4 | u128::from(u8::from_str_radix(nibble, 16).ok().filter(|nibble| *nibble < 16)?);
            }
            Some(IpAddr::V6(value.into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let parts = |name: &'static str| parse(&name.split('.').filter(|label| !label.is_empty()).collect::<Vec<_>>());
        assert_eq!(parts(""), Question::Above);
        assert_eq!(parts("default.svc"), Question::Above);
        assert_eq!(parts("web.default.svc"), Question::Service { namespace: "default", service: "web" });
        let port = Question::Port { namespace: "default", service: "web", protocol: "tcp", port: Some("http") };
        assert_eq!(parts("_http._tcp.web.default.svc"), port);
        let endpoint = Question::Endpoint { namespace: "default", service: "db", hostname: "db-0" };
        assert_eq!(parts("db-0.db.default.svc"), endpoint);
        assert_eq!(parts("10-42-0-7.default.pod"), Question::Pod { address: "10.42.0.7".parse().unwrap() });
        assert_eq!(parts("x.default.pod"), Question::Unknown);
        assert_eq!(parts("a.b.c.d.e.svc"), Question::Unknown);
    }

    #[test]
    fn reverse_names_are_addresses() {
        assert_eq!(reverse(&["7", "0", "43", "10", "in-addr", "arpa"]), Some("10.43.0.7".parse().unwrap()));
        assert_eq!(reverse(&["0", "43", "10", "in-addr", "arpa"]), None);
        let name = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.4.d.f.ip6.arpa";
        assert_eq!(reverse(&name.split('.').collect::<Vec<_>>()), Some("fd42::1".parse().unwrap()));
    }
}
