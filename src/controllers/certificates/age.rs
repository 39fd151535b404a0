//! How long a request stays: one that is decided only until people have seen the result.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{certificate, conditions, has};

// Upstream's.
const DECIDED: Duration = Duration::from_secs(3600);
const UNDECIDED: Duration = Duration::from_secs(24 * 3600);

/// Zero: it is to go.
pub fn left(request: &CertificateSigningRequest, now: Timestamp) -> Duration {
    let since = |time: Timestamp| now.duration_since(time).unsigned_abs();
    let left = |time: Option<Timestamp>, most: Duration| time.map_or(most, |time| most.saturating_sub(since(time)));
    let decided = |kind: &str| {
        let condition = conditions(request).iter().find(|condition| condition.type_ == kind)?;
        condition.last_update_time.as_ref().map(|time| time.0)
    };
    let mut least = UNDECIDED;
    for kind in ["Approved", "Denied", "Failed"] {
        if has(request, kind) {
            // Approved and not signed: its signer may be somebody else, and slow. It has until it would go undecided.
            let waits = kind == "Approved" && certificate(request).is_none();
            least = least.min(left(decided(kind), if waits { UNDECIDED } else { DECIDED }));
        }
    }
    if conditions(request).is_empty() {
        least = left(request.metadata.creation_timestamp.as_ref().map(|time| time.0), UNDECIDED);
    }
    if certificate(request).and_then(ends).is_some_and(|ends| ends <= now) {
        return Duration::ZERO;
    }
    least
}

fn ends(pem: &[u8]) -> Option<Timestamp> {
    let (_, block) = parse_x509_pem(pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&block.contents).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_go_when_they_are_done_with() {
        let at = |hour: i64| Timestamp::from_second(1_700_000_000 + hour * 3600).unwrap();
        let request = |conditions: &[(&str, i64)], certificate: Option<&str>| -> CertificateSigningRequest {
            let conditions: Vec<_> = conditions
                .iter()
                .map(|(kind, hour)| json!({"type": kind, "status": "True", "lastUpdateTime": at(*hour)}))
                .collect();
            serde_json::from_value(json!({"metadata": {"name": "r", "creationTimestamp": at(0)},
                "spec": {"request": "", "signerName": "a.b/c"},
                "status": {"conditions": conditions, "certificate": certificate}}))
            .unwrap()
        };
        let hours = |request: &CertificateSigningRequest, hour| left(request, at(hour)).as_secs() / 3600;
        assert_eq!(hours(&request(&[], None), 3), 21);
        assert_eq!(hours(&request(&[], None), 24), 0);
        assert_eq!(hours(&request(&[("Approved", 2)], None), 3), 23);
        assert_eq!(hours(&request(&[("Approved", 2)], Some("eA==")), 2), 1);
        assert_eq!(hours(&request(&[("Denied", 2)], None), 3), 0);
        assert_eq!(hours(&request(&[("Approved", 2), ("Failed", 3)], None), 3), 1);
    }
}
