//! A power cut, simulated: an ext4 file system on a loop device, the writer frozen, and the backing image copied. What is
//! in the copy is what had reached the block layer. Every acknowledged write has to be there. Needs root.
//! `MUSSEL_STORE_POWER_CUT_ROUNDS` sets how often.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Mounted, noise, run};
use bytes::Bytes;
use mussel_store::*;

const DIR: &str = "MUSSEL_STORE_TEST_POWER_DIR";
const ROUNDS: &str = "MUSSEL_STORE_POWER_CUT_ROUNDS";

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.checkpoint_interval = Duration::from_millis(20);
    config.log_bytes_max = 128 << 10;
    config.free_bytes_min = 1 << 20;
    config
}

/// Now and then a long one.
fn value(n: u64) -> Bytes {
    noise(n, if n % 50 == 7 { 50_000 } else { 600 })
}

/// Not a test by itself: the process that is frozen. Says `ack n` for each acknowledged write.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = Store::open(config(Path::new(&dir))).await.unwrap();
        for n in store.revision().0 + 1.. {
            let puts = vec![(format!("/k/{}", n % 300).into(), value(n))];
            store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
            println!("ack {n}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_string();
    let (image, copy) = (path("image"), path("copy"));
    let mount_point = path("mnt");
    let Some(_mounted) = Mounted::ext4(&image, "96M", &mount_point) else { return };
    let dir = format!("{mount_point}/store");
    let rounds = std::env::var(ROUNDS).map_or(3, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "power_cut::child", "--nocapture"])
            .env(DIR, &dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        let mut seen = 0;
        while seen < 150 + round * 130 % 1700 {
            let line = lines.next().expect("the child ended by itself").unwrap();
            if let Some(n) = line.strip_prefix("ack ") {
                acknowledged = n.parse::<u64>().unwrap();
                seen += 1;
            }
        }
        assert!(run("kill", &["-STOP", &child.id().to_string()]));
        // Not yet read, but said before the power went.
        // The kernel may go on writing by itself, its journal above all. A copy that was overtaken by that is of no moment.
        let of_one_moment = || run("cp", &["--sparse=always", &image, &copy]) && run("cmp", &["-s", &image, &copy]);
        assert!((0..100).any(|_| of_one_moment()), "the image never stands still");
        child.kill().unwrap();
        child.wait().unwrap();

        let at = path("after");
        let after = Mounted::new(&["-o", "loop", &copy], &at).expect("the copy mounts");
        let store = Store::open(config(&Path::new(&at).join("store"))).await.unwrap();
        let revision = store.revision().0;
        assert!(revision >= acknowledged, "round {round}: {acknowledged} was acknowledged, {revision} is there");
        let snapshot = store.snapshot(Freshness::Linearizable).await.unwrap();
        for n in revision.saturating_sub(299).max(1)..=revision {
            let versioned = snapshot.get(format!("/k/{}", n % 300).as_bytes()).unwrap();
            assert_eq!((versioned.revision, &versioned.value), (Revision(n), &value(n)));
        }
        store.shutdown().await;
        drop(after);
    }
}
