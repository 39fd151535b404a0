//! What server and agent have in common as processes.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{self, Instant};

/// Runs the personality on a runtime that suits a small machine.
pub fn block_on(main: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another TLS provider is installed already");
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("mussel")
        // What waits does not need a thread of its own.
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4))
        .max_blocking_threads(32)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .context("start the async runtime")?
        .block_on(main)
}

/// Resolves when the service manager or a person asks us to end.
pub fn terminated() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// How long a file with a secret is waited for, and how often is looked: something else on the machine writes it, maybe into
/// a folder that is not there yet either, so that there is nothing to be told by. k3s waits as long.
const SECRET_FILE_TIME: Duration = Duration::from_secs(4 * 60);
const SECRET_FILE_LOOK: Duration = Duration::from_secs(2);

/// A secret that is given as text or as the content of a file, which may come a little later.
pub async fn secret(text: Option<&str>, file: Option<&Path>) -> anyhow::Result<Option<String>> {
    match (text, file) {
        (Some(text), _) => Ok(Some(text.to_owned())),
        (None, Some(path)) => {
            let read = || std::fs::read_to_string(path);
            let mut text = read();
            let deadline = Instant::now() + SECRET_FILE_TIME;
            if is_missing(&text) {
                tracing::info!(file = %path.display(), "waiting for the file");
            }
            while is_missing(&text) && Instant::now() < deadline {
                time::sleep(SECRET_FILE_LOOK).await;
                text = read();
            }
            Ok(Some(text.with_context(|| format!("read {}", path.display()))?))
        }
        (None, None) => Ok(None),
    }
}

fn is_missing(text: &io::Result<String>) -> bool {
    matches!(text, Err(error) if error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_that_comes_later_is_waited_for_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("later/token");
        let write = async {
            time::sleep(Duration::from_secs(100)).await;
            std::fs::create_dir(dir.path().join("later")).unwrap();
            std::fs::write(&path, "s3cret").unwrap();
        };
        let (secret, ()) = tokio::join!(secret(None, Some(&path)), write);
        assert_eq!(secret.unwrap().unwrap(), "s3cret");
        let error = super::secret(None, Some(&dir.path().join("never"))).await.unwrap_err();
        assert!(error.to_string().contains("never"));
    }
}
