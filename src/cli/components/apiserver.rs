//! The API server's arguments.

use std::time::Duration;

use super::values::{boolean, entries, number, time};
use super::{Argument, ArgumentError, Unused};
use crate::cli::args::values::{PortRange, port_range};

const ORIGIN: &str = "--kube-apiserver-arg";
const SO_ANYWAY: [(&str, &str); 8] = [
    ("allow-privileged", "true"),
    ("authorization-mode", "Node,RBAC"),
    ("enable-bootstrap-token-auth", "true"),
    ("profiling", "false"),
    ("service-account-lookup", "true"),
    ("storage-media-type", "application/json"),
    ("tls-min-version", "VersionTLS12"),
    ("enable-aggregator-routing", "true"),
];
const REASONS: [(&str, &str); 13] = [
    ("oidc-*", "tokens of an OIDC provider are not taken yet"),
    ("authentication-*", "only certificates, service accounts' and bootstrap tokens are taken"),
    ("audit-*", "no audit log is written yet"),
    ("authorization-mode", "who may do what is decided by Node and RBAC"),
    ("enable-admission-plugins", "all plugins there are take part, unless disabled"),
    ("feature-gates", "features are not switched"),
    ("runtime-config", "all versions there are are served"),
    ("tls-cipher-suites", "only suites with forward secrecy and authenticated encryption are there"),
    ("service-cluster-ip-range", "use --service-cidr"),
    ("advertise-address", "use --advertise-address"),
    ("bind-address", "use --bind-address"),
    ("secure-port", "use --https-listen-port"),
    ("watch-cache*", "there is no such cache"),
];

/// What the API server's arguments say. `None` leaves the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiServerArguments {
    pub anonymous_auth: Option<bool>,
    pub audiences: Vec<String>,
    pub disable_admission: Vec<String>,
    pub mutating_in_flight_max: Option<usize>,
    pub read_only_in_flight_max: Option<usize>,
    pub not_ready_seconds: Option<i64>,
    pub unreachable_seconds: Option<i64>,
    pub event_ttl: Option<Duration>,
    pub extend_tokens: Option<bool>,
    pub node_port_range: Option<PortRange>,
    pub tls13_only: bool,
}

impl ApiServerArguments {
    /// # Errors
    /// When a value cannot be, or the cluster would be less guarded than its owner believes.
    pub fn read(texts: &[String], unused: &mut Unused) -> Result<Self, ArgumentError> {
        let mut settings = Self::default();
        for argument in Argument::list(ORIGIN, texts) {
            if !settings.take(&argument)? {
                unused.note(&argument, &SO_ANYWAY, &REASONS);
            }
        }
        Ok(settings)
    }

    fn take(&mut self, argument: &Argument) -> Result<bool, ArgumentError> {
        let seconds = number(0, i64::from(i32::MAX));
        match argument.name.as_str() {
            "anonymous-auth" => self.anonymous_auth = Some(argument.read(boolean)?),
            "api-audiences" => self.audiences.extend(entries(&argument.value).map(str::to_owned)),
            "disable-admission-plugins" => self.disable_admission.extend(entries(&argument.value).map(str::to_owned)),
            "max-mutating-requests-inflight" => {
                self.mutating_in_flight_max = Some(argument.read(number(1, 100_000))?);
            }
            "max-requests-inflight" => self.read_only_in_flight_max = Some(argument.read(number(1, 100_000))?),
            "default-not-ready-toleration-seconds" => self.not_ready_seconds = Some(argument.read(seconds)?),
            "default-unreachable-toleration-seconds" => self.unreachable_seconds = Some(argument.read(seconds)?),
            "event-ttl" => self.event_ttl = Some(argument.read(time(Duration::from_secs(1)))?),
            "service-account-extend-token-expiration" => self.extend_tokens = Some(argument.read(boolean)?),
            "service-node-port-range" => self.node_port_range = Some(argument.read(port_range)?),
            "tls-min-version" if argument.value == "VersionTLS13" => self.tls13_only = true,
            "tls-min-version" if argument.value != "VersionTLS12" => {
                argument.read(|_| Err::<(), _>("must be VersionTLS12 or VersionTLS13".to_owned()))?;
            }
            "admission-control-config-file" => {
                return Err(argument.unguarded(
                    "its settings would not be enforced; take it away, and set Pod Security levels by labels of namespaces",
                ));
            }
            "authorization-config" | "authorization-webhook-config-file" => {
                return Err(argument.unguarded("nobody but Node and RBAC would be asked; take it away"));
            }
            "encryption-provider-config" => {
                return Err(
                    argument.unguarded("use --secrets-encryption; docs/operations.md tells where keys are kept")
                );
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<ApiServerArguments, String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        ApiServerArguments::read(&texts, &mut Unused::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_with_a_meaning_take_effect() {
        let settings = read(&[
            "anonymous-auth=false",
            "default-not-ready-toleration-seconds=30",
            "default-unreachable-toleration-seconds=20",
            "event-ttl=30m",
            "service-node-port-range=20000-20100",
            "max-requests-inflight=50",
            "tls-min-version=VersionTLS13",
            "disable-admission-plugins=ServiceAccount,Priority",
            "service-account-extend-token-expiration=false",
        ])
        .unwrap();
        assert_eq!((settings.anonymous_auth, settings.extend_tokens), (Some(false), Some(false)));
        assert_eq!((settings.not_ready_seconds, settings.unreachable_seconds), (Some(30), Some(20)));
        assert_eq!(settings.event_ttl, Some(Duration::from_secs(1800)));
        assert_eq!(settings.node_port_range, Some(PortRange { first: 20000, last: 20100 }));
        assert_eq!(settings.disable_admission, ["ServiceAccount", "Priority"]);
        assert!(settings.tls13_only);
    }

    #[test]
    fn what_would_leave_the_cluster_open_is_refused() {
        for text in ["admission-control-config-file=/x", "encryption-provider-config=/x", "authorization-config=/x"] {
            assert!(read(&[text]).unwrap_err().contains("is not supported"), "{text}");
        }
        assert!(read(&["oidc-issuer-url=https://x", "audit-log-path=/x"]).is_ok(), "said in the log");
        assert!(read(&["event-ttl=soon"]).is_err() && read(&["tls-min-version=VersionTLS10"]).is_err());
    }
}
