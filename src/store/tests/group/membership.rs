//! Who belongs to the group: joining, leaving, replacing, moving.

use mussel_store::*;

use crate::lab::{Lab, eventually, put, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_grows_to_five_and_is_told_who_is_who() {
    let lab = Lab::with(5).await;
    lab.store(4).commit(put("/k", "v")).await.unwrap();
    lab.agree().await;
    for host in lab.running() {
        let status = eventually("all are heard of", async || {
            let status = lab.store(host).status().await;
            status.members.iter().all(|member| member.reachable == Some(true)).then_some(status)
        })
        .await;
        assert_eq!(status.members.len(), 5);
        assert_eq!(status.cluster, lab.store(0).cluster_id());
        assert_eq!(status.members.iter().filter(|member| member.leader).count(), 1);
        for (index, other) in lab.hosts.iter().enumerate() {
            let member = status.members.iter().find(|member| member.id == other.store().member_id()).unwrap();
            assert_eq!((&member.address, member.name.clone()), (&other.address, format!("node-{index}")));
            assert_eq!(member.role, Role::Voter);
            assert!(member.matched_index.is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_stays_out() {
    let mut lab = Lab::with(3).await;
    let leader = lab.leader().await;
    let gone = lab.follower().await;
    let id = lab.store(gone).member_id();
    // Asked of the one that goes itself.
    lab.store(gone).remove_member(id).await.unwrap();
    soon("it is told", lab.store(gone).removed()).await;
    assert_eq!(lab.store(leader).members().len(), 2);
    assert!(matches!(lab.store(leader).remove_member(id).await, Err(MemberError::Removed(_))));
    assert!(matches!(lab.store(leader).remove_member(77).await, Err(MemberError::NoSuchMember(77))));
    lab.store(leader).commit(put("/k", "v")).await.unwrap();

    let dir = lab.hosts[gone].dir.path().to_path_buf();
    eventually("it is noted", async || {
        std::fs::read_to_string(dir.join("identity")).unwrap().contains("removed").then_some(())
    })
    .await;
    lab.stop(gone).await;
    assert!(matches!(Store::open(lab.config(gone)).await, Err(OpenError::Removed { member, .. }) if member == id));
    // Even if it forgot.
    let identity = std::fs::read_to_string(dir.join("identity")).unwrap();
    std::fs::write(dir.join("identity"), identity.replace("removed", "member")).unwrap();
    match Store::open(lab.config(gone)).await {
        Ok(store) => {
            lab.runs(gone, store);
            soon("it is told again", lab.store(gone).removed()).await;
            lab.stop(gone).await;
        }
        Err(error) => assert!(matches!(error, OpenError::Removed { .. }), "{error}"),
    }

    // Its place is taken by a new one, at the same address.
    lab.hosts[gone].dir = tempfile::tempdir().unwrap();
    lab.join_as(gone).await;
    soon("joining", lab.store(gone).joined()).await.unwrap();
    assert_ne!(lab.store(gone).member_id(), id);
    lab.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_member_is_replaced_by_one_at_its_address() {
    let mut lab = Lab::with(3).await;
    let lost = lab.follower().await;
    let old = lab.store(lost).member_id();
    lab.crash(lost).await;
    lab.hosts[lost].dir = tempfile::tempdir().unwrap();
    lab.join_as(lost).await;
    soon("joining", lab.store(lost).joined()).await.unwrap();
    let members = lab.store(lost).members();
    assert_eq!(members.len(), 3);
    assert!(members.iter().all(|member| member.id != old && member.role == Role::Voter));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_may_remove_itself() {
    let lab = Lab::with(3).await;
    let leader = lab.leader().await;
    lab.store(leader).remove_member(lab.store(leader).member_id()).await.unwrap();
    let others: Vec<_> = lab.running().filter(|host| *host != leader).collect();
    let next = lab.leader_among(&others).await;
    lab.store(next).commit(put("/k", "v")).await.unwrap();
    assert_eq!(lab.store(next).members().len(), 2);
    soon("it is told", lab.store(leader).removed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_voter_cannot_be_removed() {
    let lab = Lab::with(1).await;
    let id = lab.store(0).member_id();
    assert!(matches!(lab.store(0).remove_member(id).await, Err(MemberError::LastVoter(_))));
    assert!(matches!(lab.store(0).transfer_leadership(None).await, Err(MemberError::NoSuccessor)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_shrinks_to_one() {
    let mut lab = Lab::with(3).await;
    for _ in 0..2 {
        let gone = lab.follower().await;
        lab.store(gone).remove_member(lab.store(gone).member_id()).await.unwrap();
        lab.stop(gone).await;
    }
    let last = lab.running().next().unwrap();
    lab.store(last).commit(put("/k", "v")).await.unwrap();
    lab.crash(last).await;
    lab.start(last).await;
    assert!(*lab.store(last).leader().borrow(), "a lone one leads when it is open");
    assert_eq!(lab.store(last).snapshot(Freshness::Linearizable).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_tells_the_group() {
    let mut lab = Lab::with(3).await;
    let mover = lab.follower().await;
    lab.stop(mover).await;
    lab.hosts[mover].address = "elsewhere:6443".to_string();
    lab.start(mover).await;
    let id = lab.store(mover).member_id();
    for host in 0..3 {
        eventually("all know", async || {
            let members = lab.store(host).members();
            members.iter().find(|member| member.id == id)?.address.eq("elsewhere:6443").then_some(())
        })
        .await;
    }
    lab.store(mover).commit(put("/k", "v")).await.unwrap();
    lab.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_survives_a_crash_and_a_change_of_leaders() {
    let mut lab = Lab::with(3).await;
    let joiner = lab.join().await;
    let id = lab.store(joiner).member_id();
    lab.crash(joiner).await;
    let leader = lab.leader().await;
    lab.crash(leader).await;
    let dir = lab.hosts[joiner].dir.path().to_path_buf();
    if !Store::has_data(&dir).unwrap() {
        assert!(matches!(Store::open(lab.config(joiner)).await, Err(OpenError::NotJoined { .. })));
    }
    lab.start(leader).await;
    lab.join_as(joiner).await;
    soon("joining", lab.store(joiner).joined()).await.unwrap();
    assert_eq!(lab.store(joiner).member_id(), id);
    assert!(Store::has_data(&dir).unwrap());
    lab.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_tells_who_lags_and_how_large_the_database_is() {
    const WRITES: u64 = 40;
    let lab = Lab::with(3).await;
    let leader = lab.leader().await;
    let follower = lab.follower().await;
    let member = lab.store(follower).member_id();
    let seen = async || {
        let status = lab.store(leader).status().await;
        status.members.into_iter().find(|found| found.id == member).unwrap()
    };
    lab.net.cut(&lab.hosts[follower].address);
    for n in 0..WRITES {
        lab.store(leader).commit(put("/k", vec![n as u8; 30_000])).await.unwrap();
    }
    let cut_off = eventually("it is not reached", async || {
        let found = seen().await;
        (found.reachable == Some(false)).then_some(found)
    })
    .await;
    assert!(cut_off.lag_entries.is_some_and(|lag| lag >= WRITES), "{cut_off:?}");

    lab.net.mend(&lab.hosts[follower].address);
    eventually("it has caught up", async || {
        let found = seen().await;
        (found.reachable == Some(true) && found.lag_entries == Some(0)).then_some(())
    })
    .await;
    lab.agree().await;
    for host in lab.running() {
        let status = lab.store(host).status().await;
        let dir = lab.hosts[host].dir.path();
        let log = std::fs::read_dir(dir.join("log")).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
        let files = dir.join("sled/db").metadata().unwrap().len() + log.sum::<u64>();
        // The engine counts its small files, too.
        assert!(status.db_bytes >= files && status.db_bytes < files + (1 << 20), "{} of {files}", status.db_bytes);
    }
}
