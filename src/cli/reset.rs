//! `mussel server --cluster-reset`: a group that is lost becomes a group of one, with its own state or a snapshot's.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mussel_store::backup;

use super::args::BackupArgs;

/// There from a reset until the next ordinary start, so that nobody resets twice by a flag left in a unit file.
const FLAG: &str = "reset-flag";

pub async fn run(args: &BackupArgs, server_dir: &Path, db: PathBuf) -> anyhow::Result<()> {
    let flag = server_dir.join(FLAG);
    if flag.try_exists().with_context(|| format!("look for {}", flag.display()))? {
        bail!(
            "the cluster was reset already; start without --cluster-reset. To reset it once more before that, delete {}",
            flag.display()
        );
    }
    mussel_cluster::files::create_dir(server_dir, 0o700)?;
    let from = args.cluster_reset_restore_path.clone();
    let founded = tokio::task::spawn_blocking(move || match from {
        Some(file) => backup::restore(&file, &db),
        None => backup::reset(&db),
    })
    .await
    .context("reset the store")??;
    mussel_cluster::files::write(&flag, b"", 0o600).with_context(|| format!("write {}", flag.display()))?;
    match &args.cluster_reset_restore_path {
        Some(file) => tracing::info!(file = %file.display(), keys = founded.keys, "restored"),
        None => tracing::warn!(
            keys = founded.keys,
            "reset with what this server has: writes that only other servers had are lost"
        ),
    }
    if let Some(old) = &founded.old {
        tracing::info!(dir = %old.display(), "the store as it was is kept here");
    }
    tracing::info!(
        "this server is a cluster of one now. Start it without --cluster-reset; on every other server remove \
         <data-dir>/server/db before it joins again"
    );
    Ok(())
}

/// The server has started as usual.
pub fn done(server_dir: &Path) -> anyhow::Result<()> {
    let flag = server_dir.join(FLAG);
    match fs::remove_file(&flag) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", flag.display()))
        }
        _ => Ok(()),
    }
}
