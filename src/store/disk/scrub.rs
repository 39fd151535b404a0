//! Reads everything that is on disk now and then, so that damage is found while there is still a copy elsewhere: in memory,
//! on other members, in a backup.
//!
//! What the engine has in its own cache, some megabytes, it takes from there; the rest comes from the disk.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::disk::thread::Disk;
use crate::metrics::Metrics;

/// One pass reads no faster than this: a fraction of what an SD card gives.
const BYTES_PER_SECOND_MAX: u64 = 1 << 20;

/// The first pass begins `interval` after the start, each other one as long after the last.
pub(crate) async fn run(disk: Disk, metrics: Metrics, interval: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        pass(&disk, &metrics, &stop).await;
    }
}

async fn pass(disk: &Disk, metrics: &Metrics, stop: &CancellationToken) {
    disk.engine().forget_cached();
    let (mut next, mut records, mut damaged) = (Some(Vec::new()), 0, 0);
    while let Some(start) = next {
        let reader = disk.clone();
        let Ok(slice) = tokio::task::spawn_blocking(move || reader.engine().read_slice(&start)).await else { return };
        for error in &slice.damaged {
            tracing::error!(%error, "damage found on disk: take a backup, and replace the disk");
            metrics.scrub_errors.inc();
        }
        records += slice.records;
        damaged += slice.damaged.len();
        next = slice.next;
        let pause = Duration::from_micros(slice.bytes * 1_000_000 / BYTES_PER_SECOND_MAX);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
    metrics.scrubs.inc();
    tracing::debug!(records, damaged, "all records on disk were read");
}
