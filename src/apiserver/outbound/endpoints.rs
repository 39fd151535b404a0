//! The addresses behind a Service.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use crate::registry::view::View;

/// Why a Service leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    #[error("service {0:?} not found")]
    NoService(String),
    #[error("no service port {port} found for service {service:?}")]
    NoPort { service: String, port: u16 },
    #[error("no endpoints available for service {0:?}")]
    NoSlices(String),
    /// There are slices, but none with a ready endpoint for the port of this name.
    #[error("no endpoints available for service {service:?}")]
    NoEndpoints { service: String, port_name: String },
}

/// What a Service leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    /// Ready endpoints, at least one.
    Endpoints(Vec<SocketAddr>),
    /// An `ExternalName`.
    Name(String),
}

/// What the port of this number of a Service leads to.
///
/// # Errors
/// When there is nothing.
pub fn resolve(view: &View, namespace: &str, name: &str, port: u16) -> Result<Behind, ServiceError> {
    let service = view.get("services", namespace, name).ok_or_else(|| ServiceError::NoService(name.to_owned()))?;
    if service["spec"]["type"] == "ExternalName" {
        return Ok(Behind::Name(service["spec"]["externalName"].as_str().unwrap_or_default().to_owned()));
    }
    let ports = service["spec"]["ports"].as_array();
    let entry = ports.and_then(|ports| ports.iter().find(|entry| entry["port"] == port));
    let entry = entry.ok_or_else(|| ServiceError::NoPort { service: name.to_owned(), port })?;
    ready(view, namespace, name, entry["name"].as_str().unwrap_or_default()).map(Behind::Endpoints)
}

/// The ready endpoints of a Service for the port of this name; at least one.
///
/// # Errors
/// When there is none.
pub fn ready(view: &View, namespace: &str, name: &str, port_name: &str) -> Result<Vec<SocketAddr>, ServiceError> {
    let mut found = Vec::new();
    let mut slices = 0;
    for slice in view.list("endpointslices.discovery.k8s.io", namespace) {
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] != *name {
            continue;
        }
        slices += 1;
        let ports = slice["ports"].as_array().into_iter().flatten();
        let number = ports
            .filter(|port| port["name"].as_str().unwrap_or_default() == port_name)
            .find_map(|port| port_number(&port["port"]));
        let Some(number) = number else { continue };
        let ready = slice["endpoints"].as_array().into_iter().flatten();
        let ready = ready.filter(|endpoint| endpoint["conditions"]["ready"] != false);
        found.extend(ready.filter_map(|endpoint| {
            let ip: IpAddr = endpoint["addresses"][0].as_str()?.parse().ok()?;
            Some(SocketAddr::new(ip, number))
        }));
    }
    match (found.is_empty(), slices) {
        (false, _) => Ok(found),
        (true, 0) => Err(ServiceError::NoSlices(name.to_owned())),
        (true, _) => Err(ServiceError::NoEndpoints { service: name.to_owned(), port_name: port_name.to_owned() }),
    }
}

/// A port as an object has it; `None` when it is none.
pub fn port_number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok().filter(|port| *port != 0)
}
