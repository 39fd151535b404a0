//! A machine's side of joining a cluster.
//!
//! [`request`] speaks to a server, [`Identity`] is what a node keeps on disk, and [`AgentJoin`] and [`ServerJoin`] go through the steps: the
//! CA is verified before anything is sent, and nothing is written before the cluster has let the machine in.

mod agent;
mod identity;
pub(crate) mod request;
mod server;
pub(crate) mod steps;

pub use agent::{AgentJoin, Joined};
pub use identity::{Identity, IdentityError, ensure_id, ensure_password};
pub use server::{ServerJoin, ServerJoinError};
pub use steps::{JoinError, Reasons};
