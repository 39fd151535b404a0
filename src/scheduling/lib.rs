//! The scheduler: chooses a node for every pod that has none.
//!
//! One task owns everything it knows ([`cluster`]) and who is waiting ([`queue`]). [`filter`] says why a node will not do,
//! [`score`] which of the others is best; both are pure. A choice is assumed at once and bound in the background, so that
//! the next pod need not wait for the API.

mod affinity;
mod cluster;
mod filter;
mod preempt;
mod queue;
mod resources;
mod score;
mod task;

use mussel_client::{Informers, LeaderGate};
use tokio_util::sync::CancellationToken;

/// What the scheduler needs.
#[derive(Clone)]
pub struct Context {
    /// Acts as `system:kube-scheduler`.
    pub client: kube::Client,
    pub informers: Informers,
}

/// Schedules whenever this server leads, until `stop`.
pub async fn run(context: Context, gate: LeaderGate, stop: CancellationToken) {
    gate.run_while_leading(stop, |term| task::run(context.clone(), term)).await;
}
