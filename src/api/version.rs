//! The version this build answers with: Kubernetes' own, and our build number behind the plus sign.

pub const MAJOR: &str = "1";
pub const MINOR: &str = "36";
/// The Kubernetes release whose behaviour we follow.
pub const KUBERNETES: &str = "v1.36.2";
/// As in `kubectl version` and in the VERSION column of nodes.
pub const GIT_VERSION: &str = "v1.36.2+mussel.1";
