//! Reads everything that is on disk now and then, so that damage is found while there is still a copy elsewhere: in memory,
//! on other members, in a backup.
//!
//! What the engine has in its own cache, some megabytes, it takes from there; the rest comes from the disk. So does the log.

use std::io;
use std::ops::ControlFlow;
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
    disk.journal().forget_cached();
    let (mut records, mut damaged) = (0, 0);
    let mut damage = |error: io::Error| {
        tracing::error!(%error, "damage found on disk: take a backup, and replace the disk");
        metrics.scrub_errors.inc();
        damaged += 1;
    };
    let pause = async |bytes: u64| {
        tokio::select! {
            biased;
            () = stop.cancelled() => ControlFlow::Break(()),
            () = tokio::time::sleep(Duration::from_micros(bytes * 1_000_000 / BYTES_PER_SECOND_MAX)) => {
                ControlFlow::Continue(())
            }
        }
    };
    for nth in 0.. {
        let reader = disk.clone();
        let Ok(segment) = tokio::task::spawn_blocking(move || reader.journal().check(nth)).await else { return };
        let bytes = match segment {
            None => break,
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) => {
                damage(error);
                continue;
            }
        };
        if pause(bytes).await.is_break() {
            return;
        }
    }
    let mut next = Some(Vec::new());
    while let Some(start) = next {
        let reader = disk.clone();
        let Ok(slice) = tokio::task::spawn_blocking(move || reader.engine().read_slice(&start)).await else { return };
        slice.damaged.into_iter().for_each(&mut damage);
        records += slice.records;
        next = slice.next;
        if pause(slice.bytes).await.is_break() {
            return;
        }
    }
    metrics.scrubs.inc();
    tracing::debug!(records, damaged, "all records on disk were read");
}
