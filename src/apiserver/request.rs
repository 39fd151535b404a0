//! What a request asks for, read from its method, path and query: the `RequestInfo` that authentication, authorization,
//! routing and metrics share. The rules are upstream's.

use http::Method;

/// Verb, resource and place of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Of a resource request: `get list watch create update patch delete deletecollection`; else the method in lower case.
    pub verb: String,
    pub is_resource: bool,
    /// `api`, `apis` or empty.
    pub api_prefix: String,
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// The path from the resource on: `[pods, web, log]`.
    pub parts: Vec<String>,
    /// The path as it came, decoded.
    pub path: String,
}

const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    pub fn new(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self { verb: method.as_str().to_ascii_lowercase(), path: path.to_owned(), ..Self::default() };
        let trimmed = path.trim_matches('/');
        let mut parts: Vec<&str> = if trimmed.is_empty() { Vec::new() } else { trimmed.split('/').collect() };
        if parts.len() < 3 || !matches!(parts[0], "api" | "apis") {
            return info;
        }
        info.api_prefix = parts.remove(0).to_owned();
        if info.api_prefix == "apis" {
            if parts.len() < 3 {
                return info;
            }
            info.group = parts.remove(0).to_owned();
        }
        info.is_resource = true;
        info.version = parts.remove(0).to_owned();

        if matches!(parts[0], "proxy" | "watch") && parts.len() > 1 {
            info.verb = parts.remove(0).to_owned();
        } else {
            info.verb = match *method {
                Method::POST => "create",
                Method::GET | Method::HEAD => "get",
                Method::PUT => "update",
                Method::PATCH => "patch",
                Method::DELETE => "delete",
                _ => "",
            }
            .to_owned();
        }

        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace = parts[1].to_owned();
            if parts.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&parts[2]) {
                parts.drain(..2);
            }
        }
        info.parts = parts.iter().map(|part| (*part).to_owned()).collect();
        if parts.len() >= 3 {
            info.subresource = parts[2].to_owned();
        }
        if parts.len() >= 2 {
            info.name = parts[1].to_owned();
        }
        info.resource = parts[0].to_owned();

        if info.name.is_empty() && info.verb == "get" {
            info.verb = if query.is_true("watch") { "watch" } else { "list" }.to_owned();
        }
        if matches!(info.verb.as_str(), "list" | "watch") && info.name.is_empty() {
            // A list of one named object is authorized as that object, so that `resourceNames` in roles apply.
            if let Some(name) = name_selected(query.get("fieldSelector").unwrap_or_default()) {
                info.name = name.to_owned();
            }
        }
        if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".to_owned();
        }
        info
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, `pods/status`: what RBAC rules name.
    pub fn resource_with_subresource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// Whether the request may stay open for as long as the client likes.
    pub fn is_long_running(&self) -> bool {
        self.is_resource
            && (matches!(self.verb.as_str(), "watch" | "proxy")
                || matches!(self.subresource.as_str(), "attach" | "exec" | "log" | "portforward" | "proxy"))
    }

    pub fn is_read_only(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
    }
}

fn name_selected(selector: &str) -> Option<&str> {
    selector.split(',').find_map(|term| {
        let (field, value) = term.split_once('=')?;
        let value = value.strip_prefix('=').unwrap_or(value);
        (field == "metadata.name" && !value.is_empty()).then_some(value)
    })
}

/// The query's pairs, decoded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(pub Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode_component(key, true), decode_component(value, true))
                })
                .collect(),
        )
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Upstream's reading of booleans in queries: present and neither `false` nor `0`.
    pub fn is_true(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }
}

/// Undoes percent encoding (and `+` for a space in queries). Broken escapes stay as they are.
pub fn decode_component(text: &str, plus_is_space: bool) -> String {
    if !text.contains(['%', '+']) {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let escaped = escaped.and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' && plus_is_space { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: &str, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::new(&method.parse().unwrap(), path, &Query::parse(query))
    }

    #[test]
    fn requests_are_read_as_upstream_reads_them() {
        let table = [
            ("GET", "/api/v1/namespaces", "list//v1//namespaces//"),
            ("GET", "/api/v1/namespaces/other", "get//v1/other/namespaces//other"),
            ("PUT", "/api/v1/namespaces/other/finalize", "update//v1/other/namespaces/finalize/other"),
            ("GET", "/api/v1/namespaces/other/pods", "list//v1/other/pods//"),
            ("GET", "/api/v1/namespaces/other/pods/foo", "get//v1/other/pods//foo"),
            ("HEAD", "/api/v1/namespaces/other/pods/foo", "get//v1/other/pods//foo"),
            ("GET", "/api/v1/pods?watch=true", "watch//v1//pods//"),
            ("GET", "/api/v1/pods?watch=false", "list//v1//pods//"),
            ("GET", "/api/v1/watch/pods", "watch//v1//pods//"),
            ("GET", "/api/v1/watch/namespaces/other/pods", "watch//v1/other/pods//"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dweb", "list//v1//pods//web"),
            ("POST", "/api/v1/namespaces/other/pods", "create//v1/other/pods//"),
            ("POST", "/api/v1/namespaces/other/pods/foo/exec", "create//v1/other/pods/exec/foo"),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", "patch/apps/v1/a/deployments/scale/d"),
            ("DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection/apps/v1/a/deployments//"),
            ("DELETE", "/api/v1/nodes/n1", "delete//v1//nodes//n1"),
        ];
        for (method, uri, expected) in table {
            let i = info(method, uri);
            assert!(i.is_resource, "{uri}");
            let seen = format!(
                "{}/{}/{}/{}/{}/{}/{}",
                i.verb, i.group, i.version, i.namespace, i.resource, i.subresource, i.name
            );
            assert_eq!(seen, expected, "{method} {uri}");
        }
        for uri in ["/", "/healthz", "/api", "/api/v1", "/apis/apps", "/apis/apps/v1", "/version/x/y"] {
            let i = info("GET", uri);
            assert!(!i.is_resource && i.verb == "get" && i.path == uri, "{uri}");
        }
    }

    #[test]
    fn long_running_requests_are_known() {
        assert!(info("GET", "/api/v1/pods?watch=1").is_long_running());
        assert!(info("GET", "/api/v1/namespaces/a/pods/x/log").is_long_running());
        assert!(!info("GET", "/api/v1/namespaces/a/pods/x").is_long_running());
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("command=sh&command=-c&command=echo+a%26b&stdin=true&bad=%zz");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo a&b"]);
        assert!(query.is_true("stdin") && !query.is_true("tty"));
        assert_eq!(query.get("bad"), Some("%zz"));
    }
}
