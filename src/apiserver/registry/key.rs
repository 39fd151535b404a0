//! Where objects live in the store: `/registry/<resource>/<namespace>/<name>` or `/registry/<resource>/<name>`.

use bytes::Bytes;

/// The key of one object. `namespace` is empty for cluster-scoped resources.
pub fn object(resource: &str, namespace: &str, name: &str) -> Bytes {
    if namespace.is_empty() {
        format!("/registry/{resource}/{name}").into()
    } else {
        format!("/registry/{resource}/{namespace}/{name}").into()
    }
}

/// What the keys of all objects of a resource (in one namespace, unless it is empty) begin with.
pub fn prefix(resource: &str, namespace: &str) -> Bytes {
    if namespace.is_empty() {
        format!("/registry/{resource}/").into()
    } else {
        format!("/registry/{resource}/{namespace}/").into()
    }
}

/// Namespace and name in a key: the inverse of [`object`].
pub fn split(key: &[u8], namespaced: bool) -> Option<(&str, &str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix("/registry/")?;
    let (_, rest) = rest.split_once('/')?;
    if namespaced { rest.split_once('/') } else { Some(("", rest)) }
}

/// The reservation of a node port; its value is the key of the Service that has it.
pub fn node_port(port: u16) -> Bytes {
    format!("/registry/ranges/nodeports/{port:05}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_split_into_what_they_were_made_of() {
        assert_eq!(split(&object("pods", "a", "b"), true), Some(("a", "b")));
        assert_eq!(split(&object("nodes", "", "b"), false), Some(("", "b")));
        assert!(object("deployments.apps", "a", "b").starts_with(&prefix("deployments.apps", "a")));
    }
}
