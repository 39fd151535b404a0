//! `mussel server --cluster-reset` and `mussel snapshot restore`: a group that is lost becomes a group of one, with its own
//! state or a snapshot's.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mussel_cluster::bootstrap_data::{self, Restoration};
use mussel_cluster::files;
use mussel_store::backup;

use super::args::ServerArgs;

/// There from a reset until the next ordinary start, so that nobody resets twice by a flag left in a unit file.
const FLAG: &str = "reset-flag";
/// What the flag says when the snapshot came to a machine that had nothing of the cluster.
const SUCCEEDS: &str = "this machine takes the place of another one\n";

/// What cannot be asked for together.
///
/// # Errors
/// With what to leave out.
pub fn check(args: &ServerArgs) -> anyhow::Result<()> {
    let backup = &args.backup;
    if backup.cluster_reset_restore_path.is_some() && !backup.cluster_reset {
        bail!("--cluster-reset-restore-path needs --cluster-reset");
    }
    if backup.cluster_reset && args.server.is_some() {
        bail!("--cluster-reset makes a cluster of this server alone; take --server away, also from the config file");
    }
    Ok(())
}

/// `snapshot` is what the store is to hold then; without one it holds what this server has.
pub async fn run(snapshot: Option<PathBuf>, server_dir: &Path, token: Option<&str>) -> anyhow::Result<()> {
    let db = server_dir.join("db");
    let flag = server_dir.join(FLAG);
    if flag.try_exists().with_context(|| format!("look for {}", flag.display()))? {
        bail!(
            "the cluster was reset already; start without --cluster-reset. To reset it once more before that, delete {}",
            flag.display()
        );
    }
    let restoration = match &snapshot {
        Some(file) => open(file.clone(), token, server_dir).await?,
        None => None,
    };
    files::create_dir(server_dir, 0o700)?;
    if let Some(restoration) = &restoration {
        restoration.write(server_dir).context("write the snapshot's CAs and keys")?;
    }
    let from = snapshot.clone();
    let founded = tokio::task::spawn_blocking(move || match from {
        Some(file) => backup::restore(&file, &db),
        None => backup::reset(&db),
    })
    .await
    .context("reset the store")??;
    let succeeds = restoration.is_some_and(|restoration| restoration.is_new);
    let says = if succeeds { SUCCEEDS } else { "" };
    files::write(&flag, says.as_bytes(), 0o600).with_context(|| format!("write {}", flag.display()))?;
    match &snapshot {
        Some(file) => {
            tracing::info!(file = %file.display(), keys = founded.keys, cas_and_keys = succeeds, "restored");
        }
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

/// Looks for CAs and keys in the snapshot. Nothing is written.
async fn open(file: PathBuf, token: Option<&str>, server_dir: &Path) -> anyhow::Result<Option<Restoration>> {
    let (token, server_dir) = (token.map(str::to_owned), server_dir.to_owned());
    let opened = tokio::task::spawn_blocking(move || -> anyhow::Result<Option<Restoration>> {
        let sealed = backup::find(&file, bootstrap_data::KEY)?;
        Ok(bootstrap_data::open(sealed.as_deref(), token.as_deref(), &server_dir)?)
    });
    opened.await.context("read the snapshot")?
}

/// Whether this server takes the place of another machine since a reset.
pub fn succeeds(server_dir: &Path) -> anyhow::Result<bool> {
    Ok(files::read(&server_dir.join(FLAG))?.as_deref() == Some(SUCCEEDS))
}

/// The server has started as usual.
pub fn done(server_dir: &Path) -> anyhow::Result<()> {
    Ok(files::remove(&server_dir.join(FLAG))?)
}
