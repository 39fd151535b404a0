//! Three real processes on loopback, and what may befall them: kill -9, SIGSTOP, being cut off. After each round every
//! acknowledged write is there, and all members hold the same.
//!
//! `MUSSEL_STORE_CRASH_ROUNDS` sets how many rounds there are.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use mussel_store::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const DIR: &str = "MUSSEL_STORE_TEST_GROUP_DIR";
const MEMBERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);

struct Tcp;

impl Transport for Tcp {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, std::io::Result<Box<dyn PeerStream>>> {
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn PeerStream>)
        }
        .boxed()
    }
}

/// Not a test by itself: one member. Its address is where others reach it; it listens on a port of its own, which it says.
///
/// Takes lines on its standard input: `put KEY VALUE`, `state`, `stop`; answers in lines that begin with `>`.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let variable = |name: &str| std::env::var(format!("MUSSEL_STORE_TEST_GROUP_{name}")).ok();
    let address = variable("ADDRESS").unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!(">listens {}", listener.local_addr().unwrap());
        let mut config = Config::new(Path::new(&dir));
        config.peer = Some(Peer { name: address.clone(), address, transport: Arc::new(Tcp) });
        // Checkpoints and purges all the time, so that what happens often meets one, and snapshots are needed.
        config.checkpoint_interval = Duration::from_millis(200);
        config.log_entries_kept = 30;
        let store = match (variable("CLUSTER"), variable("SEED")) {
            (Some(cluster), Some(seed)) => Store::join(config, cluster.parse().unwrap(), vec![seed]).await.unwrap(),
            _ => Store::open(config).await.unwrap(),
        };
        println!(">opened {} {}", store.cluster_id(), store.member_id());
        let serving = store.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let store = serving.clone();
                tokio::spawn(async move { store.serve_peer(stream).await });
            }
        });
        store.joined().await.unwrap();
        println!(">joined");
        let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["put", key, value] => {
                    let (store, key, value) = (store.clone(), key.to_string(), value.to_string());
                    tokio::spawn(async move {
                        let puts = vec![
                            (Bytes::from(key.clone()), Bytes::from(value.clone())),
                            (Bytes::from(format!("{key}/{}", value.len())), Bytes::from(vec![7; 500])),
                        ];
                        match store.commit(Txn { puts, ..Txn::default() }).await {
                            Ok(revision) => println!(">ok {key} {value} {}", revision.0),
                            Err(CommitError::Unknown | CommitError::Stopped) => println!(">unknown {key} {value}"),
                            Err(error) => println!(">failed {key} {value} {error}"),
                        }
                    });
                }
                ["state"] => {
                    let store = store.clone();
                    tokio::spawn(async move {
                        let Ok(snapshot) = store.snapshot(Freshness::Linearizable).await else {
                            println!(">state none");
                            return;
                        };
                        let writers: Vec<_> = snapshot
                            .range(b"/w/", b"/w/")
                            .filter(|(key, _)| key.iter().filter(|byte| **byte == b'/').count() == 2)
                            .map(|(key, value)| {
                                format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(&value.value))
                            })
                            .collect();
                        let leads = *store.leader().borrow();
                        let (revision, digest) = (snapshot.revision().0, snapshot.digest());
                        println!(">state {revision} {digest:016x} {leads} {}", writers.join(","));
                    });
                }
                ["stop"] => break,
                _ => panic!("{line}"),
            }
        }
        store.shutdown().await;
    });
}

/// Stands before a member: what goes to it, and from it by its own connections, can be held up.
struct Relay {
    address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    cut: Arc<AtomicBool>,
}

impl Relay {
    fn start(runtime: &tokio::runtime::Runtime) -> Self {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (target, cut) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let (to, held) = (target.clone(), cut.clone());
        runtime.spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let (to, held) = (to.clone(), held.clone());
                tokio::spawn(async move {
                    let target: Option<SocketAddr> = *to.lock().unwrap();
                    let Some(target) = target else { return };
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    let (near_read, near_write) = near.into_split();
                    let (far_read, far_write) = far.into_split();
                    tokio::join!(pump(near_read, far_write, &held), pump(far_read, near_write, &held));
                });
            }
        });
        Self { address, target, cut }
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    cut: &Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        while cut.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[derive(Default)]
struct Heard {
    acknowledged: BTreeMap<String, u64>,
    unknown: HashSet<(String, u64)>,
    outstanding: HashSet<String>,
    failed: Vec<String>,
    states: Vec<Option<(u64, String, bool, BTreeMap<String, u64>)>>,
    lines: Vec<String>,
    acknowledged_at: Option<Instant>,
}

struct Member {
    process: Child,
    input: ChildStdin,
    heard: Arc<Mutex<Heard>>,
}

fn signal(member: &Member, signal: i32) {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(member.process.id().to_string()).status();
    assert!(status.unwrap().success());
}

impl Member {
    fn start(dir: &Path, relay: &Relay, join: Option<(&str, String)>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "crash::child", "--nocapture"])
            .env(DIR, dir)
            .env("MUSSEL_STORE_TEST_GROUP_ADDRESS", relay.address.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Why one that should be there is not.
            .stderr(Stdio::inherit());
        if let Some((cluster, seed)) = join {
            command.env("MUSSEL_STORE_TEST_GROUP_CLUSTER", cluster).env("MUSSEL_STORE_TEST_GROUP_SEED", seed);
        }
        let mut process = command.spawn().unwrap();
        let input = process.stdin.take().unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let output = BufReader::new(process.stdout.take().unwrap());
        let listener = heard.clone();
        let target = relay.target.clone();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The test harness may have begun a line.
                let Some((_, line)) = line.split_once('>') else { continue };
                let mut heard = listener.lock().unwrap();
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["listens", address] => *target.lock().unwrap() = Some(address.parse().unwrap()),
                    ["ok", key, value, _] => {
                        heard.outstanding.remove(key);
                        heard.acknowledged.insert(key.to_string(), value.parse().unwrap());
                        heard.acknowledged_at = Some(Instant::now());
                    }
                    ["unknown", key, value] => {
                        heard.outstanding.remove(key);
                        heard.unknown.insert((key.to_string(), value.parse().unwrap()));
                    }
                    ["failed", key, ..] => {
                        heard.outstanding.remove(key);
                        heard.failed.push(line.to_string());
                    }
                    ["state", "none"] => heard.states.push(None),
                    ["state", revision, digest, leads, writers] => {
                        let writers = writers.split(',').filter_map(|writer| writer.split_once('='));
                        let writers = writers.map(|(key, value)| (key.to_string(), value.parse().unwrap()));
                        heard.states.push(Some((
                            revision.parse().unwrap(),
                            digest.to_string(),
                            leads == "true",
                            writers.collect(),
                        )));
                    }
                    _ => {}
                }
                heard.lines.push(line.to_string());
            }
        });
        Self { process, input, heard }
    }

    fn says(&self, what: &str) -> String {
        let start = Instant::now();
        loop {
            let found = self.heard.lock().unwrap().lines.iter().find(|line| line.starts_with(what)).cloned();
            if let Some(line) = found {
                return line;
            }
            assert!(start.elapsed() < PATIENCE, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn tell(&mut self, line: &str) {
        use std::io::Write;
        // One that was killed does not hear it.
        let _ = writeln!(self.input, "{line}");
    }

    fn state(&mut self) -> (u64, String, bool, BTreeMap<String, u64>) {
        let start = Instant::now();
        loop {
            let before = self.heard.lock().unwrap().states.len();
            self.tell("state");
            while self.heard.lock().unwrap().states.len() == before {
                assert!(start.elapsed() < PATIENCE, "no state in time");
                std::thread::sleep(Duration::from_millis(5));
            }
            if let Some(Some(state)) = self.heard.lock().unwrap().states.last() {
                return state.clone();
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

#[test]
fn kills_stops_and_cuts_lose_nothing_that_was_acknowledged() {
    let rounds = std::env::var("MUSSEL_STORE_CRASH_ROUNDS").map_or(12, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("MUSSEL_STORE_CRASH_SEED").map_or(0x9e37_79b9, |seed| seed.parse().unwrap());
    let mut random = Random(seed);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dirs: Vec<_> = (0..MEMBERS).map(|_| tempfile::tempdir().unwrap()).collect();
    let relays: Vec<_> = (0..MEMBERS).map(|_| Relay::start(&runtime)).collect();
    let mut members = vec![Member::start(dirs[0].path(), &relays[0], None)];
    let cluster = members[0].says("opened").split(' ').nth(1).unwrap().to_string();
    members[0].says("joined");
    for index in 1..MEMBERS {
        let join = Some((cluster.as_str(), relays[0].address.to_string()));
        members.push(Member::start(dirs[index].path(), &relays[index], join));
        members[index].says("joined");
    }

    // Per writer, which stays with one member: what it tries now, and what it may have done.
    let mut next: Vec<u64> = vec![0; MEMBERS];
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    let mut failovers = Vec::new();
    let mut kinds = [0usize; 4];
    for round in 0..rounds {
        let kind = random.below(4) as usize;
        kinds[kind] += 1;
        let victim = random.below(MEMBERS as u64) as usize;
        let leads = members[victim].state().2;
        let strike_after = 5 + random.below(30);
        let mut struck = None;
        let mut recovered = false;
        let start = Instant::now();
        let down_for = Duration::from_millis(300 + random.below(2500));
        let mut total = 0;
        loop {
            for index in 0..MEMBERS {
                let key = format!("/w/{index}");
                let mut heard = members[index].heard.lock().unwrap();
                assert!(heard.failed.is_empty() || struck.is_some(), "round {round}: {:?}", heard.failed);
                if let Some(value) = heard.acknowledged.remove(&key) {
                    acknowledged.insert(key.clone(), value);
                    total += 1;
                }
                let free = heard.outstanding.insert(key.clone());
                drop(heard);
                if free {
                    next[index] += 1;
                    let line = format!("put {key} {}", next[index]);
                    members[index].tell(&line);
                }
            }
            if struck.is_none() && total >= strike_after {
                struck = Some(Instant::now());
                match kind {
                    0 | 1 => members[victim].process.kill().unwrap(),
                    2 => signal(&members[victim], 19),
                    _ => relays[victim].cut.store(true, Ordering::Release),
                }
            }
            if let Some(at) = struck {
                if leads && kind < 2 && !recovered {
                    let others = (0..MEMBERS).filter(|index| *index != victim);
                    let first = others.filter_map(|index| members[index].heard.lock().unwrap().acknowledged_at);
                    // The first that was acknowledged after an election, not one that was on its way.
                    if let Some(first) = first.filter(|first| *first > at + Duration::from_millis(200)).min() {
                        failovers.push(first - at);
                        recovered = true;
                    }
                }
                if at.elapsed() > down_for && (recovered || !leads || kind >= 2 || at.elapsed() > PATIENCE) {
                    break;
                }
            }
            assert!(start.elapsed() < PATIENCE, "round {round}: writes do not go on");
            std::thread::sleep(Duration::from_millis(2));
        }
        match kind {
            0 | 1 => {
                members[victim].process.wait().unwrap();
                // What it had acknowledged before it died counts, too.
                std::thread::sleep(Duration::from_millis(20));
                let key = format!("/w/{victim}");
                if let Some(value) = members[victim].heard.lock().unwrap().acknowledged.remove(&key) {
                    acknowledged.insert(key, value);
                }
                members[victim] = Member::start(dirs[victim].path(), &relays[victim], None);
                members[victim].says("joined");
            }
            2 => signal(&members[victim], 18),
            _ => relays[victim].cut.store(false, Ordering::Release),
        }
        // All outstanding writes come to an end, one way or the other.
        for (index, member) in members.iter().enumerate() {
            let start = Instant::now();
            while !member.heard.lock().unwrap().outstanding.is_empty() {
                assert!(start.elapsed() < PATIENCE, "round {round}: a write of member {index} does not end");
                std::thread::sleep(Duration::from_millis(5));
            }
            let key = format!("/w/{index}");
            let mut heard = member.heard.lock().unwrap();
            heard.failed.clear();
            if let Some(value) = heard.acknowledged.remove(&key) {
                acknowledged.insert(key, value);
            }
        }
        let states: Vec<_> = members.iter_mut().map(Member::state).collect();
        for (index, (_, _, _, writers)) in states.iter().enumerate() {
            for (key, value) in &acknowledged {
                let found = writers.get(key).copied().unwrap_or(0);
                assert!(found >= *value, "round {round}: member {index} has {key}={found}, {value} was acknowledged");
            }
        }
        // Writes whose outcome is unknown may still come in: the digests are of one revision or there is no comparison.
        let start = Instant::now();
        loop {
            let states: Vec<_> = members.iter_mut().map(Member::state).collect();
            if states.iter().all(|state| state.0 == states[0].0) {
                assert!(states.iter().all(|state| state.1 == states[0].1), "round {round}: {states:?}");
                break;
            }
            assert!(start.elapsed() < PATIENCE, "round {round}: members do not agree on a revision");
        }
    }
    failovers.sort();
    println!(
        "{rounds} rounds: {} kills, {} stops, {} cuts; {} leaders killed, next write acknowledged after {:?} (median), {:?} (worst)",
        kinds[0] + kinds[1],
        kinds[2],
        kinds[3],
        failovers.len(),
        failovers.get(failovers.len() / 2),
        failovers.last(),
    );
    for mut member in members {
        member.tell("stop");
        member.process.wait().unwrap();
    }
}
