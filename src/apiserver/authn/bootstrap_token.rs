//! Bootstrap tokens, `<id>.<secret>`: kept as Secrets `kube-system/bootstrap-token-<id>`, used to join machines.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use crate::encryption::Snapshot;
use crate::handler::UserInfo;

/// The user of this token, if there is such a token and it holds.
pub fn user(token: &str, snapshot: &Snapshot, now: Timestamp) -> Option<UserInfo> {
    let (id, secret) = token.split_once('.')?;
    let fits = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    if !fits(id, 6) || !fits(secret, 16) {
        return None;
    }
    let stored = snapshot.get(format!("/registry/secrets/kube-system/bootstrap-token-{id}").as_bytes())?;
    let object: Value = serde_json::from_slice(&stored.value().ok()?).ok()?;
    if object["type"] != "bootstrap.kubernetes.io/token" || !object["metadata"]["deletionTimestamp"].is_null() {
        return None;
    }
    let field = |name: &str| -> Option<String> {
        String::from_utf8(STANDARD.decode(object["data"][name].as_str()?).ok()?).ok()
    };
    let expected = field("token-secret")?;
    let same = expected.len() == secret.len()
        && expected.bytes().zip(secret.bytes()).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0;
    let usable = field("usage-bootstrap-authentication").as_deref() == Some("true");
    if !same || !usable || field("token-id").as_deref() != Some(id) {
        return None;
    }
    if let Some(expiration) = field("expiration") {
        match expiration.parse::<Timestamp>() {
            Ok(end) if now < end => {}
            _ => return None,
        }
    }
    let mut user = UserInfo::new(&format!("system:bootstrap:{id}"), &["system:bootstrappers"]);
    for group in field("auth-extra-groups").unwrap_or_default().split(',').filter(|group| !group.is_empty()) {
        if !group.starts_with("system:bootstrappers:") {
            return None;
        }
        user.groups.push(group.to_owned());
    }
    Some(user)
}
