//! The environment of a container.
//!
//! Order decides who wins: `envFrom`, then `env`, which may refer to what came before; then the services that the pod
//! may know, where the name is still free.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, Service};

use crate::fields::{self, FieldError, NodeFacts};
use crate::objects::{Kind, ObjectError, Objects};
use crate::pod;

#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    #[error("{0}")]
    Object(#[from] ObjectError),
    #[error("{0}")]
    Field(#[from] FieldError),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { kind: &'static str, namespace: String, name: String, key: String },
    #[error("{0}")]
    File(String),
}

/// Names that came from `envFrom` but are no names of variables, per source.
pub type Skipped = Vec<(String, Vec<String>)>;

pub async fn environment(
    pod: &Pod,
    container: &Container,
    facts: &NodeFacts,
    objects: &Objects,
    services: &[Arc<Service>],
    file: &(dyn Fn(&str, &str, &str) -> Result<Option<String>, String> + Sync),
) -> Result<(Vec<(String, String)>, Skipped), EnvError> {
    let (uid, namespace) = (pod::uid(pod), pod::namespace(pod));
    let mut vars = Vars::default();
    let mut skipped = Skipped::new();
    let from_services = service_variables(pod, services);
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional, label) = if let Some(r) = &source.config_map_ref {
            (Kind::ConfigMap, &r.name, r.optional, "configmap")
        } else if let Some(r) = &source.secret_ref {
            (Kind::Secret, &r.name, r.optional, "secret")
        } else {
            continue;
        };
        let object = match objects.get(uid, kind, namespace, name).await {
            Ok(object) => object,
            Err(ObjectError::NotFound { .. }) if optional == Some(true) => continue,
            Err(e) => return Err(e.into()),
        };
        let mut invalid = Vec::new();
        for (key, value) in &object.data {
            let key = format!("{prefix}{key}");
            if is_name(&key) {
                vars.set(key, String::from_utf8_lossy(value).into_owned());
            } else {
                invalid.push(key);
            }
        }
        if !invalid.is_empty() {
            skipped.push((format!("{label} {namespace}/{name}"), invalid));
        }
    }
    for var in container.env.iter().flatten() {
        let Some(from) = &var.value_from else {
            let text = var.value.as_deref().unwrap_or_default();
            let value = fields::expand(text, |name| vars.get(name).or_else(|| from_services.get(name).cloned()));
            vars.set(var.name.clone(), value);
            continue;
        };
        let value = if let Some(field) = &from.field_ref {
            Some(fields::field(pod, &field.field_path, facts)?)
        } else if let Some(resource) = &from.resource_field_ref {
            Some(fields::resource(pod, container, resource, facts)?)
        } else if let Some(r) = &from.config_map_key_ref {
            let optional = r.optional.unwrap_or(false);
            key(objects, uid, Kind::ConfigMap, namespace, &r.name, &r.key, optional).await?
        } else if let Some(r) = &from.secret_key_ref {
            let optional = r.optional.unwrap_or(false);
            key(objects, uid, Kind::Secret, namespace, &r.name, &r.key, optional).await?
        } else if let Some(r) = &from.file_key_ref {
            let found = file(&r.volume_name, &r.path, &r.key).map_err(EnvError::File)?;
            if found.is_none() && !r.optional.unwrap_or(false) {
                return Err(EnvError::File(format!(
                    "environment variable key \"{}\" not found in file \"{}\"",
                    r.key, r.path
                )));
            }
            found
        } else {
            None
        };
        if let Some(value) = value {
            vars.set(var.name.clone(), value);
        }
    }
    for (name, value) in from_services {
        if vars.get(&name).is_none() {
            vars.set(name, value);
        }
    }
    Ok((vars.0, skipped))
}

async fn key(
    objects: &Objects,
    uid: &str,
    kind: Kind,
    namespace: &str,
    name: &str,
    key: &str,
    optional: bool,
) -> Result<Option<String>, EnvError> {
    let object = match objects.get(uid, kind, namespace, name).await {
        Ok(object) => object,
        Err(ObjectError::NotFound { .. }) if optional => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    match object.data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional => Ok(None),
        None => Err(EnvError::Key {
            kind: if kind == Kind::Secret { "Secret" } else { "ConfigMap" },
            namespace: namespace.into(),
            name: name.into(),
            key: key.into(),
        }),
    }
}

/// In order of first appearance; a later value replaces an earlier one in its place.
#[derive(Default)]
struct Vars(Vec<(String, String)>);

impl Vars {
    fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())
    }

    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some(var) => var.1 = value,
            None => self.0.push((name, value)),
        }
    }
}

/// Since 1.34 anything printable but `=` is a name.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

/// `WEB_SERVICE_HOST` and its kin: the services of the pod's own namespace if it wants links, and always the API's.
fn service_variables(pod: &Pod, services: &[Arc<Service>]) -> BTreeMap<String, String> {
    let links = pod::spec(pod).and_then(|s| s.enable_service_links).unwrap_or(true);
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let has_address = service
            .spec
            .as_ref()
            .and_then(|s| s.cluster_ip.as_deref())
            .is_some_and(|ip| !ip.is_empty() && ip != "None");
        if !has_address {
            continue;
        }
        if links && namespace == pod::namespace(pod) {
            chosen.insert(name, service);
        } else if namespace == "default" && name == "kubernetes" {
            chosen.entry(name).or_insert(service);
        }
    }
    let mut vars = BTreeMap::new();
    for (name, service) in chosen {
        let Some(spec) = &service.spec else { continue };
        let ip = spec.cluster_ip.clone().unwrap_or_default();
        let name = name.to_uppercase().replace('-', "_");
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        vars.insert(format!("{name}_SERVICE_HOST"), ip.clone());
        vars.insert(format!("{name}_SERVICE_PORT"), first.port.to_string());
        for port in ports {
            if let Some(label) = port.name.as_deref().filter(|n| !n.is_empty()) {
                let label = label.to_uppercase().replace('-', "_");
                vars.insert(format!("{name}_SERVICE_PORT_{label}"), port.port.to_string());
            }
        }
        let mut seen = BTreeSet::new();
        for (i, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if i == 0 {
                vars.insert(format!("{name}_PORT"), url.clone());
            }
            let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
            if seen.insert(prefix.clone()) {
                vars.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
                vars.insert(format!("{prefix}_PORT"), port.port.to_string());
                vars.insert(format!("{prefix}_ADDR"), ip.clone());
                vars.insert(prefix, url);
            }
        }
    }
    vars
}

/// One variable of a file of `NAME=value` lines, as `fileKeyRef` reads it.
pub fn file_variable(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim();
        let inner = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\''));
        (name.trim() == key).then(|| inner.unwrap_or(value).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn services_become_variables() {
        let service = |namespace: &str, name: &str, ip: &str| {
            let spec = json!({"clusterIP": ip, "ports": [{"name": "web-a", "port": 80, "protocol": "TCP"}]});
            let value = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
            Arc::new(serde_json::from_value::<Service>(value).unwrap())
        };
        let services = [
            service("default", "kubernetes", "10.43.0.1"),
            service("n", "my-app", "10.43.0.9"),
            service("n", "headless", "None"),
            service("other", "x", "10.43.0.3"),
        ];
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"namespace": "n"}, "spec": {"containers": []}})).unwrap();
        let vars = service_variables(&pod, &services);
        let get = |name: &str| vars.get(name).map(String::as_str);
        assert_eq!(get("KUBERNETES_SERVICE_HOST"), Some("10.43.0.1"));
        assert_eq!(get("MY_APP_SERVICE_PORT_WEB_A"), Some("80"));
        assert_eq!(get("MY_APP_PORT"), Some("tcp://10.43.0.9:80"));
        assert_eq!(get("MY_APP_PORT_80_TCP_ADDR"), Some("10.43.0.9"));
        assert!(!vars.keys().any(|k| k.starts_with("HEADLESS") || k.starts_with("X_")));
        let mut alone = pod;
        alone.spec.as_mut().unwrap().enable_service_links = Some(false);
        assert!(service_variables(&alone, &services).keys().all(|k| k.starts_with("KUBERNETES_")));
    }

    #[test]
    fn files_hold_variables() {
        assert_eq!(file_variable("A=1\nB = 'x y'\n", "B").as_deref(), Some("x y"));
        assert_eq!(file_variable("A=1", "C"), None);
    }
}
