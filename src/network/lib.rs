//! The network of a node: pods' interfaces and addresses, host ports, masquerading, and Services.
//!
//! The only crate that changes the host's networking. It touches nothing but its own interfaces, routes and iptables chains
//! (`MUSSEL-*` and kube-proxy's `KUBE-*`), and finds what it made before when it starts again.
//!
//! [`pods`] gives sandboxes their interface, [`peers`] routes to other nodes' pods, [`host`] prepares the machine, [`proxy`]
//! programs Services, [`policy`] keeps from pods what NetworkPolicies do not let through.

pub mod addresses;
pub mod backend;
mod chains;
pub mod cidr;
pub mod cni;
mod ethtool;
pub mod host;
pub mod iptables;
pub mod lent;
mod mac;
mod netlink;
pub mod peers;
pub mod pods;
pub mod policy;
pub mod proxy;
pub mod uplink;
