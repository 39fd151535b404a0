//! Takes snapshots when they are due, and deletes those that are too many.

use std::time::Duration;

use anyhow::Context;
use jiff::Zoned;
use mussel_api::schedule::Schedule;
use mussel_store::Store;
use tokio_util::sync::CancellationToken;

use super::Snapshots;
use crate::cli::args::BackupArgs;
use crate::cli::parts::chain;

/// Sleeping longer would miss that the clock was set; a snapshot is then late by this much at most.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

pub struct Scheduled {
    schedule: Schedule,
    base: String,
    retention: usize,
}

/// What the flags ask for; `None` when snapshots are only taken by hand.
pub fn settle(args: &BackupArgs) -> anyhow::Result<Option<Scheduled>> {
    let schedule = Schedule::parse(&args.etcd_snapshot_schedule_cron).context("--etcd-snapshot-schedule-cron")?;
    let (base, retention) = (args.etcd_snapshot_name.clone(), args.etcd_snapshot_retention);
    Ok((!args.etcd_disable_snapshots).then_some(Scheduled { schedule, base, retention }))
}

pub async fn run(snapshots: Snapshots, scheduled: Scheduled, store: Store, stop: CancellationToken) {
    let mut after = Zoned::now();
    loop {
        let Some(due) = scheduled.schedule.next_after(&after) else {
            tracing::warn!("the snapshot schedule is never due");
            return stop.cancelled().await;
        };
        loop {
            let wait = Duration::try_from(due.timestamp().duration_since(jiff::Timestamp::now())).unwrap_or_default();
            if wait.is_zero() {
                break;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait.min(SLEEP_MAX)) => {}
            }
        }
        // Outside of any `select!`: what was begun is ended, and stopping takes no longer than one snapshot.
        if let Err(error) = snapshots.save(&store, &scheduled.base).await {
            tracing::error!(error = chain(&error), "no snapshot was saved");
        } else if let Err(error) = snapshots.prune(&scheduled.base, scheduled.retention) {
            tracing::error!(error = chain(&error), "old snapshots were not deleted");
        }
        // Those that were due while the machine slept are one.
        after = Zoned::now().max(due);
    }
}
