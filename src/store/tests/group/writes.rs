//! Writes and reads on any member, and what happens to them when the leader is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mussel_store::*;

use crate::lab::{Lab, eventually, get, put, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_takes_writes_and_reads_what_another_wrote() {
    let lab = Lab::with(3).await;
    for n in 0..30usize {
        let revision = lab.store(n % 3).commit(put("/k", format!("{n}"))).await.unwrap();
        assert_eq!(revision, Revision(n as u64 + 1));
        let seen = get(lab.store((n + 1) % 3), "/k", Freshness::Linearizable).await.unwrap();
        assert_eq!(seen, format!("{n}"));
    }
    let mut txn = put("/k", "no");
    txn.preconditions.push(Precondition::At("/k".into(), Revision(3)));
    for host in 0..3 {
        match lab.store(host).commit(txn.clone()).await {
            Err(CommitError::Refused { index: 0, current: Some(current) }) => assert_eq!(current.value, "29"),
            other => panic!("{other:?}"),
        }
    }
    lab.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_on_followers_have_every_commit_once_and_in_order() {
    let lab = Lab::with(3).await;
    let mut watches: Vec<_> = (0..3).map(|host| lab.store(host).watch("/".into(), Revision(0)).unwrap()).collect();
    for n in 0..60usize {
        lab.store(n % 3).commit(put(&format!("/{}", n % 7), format!("{n}"))).await.unwrap();
    }
    for watch in &mut watches {
        for revision in 1..=60 {
            assert_eq!(soon("an event", watch.next()).await.unwrap().revision, Revision(revision));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_replaced_and_no_write_is_lost_or_doubled() {
    let mut lab = Lab::with(3).await;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let unknown = Arc::new(AtomicU64::new(0));
    let leader = lab.leader().await;
    // Appends to a counter by compare-and-set: a write that is applied twice, or lost, breaks the chain.
    let writers: Vec<_> = lab
        .running()
        .filter(|host| *host != leader)
        .map(|host| {
            let (store, acknowledged, unknown) = (lab.store(host).clone(), acknowledged.clone(), unknown.clone());
            tokio::spawn(async move {
                for n in 1..=200u64 {
                    match store.commit(put(&format!("/count/{host}"), format!("{n}"))).await {
                        Ok(_) => acknowledged.fetch_add(1, Ordering::SeqCst),
                        Err(CommitError::Unknown) => unknown.fetch_add(1, Ordering::SeqCst),
                        Err(error) => panic!("{error:?}"),
                    };
                }
            })
        })
        .collect();
    eventually("some writes", async || (acknowledged.load(Ordering::SeqCst) > 50).then_some(())).await;
    lab.crash(leader).await;
    for writer in writers {
        soon("writers", writer).await.unwrap();
    }
    assert_eq!(unknown.load(Ordering::SeqCst), 0, "followers retry, and find out");
    let other = lab.leader().await;
    assert_ne!(other, leader);
    let snapshot = lab.store(other).snapshot(Freshness::Linearizable).await.unwrap();
    assert_eq!(snapshot.revision(), Revision(400), "each once");
    lab.start(leader).await;
    eventually("the old leader catches up", async || (lab.store(leader).revision() == Revision(400)).then_some(()))
        .await;
    lab.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_acknowledged_and_nothing_old_is_read() {
    let mut lab = Lab::adjusted(3, |_, mut config| {
        config.timing.leader_timeout = Duration::from_secs(3);
        config
    })
    .await;
    lab.store(0).commit(put("/k", "before")).await.unwrap();
    let leader = lab.leader().await;
    let others: Vec<_> = lab.running().filter(|host| *host != leader).collect();
    lab.net.cut(&lab.hosts[leader].address);
    let other = lab.leader_among(&others).await;
    lab.store(other).commit(put("/k", "after")).await.unwrap();

    let old = lab.store(leader).clone();
    let (write, read) = soon("the lone one gives up", async {
        tokio::join!(old.commit(put("/lost", "x")), old.snapshot(Freshness::Linearizable))
    })
    .await;
    assert!(matches!(write, Err(CommitError::Unknown | CommitError::NoLeader)), "{write:?}");
    assert!(matches!(read, Err(ReadError::NoLeader)), "{read:?}");
    assert_eq!(get(&old, "/k", Freshness::Local).await.unwrap(), "before");

    lab.net.mend(&lab.hosts[leader].address);
    eventually("it follows again", async || {
        (old.snapshot(Freshness::Linearizable).await.ok()?.get(b"/k")?.value == "after").then_some(())
    })
    .await;
    lab.agree().await;
    lab.stop(leader).await;
    lab.store(other).commit(put("/k", "two are enough")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_cut_off_unseats_nobody() {
    let lab = Lab::with(3).await;
    let leader = lab.leader().await;
    let follower = lab.follower().await;
    let term = lab.store(leader).status().await.term;
    lab.net.cut(&lab.hosts[follower].address);
    eventually("it notices", async || {
        let store = lab.store(follower);
        let knows_none = store.members().iter().all(|member| !member.leader) && store.status().await.leader.is_none();
        (knows_none && store.metrics().has_leader.get() == 0).then_some(())
    })
    .await;
    for n in 0..20 {
        lab.store(leader).commit(put("/k", format!("{n}"))).await.unwrap();
    }
    lab.net.mend(&lab.hosts[follower].address);
    lab.agree().await;
    assert_eq!(lab.leader().await, leader);
    assert_eq!(lab.store(leader).status().await.term, term, "no election was held");
    eventually("it hears", async || (lab.store(follower).metrics().has_leader.get() == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over() {
    let mut lab = Lab::with(3).await;
    let leader = lab.leader().await;
    let others: Vec<_> = lab.running().filter(|host| *host != leader).collect();
    let store = lab.store(others[0]).clone();
    let term = store.status().await.term;
    let writer = tokio::spawn(async move {
        for n in 0..300 {
            store.commit(put("/k", format!("{n}"))).await.unwrap();
        }
    });
    lab.stop(leader).await;
    soon("writes go on", writer).await.unwrap();
    let next = lab.leader().await;
    assert_eq!(lab.store(next).status().await.term, term + 1, "one term further: handed over, not fought for");

    let back = lab.store(next).transfer_leadership(None).await.unwrap();
    let other = others.into_iter().find(|host| *host != next).unwrap();
    assert_eq!(back, lab.store(other).member_id());
    assert_eq!(lab.leader().await, other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_group_comes_back() {
    let mut lab = Lab::with(3).await;
    for n in 0..50usize {
        lab.store(n % 3).commit(put(&format!("/{n}"), "x")).await.unwrap();
    }
    for host in 0..3 {
        lab.crash(host).await;
    }
    // None can be the last to stop, so that each has to wait for another.
    lab.start(1).await;
    let early = lab.store(1).clone();
    let waiting = tokio::spawn(async move { early.commit(put("/early", "x")).await });
    lab.start(2).await;
    soon("the early one", waiting).await.unwrap().unwrap();
    assert_eq!(lab.store(2).snapshot(Freshness::Linearizable).await.unwrap().len(), 51);
    lab.start(0).await;
    lab.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seven_members_bear_the_loss_of_three_and_not_of_four() {
    let mut lab = Lab::adjusted(7, |_, mut config| {
        config.timing.leader_timeout = Duration::from_secs(5);
        config
    })
    .await;
    lab.store(6).commit(put("/k", "all")).await.unwrap();
    // The leader, and two others.
    let leader = lab.leader().await;
    let others: Vec<_> = lab.running().filter(|host| *host != leader).collect();
    for host in [leader, others[0], others[1]] {
        lab.crash(host).await;
    }
    for host in &others[2..] {
        let written = soon("four are enough", lab.store(*host).commit(put("/k", format!("{host}")))).await;
        written.unwrap();
        let read = get(lab.store(*host), "/k", Freshness::Linearizable).await.unwrap();
        assert_eq!(read, format!("{host}"));
    }
    let revision = lab.store(others[2]).revision();

    lab.crash(others[2]).await;
    for host in &others[3..] {
        let store = lab.store(*host);
        let (write, read) = soon("three give up", async {
            tokio::join!(store.commit(put("/lost", "x")), store.snapshot(Freshness::Linearizable))
        })
        .await;
        assert!(matches!(write, Err(CommitError::Unknown | CommitError::NoLeader)), "{write:?}");
        assert!(matches!(read, Err(ReadError::NoLeader)), "{read:?}");
        assert_eq!(get(store, "/k", Freshness::Local).await.unwrap(), format!("{}", others[5]));
    }

    lab.start(others[2]).await;
    let back = eventually("it is four again", async || lab.store(others[3]).commit(put("/k", "back")).await.ok()).await;
    // What had no answer may have been applied; nothing that had one is missing.
    assert!(back > revision);
    for host in [leader, others[0], others[1]] {
        lab.start(host).await;
    }
    lab.agree().await;
    for host in lab.running() {
        assert_eq!(get(lab.store(host), "/k", Freshness::Local).await.unwrap(), "back");
    }
}
