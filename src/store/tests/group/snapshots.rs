//! Members that are too far behind for the log.

use std::time::Duration;

use mussel_store::*;

use crate::lab::{Lab, eventually, put, soon};

fn small_log(_: usize, mut config: Config) -> Config {
    config.checkpoint_interval = Duration::from_millis(50);
    config.log_entries_kept = 20;
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_far_behind_gets_a_snapshot_while_writes_go_on() {
    let mut lab = Lab::adjusted(3, small_log).await;
    let behind = lab.follower().await;
    lab.store(behind).commit(put("/gone", "x")).await.unwrap();
    lab.crash(behind).await;
    let writer = lab.running().next().unwrap();
    let store = lab.store(writer).clone();
    store.commit(Txn { deletes: vec!["/gone".into()], ..Txn::default() }).await.unwrap();
    // More entries than are kept, and more than one part of a snapshot.
    let writing = |store: Store, from: usize, to: usize| {
        tokio::spawn(async move {
            let mut commits = futures::stream::FuturesUnordered::new();
            for n in from..to {
                let store = store.clone();
                commits.push(async move {
                    store.commit(put(&format!("/k/{:04}", n % 1500), vec![n as u8; 400])).await.unwrap()
                });
                if commits.len() >= 32 {
                    futures::StreamExt::next(&mut commits).await;
                }
            }
            while futures::StreamExt::next(&mut commits).await.is_some() {}
        })
    };
    soon("the first writes", writing(store.clone(), 0, 3000)).await.unwrap();
    eventually("the log is cut", async || {
        let status = store.status().await;
        (status.purged_index > 60).then_some(())
    })
    .await;
    let going_on = writing(store.clone(), 3000, 5000);
    lab.start(behind).await;
    let sent =
        |lab: &Lab| -> u64 { lab.running().map(|host| lab.store(host).metrics().snapshot_sent_bytes.get()).sum() };
    eventually("it has caught up", async || {
        (lab.store(behind).revision() >= store.revision() && sent(&lab) > 0).then_some(())
    })
    .await;
    soon("the last writes", going_on).await.unwrap();
    lab.agree().await;
    assert!(sent(&lab) > 1500 * 400);

    // What was installed is what is on disk.
    let status = lab.store(behind).status().await;
    lab.crash(behind).await;
    lab.start(behind).await;
    eventually("it is back", async || (lab.store(behind).revision() == status.revision).then_some(())).await;
    assert_eq!(lab.store(behind).status().await.digest, status.digest);
    lab.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_across_an_installed_snapshot_ends_and_says_so() {
    let mut lab = Lab::adjusted(3, small_log).await;
    let behind = lab.follower().await;
    let mut watch = lab.store(behind).watch("/".into(), Revision(0)).unwrap();
    lab.net.cut(&lab.hosts[behind].address);
    // What was on its way is lost, too.
    lab.net.end_connections(&lab.hosts[behind].address);
    let writer = lab.running().find(|host| *host != behind).unwrap();
    let store = lab.store(writer).clone();
    for n in 0..200 {
        store.commit(put("/k", format!("{n}"))).await.unwrap();
    }
    eventually("the log is cut", async || (store.status().await.purged_index > 100).then_some(())).await;
    lab.net.mend(&lab.hosts[behind].address);
    let error = soon("it ends", async {
        let mut last = Revision(0);
        loop {
            match watch.next().await {
                Ok(commit) => {
                    assert_eq!(commit.revision, Revision(last.0 + 1));
                    last = commit.revision;
                }
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(matches!(error, WatchError::TooSlow), "{error}");
    lab.agree().await;
    lab.stop(behind).await;
}
