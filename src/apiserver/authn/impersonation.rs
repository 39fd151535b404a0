//! `Impersonate-User` and its companions: acting as another, for those who may.

use http::{HeaderMap, HeaderName};

use super::service_account_groups;
use crate::authz::{Attributes, Authorizer};
use crate::handler::UserInfo;
use crate::request::decode_component;
use crate::status::Status;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// The user to go on as: the impersonated one if the headers ask for one and `user` may, else `user`. The headers are
/// taken out.
///
/// # Errors
/// `403` when `user` may not; `500` in upstream's manner when the headers make no sense.
pub async fn apply(user: UserInfo, headers: &mut HeaderMap, authorizer: &Authorizer) -> Result<UserInfo, Status> {
    let asked: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    if asked.is_empty() {
        return Ok(user);
    }
    let values = |name: &str| -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .filter(|v| !v.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let name = values(USER).into_iter().next().unwrap_or_default();
    let groups = values(GROUP);
    let uid = values(UID).into_iter().next().unwrap_or_default();
    let mut extra = std::collections::BTreeMap::new();
    for header in &asked {
        if let Some(key) = header.as_str().strip_prefix(EXTRA) {
            extra.insert(decode_component(key, false), values(header.as_str()));
        }
    }
    if name.is_empty() {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(user);
        }
        return Err(Status::internal(format_args!(
            "requested groups {groups:?}, uid {uid:?} or extra without impersonating a user"
        )));
    }

    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let mut checks = Vec::new();
    match account {
        Some((namespace, account)) => {
            checks.push(Attributes::resource(&user, "impersonate", "", "serviceaccounts", namespace, account));
        }
        None => checks.push(Attributes::resource(&user, "impersonate", "", "users", "", &name)),
    }
    for group in &groups {
        checks.push(Attributes::resource(&user, "impersonate", "", "groups", "", group));
    }
    if !uid.is_empty() {
        checks.push(Attributes::resource(&user, "impersonate", "authentication.k8s.io", "uids", "", &uid));
    }
    for (key, list) in &extra {
        for value in list {
            let mut check =
                Attributes::resource(&user, "impersonate", "authentication.k8s.io", "userextras", "", value);
            check.subresource = key.clone();
            checks.push(check);
        }
    }
    for check in &checks {
        authorizer.require(check).await?;
    }

    let account_groups = account.map(|(namespace, _)| service_account_groups(namespace));
    let mut result = UserInfo { name, uid, groups, extra };
    if result.groups.is_empty()
        && let Some(groups) = account_groups
    {
        result.groups = groups;
    }
    if result.name == "system:anonymous" {
        if !result.in_group("system:unauthenticated") {
            result.groups.push("system:unauthenticated".to_owned());
        }
    } else if !result.in_group("system:authenticated") {
        result.groups.push("system:authenticated".to_owned());
    }
    for header in asked {
        headers.remove(header);
    }
    Ok(result)
}
