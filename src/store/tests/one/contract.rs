//! The store through its wall, in one process.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mussel_store::*;

fn put(key: &str, value: impl Into<Bytes>) -> Txn {
    Txn { puts: vec![(Bytes::copy_from_slice(key.as_bytes()), value.into())], ..Txn::default() }
}

fn delete(key: &str) -> Txn {
    Txn { deletes: vec![Bytes::copy_from_slice(key.as_bytes())], ..Txn::default() }
}

async fn open(dir: &tempfile::TempDir) -> Store {
    Store::open(Config::new(dir.path())).await.unwrap()
}

fn value(snapshot: &Snapshot, key: &str) -> Option<(Vec<u8>, u64)> {
    snapshot.get(key.as_bytes()).map(|versioned| (versioned.value.to_vec(), versioned.revision.0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_txn_is_all_or_nothing_and_the_refusal_tells_why() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    assert_eq!(store.revision(), Revision(0));
    assert!(*store.leader().borrow());
    assert_eq!(store.commit(put("/a", "1")).await.unwrap(), Revision(1));
    let mut txn = put("/b", "2");
    txn.preconditions.push(Precondition::At("/a".into(), Revision(1)));
    assert_eq!(store.commit(txn.clone()).await.unwrap(), Revision(2));

    assert_eq!(store.commit(put("/a", "3")).await.unwrap(), Revision(3));
    match store.commit(txn).await {
        Err(CommitError::Refused { index: 0, current: Some(current) }) => {
            assert_eq!((&current.value[..], current.revision), (&b"3"[..], Revision(3)));
        }
        other => panic!("{other:?}"),
    }
    let absent = Txn { preconditions: vec![Precondition::Absent("/a".into())], ..put("/c", "x") };
    assert!(matches!(store.commit(absent).await, Err(CommitError::Refused { index: 0, current: Some(_) })));
    let present = Txn { preconditions: vec![Precondition::Present("/none".into())], ..put("/c", "x") };
    assert!(matches!(store.commit(present).await, Err(CommitError::Refused { index: 0, current: None })));
    assert_eq!(store.commit(delete("/none")).await.unwrap(), Revision(3), "nothing changed");

    let snapshot = store.snapshot(Freshness::Linearizable).await.unwrap();
    assert_eq!(snapshot.revision(), Revision(3));
    assert_eq!(snapshot.len(), 2);
    assert_eq!(value(&snapshot, "/b"), Some((b"2".to_vec(), 2)));
    assert!(matches!(
        store.commit(put("/big", vec![0; 4 << 20])).await,
        Err(CommitError::TooLarge { bytes_max, .. }) if bytes_max == 3 << 20
    ));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let long = vec![7; 1 << 20];
    let mut before = Vec::new();
    for round in 0..4u64 {
        let mut config = Config::new(dir.path());
        // Some rounds end with all in the log, some with most in the state tree.
        config.checkpoint_interval = if round % 2 == 0 { Duration::from_secs(600) } else { Duration::from_millis(1) };
        let store = Store::open(config).await.unwrap();
        let snapshot = store.snapshot(Freshness::Linearizable).await.unwrap();
        let now: Vec<_> = snapshot.range(b"", b"").map(|(k, v)| (k.clone(), v.clone())).collect();
        assert_eq!(now, before, "round {round}");
        for n in 0..50 {
            store.commit(put(&format!("/k/{}", n % 7), format!("{round}-{n}"))).await.unwrap();
        }
        store.commit(put(&format!("/long/{}", round % 2), long.clone())).await.unwrap();
        store.commit(delete("/k/3")).await.unwrap();
        assert_eq!(store.revision(), Revision((round + 1) * 52));
        let snapshot = store.snapshot(Freshness::Local).await.unwrap();
        before = snapshot.range(b"", b"").map(|(k, v)| (k.clone(), v.clone())).collect();
        store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_from_before_a_restart_go_on_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = || Config { log_bytes_max: 64 << 10, ..Config::new(dir.path()) };
    let store = Store::open(config()).await.unwrap();
    for n in 1..=1000u64 {
        store.commit(put(&format!("/k/{}", n % 10), format!("{n:0>1000}"))).await.unwrap();
    }
    store.shutdown().await;

    let store = Store::open(config()).await.unwrap();
    // As much as fits into the log between two checkpoints is always there.
    let mut watch = store.watch("/k/".into(), Revision(940)).unwrap();
    store.commit(put("/k/x", "after")).await.unwrap();
    for n in 941..=1000u64 {
        let commit = watch.next().await.unwrap();
        let [event] = &commit.events[..] else { panic!("{commit:?}") };
        assert_eq!(commit.revision, Revision(n));
        assert_eq!(event.value.as_deref(), Some(format!("{n:0>1000}").as_bytes()));
        let previous = event.previous.as_ref().unwrap();
        assert_eq!(
            (previous.revision, &previous.value[..]),
            (Revision(n - 10), format!("{:0>1000}", n - 10).as_bytes())
        );
    }
    assert_eq!(watch.next().await.unwrap().revision, Revision(1001));
    assert_eq!(value(&store.snapshot_at(Revision(950)).unwrap(), "/k/0").unwrap().1, 950);
    // And not more than the log holds at most.
    assert!(matches!(store.watch("/k/".into(), Revision(500)), Err(WatchError::Compacted { .. })));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_disk_is_read_now_and_then() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { scrub_interval: Duration::from_millis(10), ..Config::new(dir.path()) };
    let store = Store::open(config).await.unwrap();
    store.commit(put("/a", vec![1; 20_000])).await.unwrap();
    let start = Instant::now();
    while store.metrics().scrubs.get() < 2 {
        assert!(start.elapsed() < Duration::from_secs(30), "no pass within half a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(store.metrics().scrub_errors.get(), 0);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_has_every_commit_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    for n in 0..10 {
        store.commit(put(&format!("/a/{}", n % 3), format!("{n}"))).await.unwrap();
        store.commit(put(&format!("/b/{n}"), "x")).await.unwrap();
    }
    let mut all = store.watch("".into(), Revision(0)).unwrap();
    let mut a = store.watch("/a/".into(), Revision(7)).unwrap();
    let mut later = store.watch("/a/".into(), Revision(25)).unwrap();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..25 {
                    store.commit(put(&format!("/a/w{writer}"), format!("{n}"))).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    for revision in 1..=120 {
        let commit = all.next().await.unwrap();
        assert_eq!(commit.revision, Revision(revision));
        assert_eq!(commit.events.len(), 1);
    }
    assert_eq!(all.progress(), Revision(120));
    // 9, 11, .., 19 from before, then everything.
    let expected = (9..20).step_by(2).chain(21..=120);
    for revision in expected {
        let commit = a.next().await.unwrap();
        assert_eq!(commit.revision, Revision(revision));
        assert!(commit.events[0].key.starts_with(b"/a/"));
        let first_of_its_key = revision > 20 && commit.events[0].value.as_deref() == Some(b"0");
        assert_eq!(commit.events[0].previous.is_some(), !first_of_its_key);
    }
    assert_eq!(later.next().await.unwrap().revision, Revision(26));
    assert!(later.progress() < Revision(120), "not all was returned yet");
    assert_eq!(store.metrics().watchers.get(), 3);
    drop(a);
    assert_eq!(store.metrics().watchers.get(), 2);

    // A watch of something else makes progress without events.
    let other = store.watch("/none/".into(), Revision(120)).unwrap();
    store.commit(put("/a/x", "y")).await.unwrap();
    assert_eq!(other.progress(), Revision(121));
    store.clone().shutdown().await;
    assert_eq!(all.next().await.unwrap().revision, Revision(121));
    assert!(matches!(all.next().await, Err(WatchError::Stopped)));
    assert!(matches!(store.commit(put("/z", "z")).await, Err(CommitError::Stopped)));
    assert!(matches!(store.snapshot(Freshness::Linearizable).await, Err(ReadError::Stopped)));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hears_of_a_commit_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let mut watch = store.watch("/a/".into(), Revision(0)).unwrap();
    let reader = tokio::spawn({
        let store = store.clone();
        async move {
            for _ in 0..500 {
                let commit = watch.next().await.unwrap();
                let snapshot = store.snapshot(Freshness::Linearizable).await.unwrap();
                assert!(snapshot.revision() >= commit.revision, "the read is older than what was heard");
            }
        }
    });
    for n in 0..500 {
        store.commit(put(&format!("/a/{n}"), "x")).await.unwrap();
    }
    reader.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_txn_is_one_commit_and_each_watcher_sees_its_part() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let mut a = store.watch("/a/".into(), Revision(0)).unwrap();
    let mut all = store.watch("/".into(), Revision(0)).unwrap();
    store.commit(put("/b/1", "old")).await.unwrap();
    let txn = Txn {
        puts: vec![("/a/1".into(), "1".into()), ("/a/2".into(), "2".into())],
        deletes: vec!["/b/1".into(), "/b/none".into()],
        ..Txn::default()
    };
    store.commit(txn).await.unwrap();
    let commit = a.next().await.unwrap();
    assert_eq!(commit.events.len(), 2);
    all.next().await.unwrap();
    let commit = all.next().await.unwrap();
    assert_eq!((commit.revision, commit.events.len()), (Revision(2), 3));
    let deleted = &commit.events[2];
    assert_eq!((&deleted.key[..], &deleted.value), (&b"/b/1"[..], &None));
    assert_eq!(deleted.previous.as_ref().unwrap().value, "old");
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_is_cut_off_and_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path());
    config.watch_commits_max = 4;
    let store = Store::open(config).await.unwrap();
    let mut slow = store.watch("/".into(), Revision(0)).unwrap();
    let mut fast = store.watch("/".into(), Revision(0)).unwrap();
    for n in 1..=10 {
        store.commit(put("/k", format!("{n}"))).await.unwrap();
        assert_eq!(fast.next().await.unwrap().revision, Revision(n));
    }
    for n in 1..=4 {
        assert_eq!(slow.next().await.unwrap().revision, Revision(n));
    }
    assert_eq!(slow.progress(), Revision(4));
    assert!(matches!(slow.next().await, Err(WatchError::TooSlow)));
    assert_eq!(store.metrics().watchers.get(), 1);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_bounded_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path());
    config.history_revisions_max = 10;
    let store = Store::open(config).await.unwrap();
    for n in 1..=30 {
        store.commit(put(&format!("/k/{}", n % 5), format!("{n}"))).await.unwrap();
    }
    assert!(matches!(
        store.watch("/".into(), Revision(19)),
        Err(WatchError::Compacted { requested: Revision(19), oldest: Revision(20) })
    ));
    let mut watch = store.watch("/".into(), Revision(20)).unwrap();
    assert_eq!(watch.next().await.unwrap().revision, Revision(21));
    assert!(matches!(store.snapshot_at(Revision(19)), Err(ReadError::Compacted { .. })));
    assert!(matches!(store.snapshot_at(Revision(31)), Err(ReadError::Future { newest: Revision(30), .. })));
    let past = store.snapshot_at(Revision(22)).unwrap();
    assert_eq!(past.revision(), Revision(22));
    assert_eq!(value(&past, "/k/2"), Some((b"22".to_vec(), 22)));
    assert_eq!(value(&past, "/k/3"), Some((b"18".to_vec(), 18)));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_one_revision_fit_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let puts = (0..100).map(|n| (format!("/p/{n:03}").into(), Bytes::from("old"))).collect();
    let revision = store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
    let mut start = Bytes::from("/p/");
    let mut seen = Vec::new();
    loop {
        let snapshot = store.snapshot_at(revision).unwrap();
        assert_eq!(snapshot.count(b"/p/"), 100);
        let page: Vec<_> = snapshot.range(b"/p/", &start).take(9).map(|(k, v)| (k.clone(), v.clone())).collect();
        let Some((last, _)) = page.last() else { break };
        start = [&last[..], &[0]].concat().into();
        seen.extend(page);
        // What happens between pages is not seen.
        store.commit(put(&format!("/p/{:03}a", seen.len()), "new")).await.unwrap();
        store.commit(delete(&format!("/p/{:03}", (seen.len() + 5) % 100))).await.unwrap();
        store.commit(put("/p/050", "new")).await.unwrap();
    }
    assert_eq!(seen.len(), 100);
    assert!(seen.iter().all(|(_, v)| v.value == "old" && v.revision == revision));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_share_entries_and_waiting_works() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let waiter = {
        let store = store.clone();
        tokio::spawn(async move { store.wait_for(Revision(640)).await })
    };
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut last = Revision(0);
                for n in 0..10 {
                    let revision = store.commit(put(&format!("/w/{writer}"), format!("{n}"))).await.unwrap();
                    assert!(revision > last);
                    last = revision;
                    // What was acknowledged is seen by every read that starts later.
                    let seen = store.snapshot(Freshness::Linearizable).await.unwrap();
                    assert_eq!(value(&seen, &format!("/w/{writer}")).unwrap().1, revision.0);
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    waiter.await.unwrap().unwrap();
    assert_eq!(store.revision(), Revision(640));
    assert_eq!(store.metrics().commits.get(), 640);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_watchers_cost_a_commit_little() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let mut watches: Vec<_> =
        (0..5000).map(|n| store.watch(format!("/pods/ns-{n:05}/").into(), Revision(0)).unwrap()).collect();
    for n in 0..100 {
        store.commit(put(&format!("/pods/ns-{:05}/p", n * 7), "x")).await.unwrap();
    }
    assert_eq!(watches[693].next().await.unwrap().revision, Revision(100));
    assert!(watches[1..7].iter().all(|watch| watch.progress() == Revision(100)));
    drop(watches);
    assert_eq!(store.metrics().watchers.get(), 0);
    store.shutdown().await;
}
