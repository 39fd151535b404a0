//! What makes machines a cluster: the certificate authorities and what they sign, tokens, how agents and servers join, the
//! agents' balancer and reverse tunnel, kubeconfigs, and the manifests that every cluster starts with.
//!
//! [`front`] stands behind a server's one port. The servers' side of joining is [`supervisor`], the machine's is [`join`];
//! what they say to each other is in [`protocol`].

pub mod addons;
pub mod admin;
pub mod balancer;
pub mod bootstrap;
pub mod bootstrap_data;
pub mod bootstrap_tokens;
pub mod ca_rotation;
pub mod expiry;
pub mod files;
pub mod front;
pub mod join;
pub mod key_vault;
pub mod kubeconfig;
mod next_version;
pub mod node_password;
pub mod peers;
pub mod pki;
pub mod protocol;
pub mod roles;
pub mod servers;
pub mod settings;
pub mod supervisor;
pub mod token;
pub mod token_rotation;
pub mod tunnel;
