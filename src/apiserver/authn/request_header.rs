//! Users that an authenticating proxy in front of the API server vouches for: `X-Remote-User` and its companions.

use http::HeaderMap;

use crate::handler::UserInfo;
use crate::request::decode_component;

const EXTRA: &str = "x-remote-extra-";

/// The user in the headers; the caller has made sure that they come from the proxy.
pub fn user(headers: &HeaderMap) -> Option<UserInfo> {
    let values = |name: &str| -> Vec<&str> { headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect() };
    let name = values("x-remote-user").into_iter().find(|name| !name.is_empty())?;
    let mut user = UserInfo::new(name, &values("x-remote-group"));
    user.uid = values("x-remote-uid").first().copied().unwrap_or_default().to_owned();
    for header in headers.keys() {
        if let Some(key) = header.as_str().strip_prefix(EXTRA) {
            let list = values(header.as_str()).into_iter().map(str::to_owned).collect();
            user.extra.insert(decode_component(key, false), list);
        }
    }
    Some(user)
}
