//! kill -9 in the middle of writes: every acknowledged write is there afterwards, and nothing that was never asked for.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use mussel_store::*;

const DIR: &str = "MUSSEL_STORE_TEST_CRASH_DIR";
const WRITERS: usize = 4;

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    // Checkpoints and purges all the time, so that the kill often meets one.
    config.checkpoint_interval = Duration::from_millis(5);
    config.log_bytes_max = 64 << 10;
    config
}

fn put(writer: usize, n: u64) -> Txn {
    let puts = vec![
        (Bytes::from(format!("/w/{writer}")), Bytes::from(n.to_string())),
        (Bytes::from(format!("/w/{writer}/{}", n % 50)), Bytes::from(vec![n as u8; 700])),
    ];
    Txn { puts, ..Txn::default() }
}

/// Not a test by itself: the process that is killed. Says `writer n` for each acknowledged write.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::open(config(Path::new(&dir))).await.unwrap();
        let snapshot = store.snapshot(Freshness::Linearizable).await.unwrap();
        let writers = (0..WRITERS).map(|writer| {
            let store = store.clone();
            let first = counter(&snapshot, writer) + 1;
            tokio::spawn(async move {
                for n in first.. {
                    store.commit(put(writer, n)).await.unwrap();
                    println!("ack {writer} {n}");
                }
            })
        });
        futures::future::join_all(writers).await;
    });
}

fn counter(snapshot: &Snapshot, writer: usize) -> u64 {
    let value = snapshot.get(format!("/w/{writer}").as_bytes());
    value.map_or(0, |versioned| String::from_utf8(versioned.value.to_vec()).unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = [0u64; WRITERS];
    for round in 0..8u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let kill_after = 150 + round * 97;
        let mut seen = 0;
        while let Some(Ok(line)) = lines.next() {
            // What it had said before it died counts, too.
            if let Some(("ack", rest)) = line.split_once(' ') {
                let (writer, n) = rest.split_once(' ').unwrap();
                acknowledged[writer.parse::<usize>().unwrap()] = n.parse().unwrap();
                seen += 1;
                if seen == kill_after {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(seen >= kill_after, "round {round}: the child ended by itself after {seen} writes");

        let store = Store::open(config(dir.path())).await.unwrap();
        let snapshot = store.snapshot(Freshness::Linearizable).await.unwrap();
        let mut total = 0;
        for (writer, acknowledged) in acknowledged.iter_mut().enumerate() {
            let now = counter(&snapshot, writer);
            assert!(
                now == *acknowledged || now == *acknowledged + 1,
                "round {round}: {now}, {acknowledged} acknowledged"
            );
            for n in now.saturating_sub(49).max(1)..=now {
                let value = snapshot.get(format!("/w/{writer}/{}", n % 50).as_bytes()).unwrap();
                assert_eq!(value.value[0], n as u8, "round {round}");
            }
            *acknowledged = now;
            total += now;
        }
        assert_eq!(snapshot.revision(), Revision(total), "one revision per write, none lost, none twice");
        store.shutdown().await;
    }
}
