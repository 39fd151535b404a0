//! Disks that fail: writes are refused with the cause, reads go on, nothing acknowledged is lost, and the store goes on by
//! itself when the disk does. Needs root.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Mounted, noise, run};
use mussel_store::*;

const KEYS: u64 = 40;

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    // No reserve: the engine is to meet what the batcher would keep it from.
    config.free_bytes_min = 0;
    config.checkpoint_interval = Duration::from_millis(20);
    config
}

fn put(n: u64) -> Txn {
    let puts = vec![(format!("/k/{}", n % KEYS).into(), noise(n, 60_000))];
    Txn { puts, ..Txn::default() }
}

/// Every key has what was acknowledged last, or what came after it and has no answer.
async fn check(store: &Store, acknowledged: u64, asked: u64) {
    let snapshot = store.snapshot(Freshness::Local).await.unwrap();
    for n in acknowledged.saturating_sub(KEYS - 1).max(1)..=acknowledged {
        let versioned = snapshot.get(format!("/k/{}", n % KEYS).as_bytes()).unwrap();
        let found = u64::from_le_bytes(versioned.value[..8].try_into().unwrap());
        assert!(found == n || found > acknowledged && found <= asked, "{n}: {found}, {acknowledged} was acknowledged");
    }
}

/// Fills the file system until nothing more fits.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 20, 64 << 10, 4 << 10] {
        let piece = vec![1; size];
        while file.write_all(&piece).is_ok() {}
        let _ = file.sync_data();
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Writes until the store says that it cannot. Returns what was acknowledged, and what was asked for.
async fn write_until_refused(store: &Store, mut n: u64) -> (u64, u64) {
    let start = Instant::now();
    let mut acknowledged = n;
    loop {
        n += 1;
        match store.commit(put(n)).await {
            Ok(_) => acknowledged = n,
            Err(CommitError::Unwritable(cause)) => {
                assert!(!cause.to_string().is_empty());
                return (acknowledged, n);
            }
            // Was in flight when the disk failed.
            Err(CommitError::Unknown) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(start.elapsed() < Duration::from_secs(60), "nothing was refused within a minute");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_survived_and_the_store_goes_on_when_there_is_room() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_string();
    let Some(_mounted) = Mounted::ext4(&path("image"), "96M", &path("mnt")) else { return };
    let dir = Path::new(&path("mnt")).join("store");
    let filler = Path::new(&path("mnt")).join("filler");
    let config = |dir: &Path| Config { checkpoint_interval: Duration::from_secs(4), ..config(dir) };
    let store = Store::open(config(&dir)).await.unwrap();
    let mut n = 0;
    let mut failed = false;
    for round in 0..2 {
        // At once, so that no checkpoint has them before the disk is full.
        let puts = (n + 1..=n + KEYS).flat_map(|n| put(n).puts).collect();
        n += KEYS;
        store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
        fill(&filler);
        // Room for small writes, and less than the checkpoint needs that follows them.
        let filled = filler.metadata().unwrap().len();
        File::options().write(true).open(&filler).unwrap().set_len(filled - (300 << 10)).unwrap();
        let start = Instant::now();
        for small in 0u64.. {
            let puts = vec![("/small".into(), small.to_string().into())];
            match store.commit(Txn { puts, ..Txn::default() }).await {
                Ok(_) | Err(CommitError::Unknown) => {}
                Err(CommitError::Unwritable(cause)) => {
                    assert_eq!(cause.kind(), std::io::ErrorKind::StorageFull, "{cause}");
                    break;
                }
                Err(error) => panic!("{error}"),
            }
            // Space that the engine had freed for itself may be enough.
            if round > 0 && start.elapsed() > Duration::from_secs(10) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "nothing was refused within a minute");
        }
        failed |= store.failed().is_some();
        check(&store, n, n).await;
        assert!(store.snapshot(Freshness::Linearizable).await.is_ok(), "round {round}");

        fs::remove_file(&filler).unwrap();
        until("the store writes again", || store.failed().is_none()).await;
        n += 1;
        store.commit(put(n)).await.unwrap();
        check(&store, n, n).await;
    }
    assert!(failed, "the engine never met the full disk");
    let revision = store.revision();
    store.shutdown().await;
    let store = Store::open(config(&dir)).await.unwrap();
    assert_eq!(store.revision(), revision);
    check(&store, n, n).await;
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_with_io_errors_loses_nothing_that_was_acknowledged() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_string();
    // The disk is a file with holes on a file system that is full: what needs a new block there is an I/O error here.
    let Some(_tmpfs) = Mounted::new(&["-t", "tmpfs", "-o", "size=96m", "tmpfs"], &path("under")) else {
        eprintln!("SKIPPED: needs root");
        return;
    };
    let image = format!("{}/image", path("under"));
    let filler = Path::new(&path("under")).join("filler");
    let Some(mounted) = Mounted::ext4(&image, "64M", &path("mnt")) else { return };
    let dir = Path::new(&path("mnt")).join("store");
    let store = Store::open(config(&dir)).await.unwrap();
    for n in 1..=KEYS {
        store.commit(put(n)).await.unwrap();
    }
    fill(&filler);
    let (acknowledged, asked) = write_until_refused(&store, KEYS).await;
    let cause = store.failed();
    check(&store, acknowledged, asked).await;
    fs::remove_file(&filler).unwrap();
    // ext4 may have made itself read-only, and only who mounts can take that back.
    let start = Instant::now();
    store.shutdown().await;
    assert!(start.elapsed() < Duration::from_secs(15), "a failing disk held up the shutdown: {cause:?}");
    drop(mounted);
    run("e2fsck", &["-p", "-f", &image]);
    let mounted = Mounted::new(&["-o", "loop", &image], &path("mnt")).unwrap();
    let store = Store::open(config(&dir)).await.unwrap();
    check(&store, acknowledged, asked).await;
    store.commit(put(asked)).await.unwrap();
    store.shutdown().await;
    drop(mounted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_becomes_read_only_is_survived() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_string();
    let (image, at) = (path("image"), path("mnt"));
    let Some(mounted) = Mounted::ext4(&image, "64M", &at) else { return };
    let dir = Path::new(&at).join("store");
    let store = Store::open(config(&dir)).await.unwrap();
    for n in 1..=KEYS {
        store.commit(put(n)).await.unwrap();
    }
    // What the kernel does by itself when it finds the file system damaged.
    if !run("mount", &["-o", "remount,abort", &at]) {
        eprintln!("SKIPPED: this kernel cannot abort a file system");
        return;
    }
    let (acknowledged, asked) = write_until_refused(&store, KEYS).await;
    check(&store, acknowledged, asked).await;
    assert!(store.snapshot(Freshness::Linearizable).await.is_ok());
    let start = Instant::now();
    store.shutdown().await;
    assert!(start.elapsed() < Duration::from_secs(15), "it held up the shutdown");
    let error = match Store::open(config(&dir)).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    };
    assert!(error.to_string().contains(&dir.display().to_string()), "{error}");
    drop(mounted);
    run("e2fsck", &["-p", "-f", &image]);
    let mounted = Mounted::new(&["-o", "loop", &image], &at).unwrap();
    let store = Store::open(config(&dir)).await.unwrap();
    check(&store, acknowledged, asked).await;
    store.commit(put(asked)).await.unwrap();
    store.shutdown().await;
    drop(mounted);
}
