//! What comes in by the wire from whoever does not belong here, or speaks another version.

use mussel_store::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{Lab, eventually, put, soon};

const NEXT: WireVersions = WireVersions { oldest: 1, newest: 2 };
const AFTER_NEXT: WireVersions = WireVersions { oldest: 2, newest: 2 };

async fn upgrade(lab: &mut Lab, order: [usize; 3]) {
    fn next(_: usize, mut config: Config) -> Config {
        config.wire_versions = NEXT;
        config
    }
    lab.adjust = next;
    for (round, host) in order.into_iter().enumerate() {
        lab.stop(host).await;
        for other in lab.running().collect::<Vec<_>>() {
            lab.store(other).commit(put(&format!("/{round}/{other}"), "without it")).await.unwrap();
        }
        lab.start(host).await;
        for other in 0..3 {
            lab.store(other).commit(put(&format!("/{round}/{other}"), "with it")).await.unwrap();
        }
        lab.agree().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_upgraded_one_by_one_in_either_order() {
    for leader_first in [true, false] {
        let mut lab = Lab::with(3).await;
        let leader = lab.leader().await;
        let mut order = [leader, (leader + 1) % 3, (leader + 2) % 3];
        if !leader_first {
            order.reverse();
        }
        upgrade(&mut lab, order).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_that_do_not_meet_are_refused_by_name() {
    fn only_two(host: usize, mut config: Config) -> Config {
        if host == 1 {
            config.wire_versions = AFTER_NEXT;
        }
        config
    }
    let mut lab = Lab::adjusted(1, only_two).await;
    let host = lab.join().await;
    let error = soon("refusal", lab.store(host).joined()).await.unwrap_err();
    let JoinError::Refused { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("versions 1 to 1") && reason.contains("2 to 2"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_clusters_member_is_refused() {
    let mut lab = Lab::with(1).await;
    let host = lab.host();
    let seeds = vec![lab.hosts[0].address.clone()];
    let store = Store::join(lab.config(host), ClusterId(5), seeds.clone()).await.unwrap();
    assert!(matches!(soon("refusal", store.joined()).await, Err(JoinError::Refused { .. })));
    soon("shutdown", store.shutdown()).await;
    let again = Store::join(lab.config(host), lab.store(0).cluster_id(), seeds).await;
    assert!(matches!(again, Err(OpenError::OtherCluster { found: ClusterId(5), .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_and_harms_nobody() {
    let lab = Lab::with(1).await;
    let store = lab.store(0);
    let hello = |cluster: u128| {
        let words =
            [&b"MUSSELST\x01\x00\x01\x00"[..], &cluster.to_le_bytes(), &9u64.to_le_bytes(), &0u64.to_le_bytes()];
        words.concat()
    };
    let own = store.cluster_id().0;
    let cases: Vec<(Vec<u8>, bool)> = vec![
        (b"GET / HTTP/1.1\r\nHost: mussel.example.org\r\n\r\n".to_vec(), true),
        (vec![0xff; 100_000], true),
        (hello(own + 1), true),
        ([hello(own), b"\xff\xff\xff\xff\x01\x00\x00\x00\x00".to_vec()].concat(), true),
        ([hello(own), b"\x07\x00\x00\x00\x01\x00\x00\x00\x00\xff\xff".to_vec()].concat(), true),
        ([hello(own), b"\x06\x00\x00\x00\x02\x00\x00\x00\x00\x00".to_vec()].concat(), true),
        // Cut short.
        (hello(own)[..20].to_vec(), false),
    ];
    for (bytes, counted) in cases {
        let before = store.metrics().peer_refused.get();
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let served = tokio::spawn({
            let store = store.clone();
            async move { store.serve_peer(far).await }
        });
        // The other end may be gone before all is written.
        let _ = near.write_all(&bytes).await;
        if !counted {
            near.shutdown().await.unwrap();
        }
        assert!(soon("the end", served).await.unwrap().is_err());
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert!(store.metrics().peer_refused.get() > before, "{bytes:?}");
    }
    store.commit(put("/k", "v")).await.unwrap();
    eventually("no connection is left", async || (store.metrics().peer_connections.get() == 0).then_some(())).await;
}
