//! What machines say to each other when they join: paths, headers and which versions go together.
//!
//! Everything is HTTPS on the servers' one port. A path or header changes its meaning only under another name.

/// Everything of ours but `/cacerts` and `/ping` lies below.
pub const PREFIX: &str = "/v1-mussel/";
pub const CA_CERTS: &str = "/cacerts";
pub const PING: &str = "/ping";
pub const CONFIG: &str = "/v1-mussel/config";
pub const API_SERVERS: &str = "/v1-mussel/apiservers";
pub const READY: &str = "/v1-mussel/readyz";
pub const CONNECT: &str = "/v1-mussel/connect";
pub const TOKEN: &str = "/v1-mussel/token";
pub const AUTHORITIES: &str = "/v1-mussel/cert/cacerts";
pub const SERVER_BOOTSTRAP: &str = "/v1-mussel/server-bootstrap";

pub const VERSION_HEADER: &str = "mussel-version";
pub const NODE_NAME_HEADER: &str = "mussel-node-name";
pub const NODE_PASSWORD_HEADER: &str = "mussel-node-password";
pub const NODE_IP_HEADER: &str = "mussel-node-ip";

/// The protocol that the reverse tunnel's request upgrades to.
pub const TUNNEL_PROTOCOL: &str = "mussel-tunnel/1";

/// The user that agents, and the one that servers name beside their token.
pub const AGENT_USER: &str = "node";
pub const SERVER_USER: &str = "server";

/// `reason` in refusals that a joining machine tells apart.
pub mod reason {
    pub const NAME_TAKEN: &str = "NodeNameTaken";
    pub const VERSION_SKEW: &str = "VersionSkew";
}

/// A certificate that a machine can have signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    ServingKubelet,
    ClientKubelet,
    ClientProxy,
    ClientController,
}

impl Certificate {
    pub const ALL: [Self; 4] = [Self::ServingKubelet, Self::ClientKubelet, Self::ClientProxy, Self::ClientController];

    /// The stem of its files and of its path.
    pub fn file(self) -> &'static str {
        match self {
            Self::ServingKubelet => "serving-kubelet",
            Self::ClientKubelet => "client-kubelet",
            Self::ClientProxy => "client-kube-proxy",
            Self::ClientController => "client-mussel-controller",
        }
    }

    pub fn path(self) -> String {
        format!("{PREFIX}{}.crt", self.file())
    }
}

/// Two versions that do not work together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionSkew {
    #[error("{0:?} is no version")]
    Unreadable(String),
    #[error(
        "version {joining} is newer than the server's {server}; upgrade the servers first, or use {server} on this machine"
    )]
    TooNew { joining: String, server: String },
    #[error("version {joining} is too old for the server's {server}; upgrade this machine")]
    TooOld { joining: String, server: String },
}

/// How many minor versions an agent may be behind the servers, as upstream's kubelet.
const AGENT_BEHIND_MAX: u32 = 3;

/// Whether an agent of version `agent` may work with a server of version `server`.
///
/// # Errors
/// When they are too far apart, or one cannot be read.
pub fn check_agent_version(agent: &str, server: &str) -> Result<(), VersionSkew> {
    let (ours, theirs) = (minor(agent)?, minor(server)?);
    let (joining, server) = (agent.to_owned(), server.to_owned());
    if ours > theirs {
        return Err(VersionSkew::TooNew { joining, server });
    }
    if ours.0 < theirs.0 || ours.1 + AGENT_BEHIND_MAX < theirs.1 {
        return Err(VersionSkew::TooOld { joining, server });
    }
    Ok(())
}

/// Whether servers of these versions may form a group: neighbours only, so that an upgrade can go round.
///
/// # Errors
/// As [`check_agent_version`].
pub fn check_server_version(joining: &str, server: &str) -> Result<(), VersionSkew> {
    let (ours, theirs) = (minor(joining)?, minor(server)?);
    let (joining, server) = (joining.to_owned(), server.to_owned());
    if ours.0 > theirs.0 || ours.1 > theirs.1 + 1 {
        return Err(VersionSkew::TooNew { joining, server });
    }
    if ours.0 < theirs.0 || ours.1 + 1 < theirs.1 {
        return Err(VersionSkew::TooOld { joining, server });
    }
    Ok(())
}

/// Major and minor of `v1.36.2+mussel.1`.
fn minor(version: &str) -> Result<(u32, u32), VersionSkew> {
    let parsed = version.trim().trim_start_matches('v').split_once('.').and_then(|(major, rest)| {
        let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    parsed.ok_or_else(|| VersionSkew::Unreadable(version.chars().take(64).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_may_be_three_minors_behind() {
        let server = "v1.36.2+mussel.1";
        for fits in ["v1.36.9+mussel.7", "v1.33.0+mussel.1", "1.35.1"] {
            assert_eq!(check_agent_version(fits, server), Ok(()), "{fits}");
        }
        for new in ["v1.37.0+mussel.1", "v2.0.0"] {
            assert!(matches!(check_agent_version(new, server), Err(VersionSkew::TooNew { .. })), "{new}");
        }
        assert!(matches!(check_agent_version("v1.32.9", server), Err(VersionSkew::TooOld { .. })));
        assert!(matches!(check_agent_version("latest", server), Err(VersionSkew::Unreadable(_))));
    }

    #[test]
    fn servers_may_be_neighbours() {
        let server = "v1.36.2+mussel.1";
        assert!(check_server_version("v1.37.0", server).is_ok() && check_server_version("v1.35.0", server).is_ok());
        assert!(check_server_version("v1.38.0", server).is_err() && check_server_version("v1.34.0", server).is_err());
    }
}
