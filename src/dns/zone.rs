//! The cluster's names and what they stand for.
//!
//! Pure but for reading informers: equal objects give equal answers.

use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use mussel_client::Informers;
use mussel_client::informer::Informer;

use crate::question::{self, Question, dashed};

/// As CoreDNS' kubernetes plugin.
const TTL: u32 = 5;
/// Node names change rarely; as k3s' hosts plugin.
const NODE_TTL: u32 = 60;
/// The version of the specification that is answered.
const DNS_VERSION: &str = "1.1.0";

/// What is known of a name and type.
#[derive(Debug, Default, PartialEq)]
pub enum Answer {
    /// The name lies outside the cluster, or is an address of nothing here: ask elsewhere.
    #[default]
    NotOurs,
    /// Informers have not listed yet; nobody can know.
    NotYet,
    NoSuchName,
    /// Empty when the name exists but has no record of this type.
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// An alias to a name outside the cluster: the caller may add what that resolves to.
    Alias {
        record: Box<Record>,
        target: Name,
    },
}

pub struct Zone {
    domain: Name,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
}

impl Zone {
    /// `None` when `domain` is not a domain name.
    pub fn new(domain: &str, informers: &Informers) -> Option<Self> {
        Self::over(domain, informers.of(), informers.of(), informers.of())
    }

    fn over(
        domain: &str,
        services: Informer<Service>,
        slices: Informer<EndpointSlice>,
        nodes: Informer<Node>,
    ) -> Option<Self> {
        let mut domain = Name::from_utf8(domain).ok().filter(|name| name.num_labels() > 0)?.to_lowercase();
        domain.set_fqdn(true);
        Some(Self { domain, services, slices, nodes })
    }

    /// The records of the name; `name` may be of any case.
    pub fn lookup(&self, name: &Name, record_type: RecordType) -> Answer {
        let lower = name.to_lowercase();
        let labels: Vec<String> = lower.iter().map(|label| String::from_utf8_lossy(label).into_owned()).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        if self.domain.zone_of(&lower) {
            if !(self.services.is_synced() && self.slices.is_synced()) {
                return Answer::NotYet;
            }
            let depth = labels.len() - usize::from(self.domain.num_labels());
            return self.in_domain(name, record_type, &labels[..depth]);
        }
        if let Some(address) = question::reverse(&labels) {
            return match self.names_of(address) {
                names if names.is_empty() => Answer::NotOurs,
                names => {
                    let records = names.into_iter().map(|target| record(name, RData::PTR(PTR(target))));
                    of_type(record_type, records.collect())
                }
            };
        }
        match labels[..] {
            [node] => self.node(name, record_type, node),
            _ => Answer::NotOurs,
        }
    }

    /// Waits until [`Zone::lookup`] has something to look at.
    pub async fn synced(&self) {
        self.services.synced().await;
        self.slices.synced().await;
    }

    /// The zone's start of authority, which goes with every negative answer.
    pub fn soa(&self) -> Record {
        let soa = SOA::new(self.below(&["ns", "dns"]), self.below(&["hostmaster"]), 1, 7200, 1800, 86400, TTL);
        record(&self.domain, RData::SOA(soa))
    }

    fn in_domain(&self, name: &Name, record_type: RecordType, labels: &[&str]) -> Answer {
        let none = || Answer::Records { answers: Vec::new(), additionals: Vec::new() };
        match question::parse(labels) {
            Question::Unknown => Answer::NoSuchName,
            Question::Above if labels.is_empty() => match record_type {
                RecordType::SOA => of_type(record_type, vec![self.soa()]),
                _ => none(),
            },
            Question::Above => match labels {
                // Names lie below a namespace only if it has a Service.
                [namespace, "svc"] if self.services.list_in(namespace).is_empty() => Answer::NoSuchName,
                _ => none(),
            },
            Question::Version => {
                of_type(record_type, vec![record(name, RData::TXT(TXT::new(vec![DNS_VERSION.to_owned()])))])
            }
            Question::NameServer => none(),
            Question::Pod { address } => of_type(record_type, vec![record(name, address_data(address))]),
            Question::Service { namespace, service } => match self.services.get(namespace, service) {
                Some(found) => self.service(name, record_type, &found),
                None => Answer::NoSuchName,
            },
            Question::Endpoint { namespace, service, hostname } => match self.services.get(namespace, service) {
                Some(found) => {
                    let addresses: Vec<_> = self
                        .endpoints(&found)
                        .into_iter()
                        .filter(|endpoint| endpoint.hostname == hostname)
                        .map(|endpoint| record(name, address_data(endpoint.address)))
                        .collect();
                    if addresses.is_empty() { Answer::NoSuchName } else { of_type(record_type, addresses) }
                }
                None => Answer::NoSuchName,
            },
            Question::Port { namespace, service, protocol, port } => match self.services.get(namespace, service) {
                Some(found) => self.ports(name, record_type, &found, protocol, port),
                None => Answer::NoSuchName,
            },
        }
    }

    fn service(&self, name: &Name, record_type: RecordType, service: &Service) -> Answer {
        let spec = service.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec.external_name.unwrap_or_default();
            let Ok(mut target) = Name::from_utf8(target.trim_end_matches('.')) else { return Answer::NoSuchName };
            target.set_fqdn(true);
            return Answer::Alias { record: Box::new(record(name, RData::CNAME(CNAME(target.clone())))), target };
        }
        let addresses: Vec<IpAddr> = match is_headless(service) {
            false => cluster_ips(service),
            true => self.endpoints(service).into_iter().map(|endpoint| endpoint.address).collect(),
        };
        if is_headless(service) && addresses.is_empty() {
            return Answer::NoSuchName;
        }
        of_type(record_type, addresses.into_iter().map(|address| record(name, address_data(address))).collect())
    }

    fn ports(
        &self,
        name: &Name,
        record_type: RecordType,
        service: &Service,
        protocol: &str,
        port: Option<&str>,
    ) -> Answer {
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        if is_headless(service) {
            for endpoint in self.endpoints(service) {
                let target = self.below(&[&endpoint.hostname, service_name(service), namespace(service), "svc"]);
                for (port_name, port_protocol, number) in &endpoint.ports {
                    if port_protocol.eq_ignore_ascii_case(protocol) && port.is_none_or(|port| port == port_name) {
                        answers.push(record(name, RData::SRV(SRV::new(0, 0, *number, target.clone()))));
                        additionals.push(record(&target, address_data(endpoint.address)));
                    }
                }
            }
        } else {
            let target = self.below(&[service_name(service), namespace(service), "svc"]);
            for found in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
                let same_protocol = found.protocol.as_deref().unwrap_or("TCP").eq_ignore_ascii_case(protocol);
                let same_port = port.is_none_or(|port| found.name.as_deref() == Some(port));
                if let (true, true, Ok(number)) = (same_protocol, same_port, u16::try_from(found.port)) {
                    answers.push(record(name, RData::SRV(SRV::new(0, 0, number, target.clone()))));
                }
            }
            if !answers.is_empty() {
                additionals = cluster_ips(service).into_iter().map(|ip| record(&target, address_data(ip))).collect();
            }
        }
        additionals.dedup();
        match (answers.is_empty(), record_type) {
            (true, _) => Answer::NoSuchName,
            (false, RecordType::SRV | RecordType::ANY) if port.is_some() => {
                // Weights share the load evenly.
                let weight = u16::try_from(100 / answers.len()).unwrap_or(1).max(1);
                for answer in &mut answers {
                    if let RData::SRV(srv) = &mut answer.data {
                        srv.weight = weight;
                    }
                }
                Answer::Records { answers, additionals }
            }
            (false, _) => Answer::Records { answers: Vec::new(), additionals: Vec::new() },
        }
    }

    fn node(&self, name: &Name, record_type: RecordType, node: &str) -> Answer {
        let Some(node) = self.nodes.get("", node) else { return Answer::NotOurs };
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let records = addresses
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address.address.parse().ok())
            .map(|ip| Record::from_rdata(name.clone(), NODE_TTL, address_data(ip)))
            .collect();
        of_type(record_type, records)
    }

    /// Names of the Service or endpoints behind an address.
    fn names_of(&self, address: IpAddr) -> Vec<Name> {
        let text = address.to_string();
        let services = self.services.list();
        if let Some(service) = services.iter().find(|service| cluster_ips(service).contains(&address)) {
            return vec![self.below(&[service_name(service), namespace(service), "svc"])];
        }
        let mut names = Vec::new();
        for slice in self.slices.list() {
            let holds = |endpoint: &&Endpoint| endpoint.addresses.contains(&text);
            let owner = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
            for endpoint in slice.endpoints.iter().flatten().filter(holds) {
                let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
                if let Some(service) =
                    owner.and_then(|owner| self.services.get(namespace, owner)).filter(|s| is_headless(s))
                {
                    let hostname = endpoint.hostname.clone().unwrap_or_else(|| dashed(&text));
                    names.push(self.below(&[&hostname, service_name(&service), namespace, "svc"]));
                }
            }
        }
        names
    }

    /// The ready endpoints of a Service, each address once.
    fn endpoints(&self, service: &Service) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        for slice in self.slices.list_in(namespace(service)) {
            let labels = slice.metadata.labels.as_ref();
            if labels.and_then(|labels| labels.get("kubernetes.io/service-name")).map(String::as_str)
                != Some(service_name(service))
            {
                continue;
            }
            let ports: Vec<_> = slice.ports.iter().flatten().filter_map(port_of).collect();
            for endpoint in slice.endpoints.iter().flatten() {
                // Unset means ready (discovery/v1).
                if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
                    continue;
                }
                for text in &endpoint.addresses {
                    let Ok(address) = text.parse::<IpAddr>() else { continue };
                    let hostname = endpoint.hostname.clone().unwrap_or_else(|| dashed(text)).to_lowercase();
                    match found.iter_mut().find(|found| found.address == address && found.hostname == hostname) {
                        Some(found) => found.ports.extend(ports.iter().cloned()),
                        None => found.push(Found { address, hostname, ports: ports.clone() }),
                    }
                }
            }
        }
        found
    }

    fn below(&self, labels: &[&str]) -> Name {
        let mut name = Name::new();
        for label in labels {
            // A label that DNS cannot carry makes the name shorter; API validation keeps such labels out.
            name = name.clone().append_label(label.as_bytes()).unwrap_or(name);
        }
        let mut name = name.append_domain(&self.domain).unwrap_or_else(|_| self.domain.clone());
        name.set_fqdn(true);
        name
    }
}

struct Found {
    address: IpAddr,
    hostname: String,
    /// Name, protocol, number.
    ports: Vec<(String, String, u16)>,
}

fn port_of(port: &k8s_openapi::api::discovery::v1::EndpointPort) -> Option<(String, String, u16)> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    Some((port.name.clone().unwrap_or_default(), protocol, u16::try_from(port.port?).ok()?))
}

fn service_name(service: &Service) -> &str {
    service.metadata.name.as_deref().unwrap_or_default()
}

fn namespace(service: &Service) -> &str {
    service.metadata.namespace.as_deref().unwrap_or_default()
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut ips: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    ips.dedup();
    ips
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn of_type(record_type: RecordType, mut answers: Vec<Record>) -> Answer {
    answers.retain(|answer| record_type == RecordType::ANY || answer.record_type() == record_type);
    Answer::Records { answers, additionals: Vec::new() }
}

#[cfg(test)]
mod tests;
