//! Upstream's built-in signers: what each accepts, and which authority signs for it.
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers>

use std::collections::BTreeSet;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// Whose key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// The API server takes its clients' names from it.
    Client,
    /// Clients know servers by it.
    Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    ApiClient,
    KubeletClient,
    KubeletServing,
}

/// What a request says of who asks.
#[derive(Debug, Default)]
pub struct Identity {
    pub der: Vec<u8>,
    pub common_name: Option<String>,
    pub organizations: Vec<String>,
    has_dns: bool,
    has_email: bool,
    has_ip: bool,
    has_uri: bool,
}

impl Identity {
    /// # Errors
    /// Why `pem` is no request.
    pub fn read(pem: &[u8]) -> Result<Self, String> {
        let (_, block) = parse_x509_pem(pem).map_err(|_| "the request is no PEM".to_owned())?;
        let (_, request) = X509CertificationRequest::from_der(&block.contents)
            .map_err(|error| format!("the request does not parse: {error}"))?;
        let subject = &request.certification_request_info.subject;
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
        let mut identity = Self {
            common_name: subject.iter_common_name().next().and_then(text),
            organizations: subject.iter_organization().filter_map(text).collect(),
            ..Self::default()
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(_) => identity.has_dns = true,
                    GeneralName::RFC822Name(_) => identity.has_email = true,
                    GeneralName::IPAddress(_) => identity.has_ip = true,
                    GeneralName::URI(_) => identity.has_uri = true,
                    _ => {}
                }
            }
        }
        identity.der = block.contents.clone();
        Ok(identity)
    }
}

impl Purpose {
    /// Of the signers that are ours.
    pub fn of(signer: &str) -> Option<Self> {
        match signer {
            "kubernetes.io/kube-apiserver-client" => Some(Self::ApiClient),
            KUBELET_CLIENT => Some(Self::KubeletClient),
            "kubernetes.io/kubelet-serving" => Some(Self::KubeletServing),
            _ => None,
        }
    }

    pub fn authority(self) -> Authority {
        match self {
            Self::ApiClient | Self::KubeletClient => Authority::Client,
            Self::KubeletServing => Authority::Server,
        }
    }

    /// # Errors
    /// Why such a request is not signed, in upstream's words.
    pub fn check(self, identity: &Identity, usages: &[String]) -> Result<(), String> {
        match self {
            Self::ApiClient => client_usages(usages),
            Self::KubeletClient => {
                of_node(identity)?;
                let refused = [
                    (identity.has_dns, "DNS subjectAltNames are not allowed"),
                    (identity.has_email, "Email subjectAltNames are not allowed"),
                    (identity.has_ip, "IP subjectAltNames are not allowed"),
                    (identity.has_uri, "URI subjectAltNames are not allowed"),
                ];
                none_of(&refused)?;
                node_usages(usages, "client auth")
            }
            Self::KubeletServing => {
                of_node(identity)?;
                let refused = [
                    (!identity.has_dns && !identity.has_ip, "DNS or IP subjectAltName is required"),
                    (identity.has_email, "Email subjectAltNames are not allowed"),
                    (identity.has_uri, "URI subjectAltNames are not allowed"),
                ];
                none_of(&refused)?;
                node_usages(usages, "server auth")
            }
        }
    }
}

fn none_of(refused: &[(bool, &str)]) -> Result<(), String> {
    refused.iter().find(|(is_so, _)| *is_so).map_or(Ok(()), |(_, why)| Err((*why).to_owned()))
}

fn of_node(identity: &Identity) -> Result<(), String> {
    if identity.organizations != ["system:nodes"] {
        return Err("subject organization is not system:nodes".to_owned());
    }
    match &identity.common_name {
        Some(name) if name.starts_with("system:node:") => Ok(()),
        _ => Err("subject common name does not begin with system:node:".to_owned()),
    }
}

/// Encipherment is for RSA keys, which not everybody has.
fn node_usages(usages: &[String], auth: &str) -> Result<(), String> {
    let given: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let mut full = BTreeSet::from(["digital signature", "key encipherment", auth]);
    let all = full.iter().copied().collect::<Vec<_>>().join(" ");
    if given == full {
        return Ok(());
    }
    full.remove("key encipherment");
    if given == full { Ok(()) } else { Err(format!("usages did not match [{all}]")) }
}

fn client_usages(usages: &[String]) -> Result<(), String> {
    for usage in usages {
        if !matches!(usage.as_str(), "digital signature" | "key encipherment" | "client auth") {
            return Err(format!("invalid usage for client certificate: {usage}"));
        }
    }
    if usages.iter().any(|usage| usage == "client auth") {
        Ok(())
    } else {
        Err("missing required usage for client certificate: client auth".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Identity {
        Identity {
            common_name: Some("system:node:a".to_owned()),
            organizations: vec!["system:nodes".to_owned()],
            ..Identity::default()
        }
    }

    fn check(purpose: Purpose, identity: &Identity, usages: &[&str]) -> String {
        let usages: Vec<_> = usages.iter().map(|usage| (*usage).to_owned()).collect();
        purpose.check(identity, &usages).err().unwrap_or_default()
    }

    #[test]
    fn kubelets_get_what_a_kubelet_needs() {
        use Purpose::*;
        let usages = ["client auth", "digital signature"];
        assert_eq!(check(KubeletClient, &node(), &usages), "");
        assert_eq!(check(KubeletClient, &node(), &["client auth", "key encipherment", "digital signature"]), "");
        assert_eq!(
            check(KubeletClient, &node(), &["client auth"]),
            "usages did not match [client auth digital signature key encipherment]"
        );
        let identity = Identity { has_dns: true, ..node() };
        assert_eq!(check(KubeletClient, &identity, &usages), "DNS subjectAltNames are not allowed");
        let identity = Identity { organizations: vec!["system:nodes".into(), "system:masters".into()], ..node() };
        assert_eq!(check(KubeletClient, &identity, &usages), "subject organization is not system:nodes");
        let identity = Identity { common_name: Some("jane".into()), ..node() };
        assert_eq!(check(KubeletClient, &identity, &usages), "subject common name does not begin with system:node:");

        let usages = ["server auth", "digital signature"];
        assert_eq!(check(KubeletServing, &node(), &usages), "DNS or IP subjectAltName is required");
        assert_eq!(check(KubeletServing, &Identity { has_ip: true, ..node() }, &usages), "");
        let identity = Identity { has_ip: true, has_uri: true, ..node() };
        assert_eq!(check(KubeletServing, &identity, &usages), "URI subjectAltNames are not allowed");
    }

    #[test]
    fn clients_get_no_more_than_a_client_needs() {
        let anybody = Identity::default();
        assert_eq!(check(Purpose::ApiClient, &anybody, &["client auth", "key encipherment"]), "");
        assert_eq!(
            check(Purpose::ApiClient, &anybody, &["client auth", "server auth"]),
            "invalid usage for client certificate: server auth"
        );
        assert_eq!(
            check(Purpose::ApiClient, &anybody, &["digital signature"]),
            "missing required usage for client certificate: client auth"
        );
    }
}
