//! The scheduler: chooses a node for every pod that has none.
//!
//! One task ([`task`]) owns everything it knows ([`cluster`], [`volumes`]) and who is waiting ([`queue`]). [`decide`] picks
//! the node: [`filter`] says why a node will not do, [`score`] which of the others is best, [`preempt`] who would have to
//! go; all of that is pure. A choice is assumed at once and bound in the background ([`bind`]), so that the next pod need
//! not wait for the API.

mod affinity;
mod bind;
mod cluster;
mod decide;
mod filter;
mod preempt;
mod queue;
mod report;
mod resources;
mod score;
mod spread;
mod task;
mod term;
mod volumes;

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
