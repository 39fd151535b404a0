//! Backups: made while writes go on, whole or refused, and restored in place of a store that is kept.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mussel_store::backup::{self, BackupError};
use mussel_store::*;

fn put(key: &str, value: impl Into<Bytes>) -> Txn {
    Txn { puts: vec![(Bytes::copy_from_slice(key.as_bytes()), value.into())], ..Txn::default() }
}

async fn contents(store: &Store) -> Vec<(Bytes, Versioned)> {
    let snapshot = store.snapshot(Freshness::Linearizable).await.unwrap();
    snapshot.range(b"", b"").map(|(key, versioned)| (key.clone(), versioned.clone())).collect()
}

/// A store with some keys, short and long, and a backup of it.
async fn backed_up(work: &Path) -> (Store, PathBuf) {
    let store = Store::open(Config::new(work.join("db"))).await.unwrap();
    for n in 0..300u32 {
        let length = if n % 100 == 0 { 100_000 } else { 300 };
        store.commit(put(&format!("/k/{n}"), vec![n as u8; length])).await.unwrap();
    }
    let file = work.join("backup");
    let header = store.backup(&file, "node-1", "v1").await.unwrap();
    assert_eq!((header.revision, header.keys, header.node.as_str()), (300, 300, "node-1"));
    assert_eq!(backup::inspect(&file).unwrap(), header);
    (store, file)
}

/// What is there, by name.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_back_what_was_deleted_and_keeps_what_it_replaces() {
    let work = tempfile::tempdir().unwrap();
    let (store, file) = backed_up(work.path()).await;
    let then = contents(&store).await;
    store.commit(Txn { deletes: vec!["/k/7".into()], ..put("/k/later", "x") }).await.unwrap();
    let dir = work.path().join("db");
    // Not under a running store.
    let error = backup::restore(&file, &dir).unwrap_err();
    assert!(error.to_string().contains("in use by process"), "{error}");
    store.shutdown().await;

    let restore = |file: PathBuf, dir: PathBuf| tokio::task::spawn_blocking(move || backup::restore(&file, &dir));
    let founded = restore(file.clone(), dir.clone()).await.unwrap().unwrap();
    assert_eq!(founded.keys, 300);
    let old = founded.old.unwrap();

    let store = Store::open(Config::new(&dir)).await.unwrap();
    assert_eq!(contents(&store).await, then);
    // Whoever knows a revision of before, or of what was lost, has to list again.
    assert_eq!(store.revision(), Revision(1_000_000_300));
    for revision in [300, 301, 5000] {
        assert!(matches!(store.watch("/".into(), Revision(revision)), Err(WatchError::Compacted { .. })));
    }
    assert_eq!(store.commit(put("/k/after", "y")).await.unwrap(), Revision(1_000_000_301));
    store.shutdown().await;
    let store = Store::open(Config::new(&dir)).await.unwrap();
    assert_eq!(contents(&store).await.len(), 301);
    store.shutdown().await;

    // The old one is whole.
    let store = Store::open(Config::new(&old)).await.unwrap();
    assert_eq!(store.revision(), Revision(301));
    store.shutdown().await;

    // And on a machine that has none.
    let founded = restore(file, work.path().join("elsewhere")).await.unwrap().unwrap();
    assert_eq!(founded.old, None);
    let store = Store::open(Config::new(work.path().join("elsewhere"))).await.unwrap();
    assert_eq!(contents(&store).await, then);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_truncated_or_altered_is_refused_before_anything_is_touched() {
    let work = tempfile::tempdir().unwrap();
    let (store, file) = backed_up(work.path()).await;
    store.shutdown().await;
    let whole = fs::read(&file).unwrap();
    let dir = work.path().join("db");
    let before = (names(work.path()), names(&dir));
    let damaged = work.path().join("other");
    fs::write(&damaged, "").unwrap();
    let before = ([before.0, vec!["other".to_string()]].concat(), before.1);
    let check = |bytes: &[u8], what: &str| {
        fs::write(&damaged, bytes).unwrap();
        let error = backup::restore(&damaged, &dir).unwrap_err();
        let text = error.to_string();
        let named = ["is damaged", "is not a backup", "has format"].iter().any(|known| text.contains(known));
        assert!(named && text.contains(damaged.to_str().unwrap()), "{what}: {text}");
        assert!(backup::inspect(&damaged).is_err(), "{what}");
        let mut now = (names(work.path()), names(&dir));
        now.0.sort();
        let mut expected = before.clone();
        expected.0.sort();
        assert_eq!(now, expected, "{what}");
    };
    for length in [0, 7, 15, 40, 60, whole.len() / 2, whole.len() - 33, whole.len() - 32, whole.len() - 1] {
        check(&whole[..length], &format!("cut to {length}"));
    }
    for position in (0..whole.len()).step_by(whole.len() / 97) {
        let mut altered = whole.clone();
        altered[position] ^= 0x10;
        check(&altered, &format!("altered at {position}"));
    }
    check(&[&whole[..], b"more"].concat(), "something added");
    let mut newer = whole.clone();
    newer[8] = 9;
    fs::write(&damaged, &newer).unwrap();
    let error = backup::inspect(&damaged).unwrap_err();
    assert!(matches!(error, BackupError::Format { found: 9, .. }), "{error}");
    let store = Store::open(Config::new(&dir)).await.unwrap();
    assert_eq!(store.revision(), Revision(300));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_of_one_revision_while_writes_go_on() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(work.path().join("db"))).await.unwrap();
    store.commit(put("/a", "0")).await.unwrap();
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 1u64.. {
                let puts = vec![("/a".into(), n.to_string().into()), ("/b".into(), n.to_string().into())];
                if store.commit(Txn { puts, ..Txn::default() }).await.is_err() {
                    return;
                }
            }
        })
    };
    for n in 0..5 {
        let file = work.path().join("backup");
        let before = store.revision();
        let header = store.backup(&file, "node", "v1").await.unwrap();
        assert!(header.revision >= before.0);
        let dir = work.path().join(format!("restored-{n}"));
        let restored = dir.clone();
        tokio::task::spawn_blocking(move || backup::restore(&file, &restored)).await.unwrap().unwrap();
        let copy = Store::open(Config::new(&dir)).await.unwrap();
        let snapshot = copy.snapshot(Freshness::Local).await.unwrap();
        let value = |key: &str| snapshot.get(key.as_bytes()).map(|versioned| versioned.value.clone());
        assert!(header.revision == 1 || value("/a") == value("/b"));
        assert_eq!(value("/a").unwrap(), (header.revision - 1).to_string());
        copy.shutdown().await;
    }
    store.shutdown().await;
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_keeps_everything_and_moves_the_old_store_aside() {
    let work = tempfile::tempdir().unwrap();
    let (store, _) = backed_up(work.path()).await;
    store.commit(put("/k/7", "newest")).await.unwrap();
    let then = contents(&store).await;
    store.shutdown().await;
    let dir = work.path().join("db");
    let at = dir.clone();
    let founded = tokio::task::spawn_blocking(move || backup::reset(&at)).await.unwrap().unwrap();
    assert!(founded.old.unwrap().join("identity").exists());
    let store = Store::open(Config::new(&dir)).await.unwrap();
    assert_eq!(contents(&store).await, then);
    assert_eq!(store.revision(), Revision(1_000_000_301));
    store.shutdown().await;
    let none = work.path().join("none");
    let error = tokio::task::spawn_blocking(move || backup::reset(&none)).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("holds no store"), "{error}");
}
