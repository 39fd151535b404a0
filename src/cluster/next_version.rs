//! The minor version after this one, as far as machines tell each other which one they have.
//!
//! A build with debug assertions takes its part when `MUSSEL_TEST_NEXT_VERSION` is set, so that upgrades can be tested with
//! whole machines before there is anything to upgrade to.

use std::sync::LazyLock;

use http::HeaderValue;
use mussel_api::version::GIT_VERSION;

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let played = cfg!(debug_assertions) && std::env::var_os("MUSSEL_TEST_NEXT_VERSION").is_some();
    if played { next_minor(GIT_VERSION) } else { GIT_VERSION.to_owned() }
});

/// The version that this machine says it has.
pub fn version() -> &'static str {
    &VERSION
}

pub fn header() -> HeaderValue {
    HeaderValue::from_static(version())
}

/// `v1.37.0` of `v1.36.2+mussel.1`.
fn next_minor(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let major = numbers.next().unwrap_or_default();
    let minor: u32 = numbers.next().and_then(|minor| minor.parse().ok()).unwrap_or_default();
    format!("v{major}.{}.0", minor + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_minor_follows() {
        assert_eq!(next_minor("v1.36.2+mussel.1"), "v1.37.0");
        assert_eq!(version(), GIT_VERSION, "unless told to play it");
    }
}
