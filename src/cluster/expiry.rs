//! Says on the Node when certificates of this machine come to their end. Those that mussel makes are renewed long before; so
//! this is about renewal that does not work, and about CAs, which people have to replace.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use mussel_client::event::EventType;
use mussel_client::{Informer, Recorder};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::pki::inspect::{self, Certificate};

/// Certificates end by the day.
const LOOK_EVERY: Duration = Duration::from_secs(12 * 3600);
const DAY: i64 = 86_400;
/// Leaves are renewed with 120 days left: below this, that has failed for a month.
const LEAF_SECONDS: i64 = 90 * DAY;
/// New CAs have to reach every machine.
const AUTHORITY_SECONDS: i64 = 365 * DAY;

/// Looks at the certificates in a folder at the start and twice a day, until `stop`.
pub async fn watch(
    folder: PathBuf,
    recorder: Recorder,
    node_name: String,
    nodes: Informer<Node>,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => return,
        () = nodes.synced() => {}
    }
    loop {
        for (reason, message) in warnings(&inspect::certificates(&folder)) {
            tracing::warn!("{message}");
            let uid = nodes.get("", &node_name).and_then(|node| node.metadata.uid.clone());
            let about = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(node_name.clone()),
                uid,
                ..ObjectReference::default()
            };
            recorder.event(about, EventType::Warning, reason, message);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// `mussel_certificate_expiration_seconds`: how long each certificate in a folder is good for, looked at when it is asked for.
#[derive(Debug)]
pub struct ExpirationSeconds {
    pub folder: PathBuf,
}

impl Collector for ExpirationSeconds {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut left = BTreeMap::new();
        for certificate in inspect::certificates(&self.folder) {
            // Of two that say the same the one that ends first counts.
            let least: &mut i64 =
                left.entry((certificate.subject, certificate.usages.join(","))).or_insert(certificate.residual_seconds);
            *least = (*least).min(certificate.residual_seconds);
        }
        const HELP: &str = "Remaining lifetime of the certificates of this server";
        let name = "mussel_certificate_expiration_seconds";
        let mut metric = encoder.encode_descriptor(name, HELP, None, MetricType::Gauge)?;
        for ((subject, usage), seconds) in &left {
            let labels = [("subject", subject.as_str()), ("usage", usage.as_str())];
            metric.encode_family(&labels)?.encode_gauge(seconds)?;
        }
        Ok(())
    }
}

/// Reason and text for each certificate that ends soon.
fn warnings(certificates: &[Certificate]) -> Vec<(&'static str, String)> {
    let warning = |certificate: &Certificate| {
        let is_authority = certificate.usages.iter().any(|usage| usage == "CertSign");
        let (least, reason) = match is_authority {
            true => (AUTHORITY_SECONDS, "CACertificateExpirationWarning"),
            false => (LEAF_SECONDS, "CertificateExpirationWarning"),
        };
        (certificate.residual_seconds < least).then(|| {
            let file = certificate.file.file_name().map(Path::new).unwrap_or(&certificate.file).display();
            let (subject, expires) = (&certificate.subject, &certificate.expires);
            let when = if certificate.residual_seconds < 0 { "has expired" } else { "expires" };
            (reason, format!("certificate {file} ({subject}) {when}: {expires}"))
        })
    };
    certificates.iter().filter_map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::inspect::Status;

    #[test]
    fn lifetimes_are_measured() {
        let dir = tempfile::tempdir().unwrap();
        crate::pki::Pki::ensure(dir.path()).unwrap();
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(ExpirationSeconds { folder: dir.path().to_owned() }));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("usage=\"CertSign\"")).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines.iter().all(|line| line.starts_with("mussel_certificate_expiration_seconds{subject=\"CN=")),
            "{text}"
        );
        let seconds: i64 = lines[0].rsplit(' ').next().unwrap().parse().unwrap();
        assert!(seconds > 9 * 365 * DAY, "{text}");
    }

    #[test]
    fn what_ends_soon_is_told() {
        let certificate = |file: &str, usage: &str, days: i64| Certificate {
            file: Path::new("/tls").join(file),
            subject: "CN=x".to_owned(),
            usages: vec![usage.to_owned()],
            expires: "2027-01-01T00:00:00Z".to_owned(),
            residual_seconds: days * DAY,
            status: Status::Ok,
        };
        let all = [
            certificate("good.crt", "ClientAuth", 100),
            certificate("late.crt", "ServerAuth", 89),
            certificate("dead.crt", "ClientAuth", -1),
            certificate("ca.crt", "CertSign", 364),
            certificate("new-ca.crt", "CertSign", 366),
        ];
        let told: Vec<String> = warnings(&all).into_iter().map(|(reason, text)| format!("{reason}: {text}")).collect();
        assert_eq!(
            told,
            [
                "CertificateExpirationWarning: certificate late.crt (CN=x) expires: 2027-01-01T00:00:00Z",
                "CertificateExpirationWarning: certificate dead.crt (CN=x) has expired: 2027-01-01T00:00:00Z",
                "CACertificateExpirationWarning: certificate ca.crt (CN=x) expires: 2027-01-01T00:00:00Z",
            ]
        );
    }
}
