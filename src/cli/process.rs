//! What server and agent have in common as processes.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

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

/// A secret that is given as text or as the content of a file.
pub fn secret(text: Option<&str>, file: Option<&Path>) -> anyhow::Result<Option<String>> {
    match (text, file) {
        (Some(text), _) => Ok(Some(text.to_owned())),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            Ok(Some(text))
        }
        (None, None) => Ok(None),
    }
}
