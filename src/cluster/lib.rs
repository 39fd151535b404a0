//! What makes machines a cluster: the certificate authorities and what they sign, the token, kubeconfigs, and the
//! manifests that every cluster starts with.
//!
//! Nothing here serves requests; the API server and the kubelet are handed what is made here.

pub mod addons;
pub mod files;
pub mod kubeconfig;
pub mod pki;
pub mod roles;
pub mod token;
