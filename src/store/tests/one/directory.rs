//! What a store does with a directory that is not as it should be: it names cause and remedy, and changes nothing.

use std::fs;
use std::path::Path;

use crate::support::noise;
use mussel_store::*;

async fn filled(dir: &Path) {
    let mut config = Config::new(dir);
    config.log_bytes_max = 1;
    let store = Store::open(config).await.unwrap();
    for n in 0..200u32 {
        let puts = vec![(format!("/k/{n}").into(), noise(n.into(), 2000))];
        store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
    }
    // The first checkpoint follows the first commit by itself; the marker tells when it is there.
    let marker = dir.join("identity");
    while fs::read_to_string(&marker).unwrap().contains("checkpointed=0") {
        tokio::task::yield_now().await;
    }
    store.shutdown().await;
}

async fn refusal(dir: &Path) -> OpenError {
    match Store::open(Config::new(dir)).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    let error = refusal(dir.path()).await;
    assert!(matches!(error, OpenError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    let text = error.to_string();
    assert!(text.contains(&dir.path().display().to_string()) && text.contains("process"), "{text}");
    store.shutdown().await;
    Store::open(Config::new(dir.path())).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_database_does_not_come_up_as_a_fresh_one() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let marker = fs::read(dir.path().join("identity")).unwrap();

    fs::rename(dir.path().join("sled"), dir.path().join("away")).unwrap();
    assert!(matches!(refusal(dir.path()).await, OpenError::Lost { .. }));
    assert!(!dir.path().join("sled").exists(), "nothing was made");

    // As after a power cut on a disk that lied: the file is there and empty.
    fs::create_dir(dir.path().join("sled")).unwrap();
    for entry in fs::read_dir(dir.path().join("away")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "db" && entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), dir.path().join("sled").join(entry.file_name())).unwrap();
        }
    }
    fs::write(dir.path().join("sled/db"), b"").unwrap();
    let error = refusal(dir.path()).await;
    assert!(matches!(error, OpenError::Lost { .. } | OpenError::Corrupt { .. }), "{error}");
    assert_eq!(fs::read(dir.path().join("identity")).unwrap(), marker);

    fs::remove_dir_all(dir.path().join("sled")).unwrap();
    fs::rename(dir.path().join("away"), dir.path().join("sled")).unwrap();
    // The same for its log, which has what was acknowledged last.
    fs::rename(dir.path().join("log"), dir.path().join("away")).unwrap();
    assert!(matches!(refusal(dir.path()).await, OpenError::Lost { .. }));
    fs::create_dir(dir.path().join("log")).unwrap();
    assert!(matches!(refusal(dir.path()).await, OpenError::Lost { .. }));
    fs::remove_dir(dir.path().join("log")).unwrap();
    fs::rename(dir.path().join("away"), dir.path().join("log")).unwrap();
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    assert_eq!(store.revision(), Revision(200));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_database_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    Store::open(Config::new(dir.path())).await.unwrap().shutdown().await;
    let copy = |from: &Path, to: &Path| {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    };
    copy(&dir.path().join("sled"), &dir.path().join("old"));
    filled(dir.path()).await;
    fs::remove_dir_all(dir.path().join("sled")).unwrap();
    copy(&dir.path().join("old"), &dir.path().join("sled"));
    let error = refusal(dir.path()).await;
    assert!(matches!(error, OpenError::Lost { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let db = dir.path().join("sled/db");
    let whole = fs::read(&db).unwrap();
    let identity = fs::read(dir.path().join("identity")).unwrap();
    let last_byte = whole.iter().rposition(|byte| *byte != 0).unwrap();
    // Garbage over the whole file, over its first half, and in one place in the middle of what is used.
    let damages = [
        (0, whole.len()),
        (0, last_byte / 2),
        (last_byte / 5, last_byte / 5 + 600),
        (last_byte / 3, last_byte / 3 + 600),
        (last_byte / 2, last_byte / 2 + 600),
        (last_byte * 2 / 3, last_byte * 2 / 3 + 600),
    ];
    for (from, to) in damages {
        let mut damaged = whole.clone();
        damaged[from..to].iter_mut().enumerate().for_each(|(n, byte)| *byte = *byte ^ (n as u8) ^ 0x5a);
        fs::write(&db, &damaged).unwrap();
        // A store that opened and was closed again has written a later end into it.
        fs::write(dir.path().join("identity"), &identity).unwrap();
        match Store::open(Config::new(dir.path())).await {
            // What was damaged is no longer used, then; but nothing may be missing.
            Ok(store) => {
                assert_eq!(store.revision(), Revision(200), "{from}..{to}");
                let snapshot = store.snapshot(Freshness::Linearizable).await.unwrap();
                for n in 0..200u32 {
                    let versioned = snapshot.get(format!("/k/{n}").as_bytes()).unwrap();
                    assert_eq!(versioned.value, noise(n.into(), 2000));
                }
                store.shutdown().await;
                assert!(from > 0);
            }
            Err(error) => {
                assert!(matches!(error, OpenError::Corrupt { .. } | OpenError::Lost { .. }), "{from}..{to}: {error}");
                assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
                // Damage inside a segment cannot be told from a torn end before the engine has read, and written, it.
                if from == 0 {
                    assert!(fs::read(&db).unwrap() == damaged, "{from}..{to}: the file was changed");
                }
            }
        }
    }
    fs::write(&db, &whole).unwrap();
    fs::write(dir.path().join("identity"), &identity).unwrap();
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    assert_eq!(store.revision(), Revision(200));
    store.shutdown().await;

    fs::write(dir.path().join("identity"), "format=2\ncluster=zzz\n").unwrap();
    let error = refusal(dir.path()).await;
    assert!(matches!(&error, OpenError::Corrupt { file, .. } if file.ends_with("identity")), "{error}");
}

/// What a crash leaves: the store's other files, and the log after each of the last commits.
struct Crashed {
    files: Vec<(&'static str, Vec<u8>)>,
    logs: Vec<Vec<u8>>,
}

const LOG: &str = "log/0";

impl Crashed {
    async fn after(commits: u64, dir: &Path) -> Self {
        let store = Store::open(Config::new(dir)).await.unwrap();
        let mut logs = Vec::new();
        for n in 1..=commits {
            let puts = vec![(format!("/k/{}", n % 40).into(), noise(n, 900))];
            store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
            if n > commits - 20 {
                logs.push(fs::read(dir.join(LOG)).unwrap());
            }
        }
        let read = |name| (name, fs::read(dir.join(name)).unwrap());
        let files = vec![read("identity"), read("sled/conf"), read("sled/db")];
        store.shutdown().await;
        Self { files, logs }
    }

    /// Where the log ended before the last `back` commits.
    fn end(&self, back: usize) -> usize {
        let last = self.logs.last().unwrap();
        let before = &self.logs[self.logs.len() - 1 - back];
        let changed = last.iter().zip(before).position(|(last, before)| last != before);
        changed.unwrap_or(before.len())
    }

    /// The revision that a store has which begins with `log`.
    async fn open(&self, dir: &Path, log: &[u8]) -> Result<u64, OpenError> {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir.join("sled/blobs")).unwrap();
        fs::create_dir(dir.join("log")).unwrap();
        for (name, bytes) in &self.files {
            fs::write(dir.join(name), bytes).unwrap();
        }
        fs::write(dir.join(LOG), log).unwrap();
        let store = Store::open(Config::new(dir)).await?;
        let revision = store.revision().0;
        store.shutdown().await;
        Ok(revision)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_after_a_crash_is_told_from_a_torn_end() {
    const COMMITS: u64 = 400;
    let dir = tempfile::tempdir().unwrap();
    let crashed = Crashed::after(COMMITS, &dir.path().join("running")).await;
    let left = dir.path().join("left");
    let whole = crashed.logs.last().unwrap();
    assert_eq!(crashed.open(&left, whole).await.unwrap(), COMMITS);
    // Torn: the last batch is there in part. That it was acknowledged is known only here.
    let last = crashed.end(1);
    for kept in [0, 1, 7, 20, 60, 300, 900] {
        let mut torn = whole.clone();
        torn[last + kept..last + 1500].fill(0);
        let revision = crashed.open(&left, &torn).await.unwrap();
        assert!(revision >= COMMITS - 1, "{kept} bytes are kept of the last batch, {revision} is there");
    }
    // Damaged: something is gone before the last batch.
    let mut found = 0;
    for (back, length) in [(2, 1), (2, 40), (5, 300), (10, 3000), (18, 1)] {
        for fill in [0, 0xff] {
            let mut damaged = whole.clone();
            let from = crashed.end(back) + 30;
            damaged[from..from + length].fill(fill);
            if damaged == *whole {
                continue;
            }
            let error = match crashed.open(&left, &damaged).await {
                Ok(revision) => panic!("{length} bytes, {back} batches back: it opened at {revision}"),
                Err(error) => error,
            };
            assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("at offset"), "{error}");
            assert!(fs::read(left.join(LOG)).unwrap() == damaged, "the file was changed");
            found += 1;
        }
    }
    assert!(found >= 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = refusal(&file.join("store")).await;
    assert!(matches!(error, OpenError::Create { .. }), "{error}");
    assert!(error.to_string().contains("file/store"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_refused_before_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path());
    config.free_bytes_min = u64::MAX / 2;
    let store = Store::open(config).await.unwrap();
    let txn = Txn { puts: vec![("/k".into(), "v".into())], ..Txn::default() };
    let error = store.commit(txn).await.unwrap_err();
    assert!(matches!(error, CommitError::Unwritable(_)), "{error}");
    assert_eq!(store.snapshot(Freshness::Linearizable).await.unwrap().len(), 0);
    store.shutdown().await;
}
