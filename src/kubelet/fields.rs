//! What a pod may be told about itself: `fieldRef`, `resourceFieldRef`, and `$(VAR)` in texts.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use mussel_api::quantity::Quantity;

use crate::{pod, resources};

#[derive(Debug, thiserror::Error)]
pub enum FieldError {
    #[error("unsupported fieldPath: {0}")]
    Path(String),
    #[error("container {0} not found")]
    Container(String),
    #[error("unsupported container resource : {0}")]
    Resource(String),
    #[error("invalid divisor {0}")]
    Divisor(String),
}

/// What only the node knows and pods may ask for.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    pub name: String,
    pub host_ips: Vec<String>,
    pub pod_ips: Vec<String>,
    pub allocatable_milli_cpu: i64,
    pub allocatable_memory: i64,
    pub allocatable_ephemeral_storage: i64,
}

/// `metadata.name`, `status.podIP`, `metadata.labels['x']` and so on.
pub fn field(pod: &Pod, path: &str, node: &NodeFacts) -> Result<String, FieldError> {
    let meta = &pod.metadata;
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(FieldError::Path(path.into())),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    let spec = pod::spec(pod);
    Ok(match path {
        "metadata.name" => pod::name(pod).to_owned(),
        "metadata.namespace" => pod::namespace(pod).to_owned(),
        "metadata.uid" => pod::uid(pod).to_owned(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "spec.restartPolicy" => pod::restart_policy(pod).to_owned(),
        "spec.schedulerName" => spec.and_then(|s| s.scheduler_name.clone()).unwrap_or_default(),
        "status.hostIP" => first(&node.host_ips),
        "status.hostIPs" => node.host_ips.join(","),
        "status.podIP" => first(&node.pod_ips),
        "status.podIPs" => node.pod_ips.join(","),
        "status.phase" => pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default(),
        _ => return Err(FieldError::Path(path.into())),
    })
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.split_once("['")?;
    Some((map, key.strip_suffix("']")?))
}

/// One `key="value"` a line, sorted, as the downward API shows maps.
pub fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let mut text = String::new();
    for (key, value) in map.into_iter().flatten() {
        let _ = writeln!(text, "{key}={}", quote(value));
    }
    text.truncate(text.trim_end_matches('\n').len());
    text
}

fn quote(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// `limits.cpu`, `requests.memory` and so on, in units of the divisor and rounded up. A container without a limit is
/// limited by the node.
pub fn resource(
    pod: &Pod,
    container: &Container,
    selector: &ResourceFieldSelector,
    node: &NodeFacts,
) -> Result<String, FieldError> {
    let named;
    let container = match selector.container_name.as_deref() {
        Some(name) if !name.is_empty() => {
            named = pod::find_container(pod, name).ok_or_else(|| FieldError::Container(name.into()))?;
            &named
        }
        _ => container,
    };
    let (kind, name) =
        selector.resource.split_once('.').ok_or_else(|| FieldError::Resource(selector.resource.clone()))?;
    let allocatable = match name {
        "cpu" => Quantity::from_milli(node.allocatable_milli_cpu),
        "memory" => whole(node.allocatable_memory),
        "ephemeral-storage" => whole(node.allocatable_ephemeral_storage),
        _ if name.starts_with("hugepages-") => Quantity::ZERO,
        _ => return Err(FieldError::Resource(selector.resource.clone())),
    };
    let amount = match kind {
        "limits" => resources::limit(container, name).filter(|q| !q.is_zero()).unwrap_or(allocatable),
        "requests" => resources::request(container, name).unwrap_or(Quantity::ZERO),
        _ => return Err(FieldError::Resource(selector.resource.clone())),
    };
    let divisor = match &selector.divisor {
        Some(d) => Quantity::try_from(d).map_err(|_| FieldError::Divisor(d.0.clone()))?,
        None => Quantity::ZERO,
    };
    let divisor = if divisor.is_zero() { whole(1) } else { divisor };
    // In thousandths for CPU so that a divisor of 1m works; whole units for all else.
    let (amount, divisor) = if name == "cpu" {
        (i128::from(amount.to_milli()), i128::from(divisor.to_milli()))
    } else {
        (i128::from(amount.value()), i128::from(divisor.value()))
    };
    if divisor <= 0 {
        return Err(FieldError::Divisor(format!("{divisor}")));
    }
    Ok(((amount + divisor - 1) / divisor).to_string())
}

fn whole(value: i64) -> Quantity {
    Quantity::from_value(value, mussel_api::quantity::Format::DecimalSi)
}

/// Replaces `$(NAME)` by its value; `$$` is one dollar; unknown names stay as they are.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    let _ = write!(out, "$({name})");
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// As [`expand`], for paths: an unknown name is an error there.
pub fn expand_strict(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let missing = std::cell::RefCell::new(Vec::new());
    let out = expand(text, |name| {
        let value = lookup(name);
        if value.is_none() {
            missing.borrow_mut().push(name.to_owned());
        }
        value
    });
    let missing = missing.into_inner();
    if missing.is_empty() { Ok(out) } else { Err(format!("missing value for {}", missing.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn variables_expand_as_upstream_does() {
        let lookup = |name: &str| (name == "A").then(|| "x".to_owned());
        for (text, expected) in [
            ("$(A)", "x"),
            ("a$(A)b$(A)", "axbx"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$x"),
            ("$A", "$A"),
            ("$", "$"),
            ("$(A", "$(A"),
            ("", ""),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
        assert!(expand_strict("$(B)", lookup).is_err());
    }

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"b": "2", "a": "1\n\"x"}},
            "spec": {"containers": [{"name": "c", "resources":
                {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}}]},
        }))
        .unwrap();
        let node = NodeFacts { allocatable_memory: 1 << 30, pod_ips: vec!["10.0.0.1".into()], ..Default::default() };
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.labels", "a=\"1\\n\\\"x\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['none']", ""),
            ("status.podIP", "10.0.0.1"),
        ] {
            assert_eq!(field(&pod, path, &node).unwrap(), expected);
        }
        assert!(field(&pod, "spec.nope", &node).is_err());
        let container = &pod::containers(&pod)[0];
        for (name, divisor, expected) in [
            ("limits.cpu", "0", "2"),
            ("limits.cpu", "1m", "1500"),
            ("requests.memory", "1Mi", "64"),
            ("limits.memory", "1Gi", "1"),
        ] {
            let selector = serde_json::from_value(json!({"resource": name, "divisor": divisor})).unwrap();
            assert_eq!(resource(&pod, container, &selector, &node).unwrap(), expected, "{name}");
        }
    }
}
