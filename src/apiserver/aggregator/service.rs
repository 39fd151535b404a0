//! An APIService, read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mussel_api::object::{self, ObjectExt};
use serde_json::Value;

use super::OWN_GROUP;
use crate::outbound::tls::Trust;

/// Where APIServices lie in the store.
pub const RESOURCE: &str = "apiservices.apiregistration.k8s.io";
/// Says that the object is ours to change and to remove.
pub const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiService {
    pub name: String,
    pub group: String,
    pub version: String,
    pub revision: u64,
    pub group_priority: i64,
    pub version_priority: i64,
    /// Where the extension server is; `None` when it is this one.
    pub remote: Option<Remote>,
    /// As the leader last found it.
    pub available: bool,
}

/// An extension server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// An unreadable CA bundle is told to whoever asks.
    pub trust: Result<Trust, String>,
}

impl ApiService {
    /// `None` when it is no APIService.
    pub fn read(stored: &[u8], revision: u64) -> Option<Self> {
        Some(Self::of(&object::decode(stored, revision).ok()?, revision))
    }

    pub fn of(object: &Value, revision: u64) -> Self {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let remote = spec["service"].is_object().then(|| Remote {
            namespace: text(&spec["service"]["namespace"]),
            service: text(&spec["service"]["name"]),
            port: spec["service"]["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
            trust: if spec["insecureSkipTLSVerify"] == true {
                Ok(Trust::Anybody)
            } else {
                let pem = STANDARD.decode(spec["caBundle"].as_str().unwrap_or_default());
                pem.map(Trust::Bundle).map_err(|error| format!("unparsable caBundle: {error}"))
            },
        });
        Self {
            name: object.name().to_owned(),
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            revision,
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or_default(),
            version_priority: spec["versionPriority"].as_i64().unwrap_or_default(),
            remote,
            available: condition(object).is_some_and(|condition| condition["status"] == "True"),
        }
    }

    /// Whether requests go to an extension server.
    pub fn is_elsewhere(&self) -> bool {
        self.remote.is_some() && !self.group.is_empty() && self.group != OWN_GROUP
    }

    /// `/apis/<group>/<version>`
    pub fn path(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }
}

impl Remote {
    /// What the certificate has to be for.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }
}

/// The condition `Available`.
pub fn condition(object: &Value) -> Option<&Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == "Available")
}

/// Sets the condition `Available`; `false` when it says that already.
pub fn set_condition(object: &mut Value, available: bool, reason: &str, message: &str, now: &str) -> bool {
    let status = if available { "True" } else { "False" };
    let mut since = now.to_owned();
    if let Some(old) = condition(object) {
        if old["status"] == status && old["reason"] == *reason && old["message"] == *message {
            return false;
        }
        if old["status"] == status
            && let Some(before) = old["lastTransitionTime"].as_str()
        {
            since = before.to_owned();
        }
    }
    let new = serde_json::json!({"type": "Available", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since});
    if !object["status"].is_object() {
        object["status"] = serde_json::json!({});
    }
    let conditions = &mut object["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = Value::Array(Vec::new());
    }
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|condition| condition["type"] != "Available");
        list.push(new);
    }
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn transitions_have_their_time() {
        let mut object = json!({"spec": {"group": "g", "version": "v1", "service": {"namespace": "n", "name": "s"}}});
        assert!(set_condition(&mut object, false, "A", "a", "1"));
        assert!(!set_condition(&mut object, false, "A", "a", "2"));
        assert!(set_condition(&mut object, false, "B", "a", "3"));
        assert_eq!(condition(&object).unwrap()["lastTransitionTime"], "1");
        assert!(!ApiService::of(&object, 1).available);
        assert!(set_condition(&mut object, true, "Passed", "", "4"));
        assert_eq!(condition(&object).unwrap()["lastTransitionTime"], "4");
        let read = ApiService::of(&object, 1);
        assert!(read.available && read.is_elsewhere());
        assert_eq!(read.remote.unwrap().trust, Ok(Trust::Bundle(Vec::new())));
    }
}
