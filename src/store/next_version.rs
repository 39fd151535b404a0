//! The version after this one, as far as formats go: it reads and speaks what this one does, and writes the next numbers.
//!
//! A build with debug assertions takes its part when `MUSSEL_TEST_NEXT_VERSION` is set, so that upgrades can be tested with
//! whole machines before there is anything to upgrade to.

use std::ops::RangeInclusive;
use std::sync::LazyLock;

use crate::WireVersions;

static PLAYED: LazyLock<bool> =
    LazyLock::new(|| cfg!(debug_assertions) && std::env::var_os("MUSSEL_TEST_NEXT_VERSION").is_some());

/// The versions of the protocol that this process speaks.
pub(crate) fn wire_versions() -> WireVersions {
    let now = WireVersions::NOW;
    if *PLAYED { WireVersions { newest: now.newest + 1, ..now } } else { now }
}

/// The layouts of the directory that this process reads, of those that this version does; it writes the newest.
pub(crate) fn formats(now: RangeInclusive<u32>) -> RangeInclusive<u32> {
    if *PLAYED { *now.start()..=now.end() + 1 } else { now }
}
