//! What must hold before anything is started or written.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use tokio::net::TcpListener;

pub fn root() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("must be root; start it with sudo, or as a system service");
    }
    Ok(())
}

/// A machine whose clock stands at its epoch would make certificates that are never valid.
pub fn clock() -> anyhow::Result<()> {
    const YEAR_2020: Duration = Duration::from_secs(1_577_836_800);
    if SystemTime::now() < SystemTime::UNIX_EPOCH + YEAR_2020 {
        bail!("the clock stands before the year 2020; set it (chronyc, timedatectl) and start again");
    }
    Ok(())
}

/// Makes the directory where it is missing and tries to write in it.
pub fn writable(dir: &Path) -> anyhow::Result<()> {
    let remedy =
        || format!("{} is not writable; check its owner and mount, or choose another with --data-dir", dir.display());
    mussel_cluster::files::create_dir(dir, 0o755).with_context(remedy)?;
    let probe = dir.join(".writable");
    let tried = std::fs::File::create(&probe).and_then(|mut file| file.write_all(b"x"));
    let removed = std::fs::remove_file(&probe);
    tried.with_context(remedy)?;
    removed.with_context(remedy)
}

/// `flag` sets the port.
pub async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
            "port {} on {} is taken by another program; stop that, or choose another with {flag}",
            address.port(),
            address.ip()
        ),
        Err(error) => Err(error).with_context(|| format!("listen on {address}; check --bind-address")),
    }
}
