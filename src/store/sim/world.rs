//! Runs one world: members, clients, and what breaks; then mends everything and looks whether all is as it has to be.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::disk::database::Database;
use crate::disk::identity::{Identity, Marker, Standing};
use crate::disk::journal::{Journal, Place};
use crate::disk::thread::Disk;
use crate::raft::SimulatedRuntime;
use crate::raft::log::LogStore;
use crate::raft::machine::Machine;
use crate::sim::client::{Client, put};
use crate::sim::clock;
use crate::sim::disk;
use crate::sim::history::{Operation, Value, is_linearizable};
use crate::sim::net::Net;
use crate::sim::random::Random;
use crate::sim::witness::Witnesses;
use crate::store::{Beginning, Opened, start};
use crate::{ClusterId, Config, Metrics, Peer, Revision, Store, Timing};

/// Set in a process that is to tell what happens in its world, which is this one.
pub(super) const SEED: &str = "MUSSEL_SIM_SEED";

const CLUSTER: ClusterId = ClusterId(7);
pub(super) const KEYS: u64 = 4;
const CLIENTS: usize = 4;
/// For how long things break: mostly a few seconds, since many short worlds find more than few long ones.
const TROUBLE: [Range<u64>; 10] = {
    const SHORT: Range<u64> = 2..5;
    const LONG: Range<u64> = 8..14;
    [SHORT, SHORT, SHORT, SHORT, SHORT, 5..8, 5..8, 5..8, 5..8, LONG]
};
/// How long a mended group may take to be well.
const RECOVERY: Duration = Duration::from_secs(60);
/// Percents of their time that timers may take without harm to a group.
const WELL: Range<u32> = 70..140;
const VOTERS_MAX: usize = 7;

pub(super) struct Host {
    address: String,
    machine: disk::Machine,
    starts: u64,
    pub(super) running: Option<(Store, CancellationToken)>,
    /// It was told to leave.
    removed: bool,
    /// Its timers run so fast or slow that no group could hold together for long.
    skewed: bool,
}

struct World {
    random: Random,
    net: Net,
    hosts: Arc<Mutex<Vec<Host>>>,
    witnesses: Witnesses,
    witnessing: JoinSet<()>,
    history: Arc<Mutex<BTreeMap<u64, Vec<Operation>>>>,
    acknowledged: Arc<Mutex<Vec<(Revision, u64, Value)>>>,
    began: Instant,
    in_trouble: bool,
    verbose: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let random = Random::new(seed);
        Self {
            net: Net::new(random.clone()),
            random,
            hosts: Arc::default(),
            witnesses: Witnesses::default(),
            witnessing: JoinSet::new(),
            history: Arc::default(),
            acknowledged: Arc::default(),
            began: Instant::now(),
            in_trouble: false,
            verbose: std::env::var_os(SEED).is_some(),
        }
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>10.3} {}", self.began.elapsed().as_secs_f64(), what());
        }
    }

    fn host(&self) -> usize {
        let mut hosts = self.hosts.lock().unwrap();
        let address = format!("host-{}:1", hosts.len());
        let machine = disk::Machine::new(self.random.clone());
        hosts.push(Host { address, machine, starts: 0, running: None, removed: false, skewed: false });
        hosts.len() - 1
    }

    /// Starts a process on `host`: it founds, joins or goes on, as its disk says.
    async fn start(&mut self, host: usize) {
        let (address, machine, session, seeds) = {
            let mut hosts = self.hosts.lock().unwrap();
            let seeds = hosts.iter().filter(|other| other.running.is_some());
            let seeds: Vec<_> = seeds.map(|other| other.address.clone()).collect();
            let host = &mut hosts[host];
            host.starts += 1;
            (host.address.clone(), host.machine.clone(), host.starts, seeds)
        };
        let dead = CancellationToken::new();
        let mut config = Config::new("/");
        config.free_bytes_min = 0;
        config.checkpoint_interval = self.random.between(Duration::from_millis(50), Duration::from_millis(800));
        config.log_bytes_max = 50 + self.random.below(3000);
        config.log_entries_kept = self.random.below(20);
        config.timing.leader_timeout = Duration::from_secs(4);
        let percent = self.timer_percent();
        config.timing = run_at(config.timing, percent);
        config.peer = Some(Peer {
            name: address.clone(),
            address: address.clone(),
            transport: self.net.transport(&address, dead.clone()),
        });
        let metrics = Metrics::default();
        let platter = machine.open();
        let (marker, beginning) = match machine.marker() {
            Some(marker) if marker.standing != Standing::Joining => (marker, Beginning::Open),
            Some(marker) => (marker, Beginning::Join { cluster: CLUSTER, seeds }),
            None => {
                let identity = Identity { cluster: CLUSTER.0, member: host as u64 + 1 };
                let standing = if host == 0 { Standing::Member } else { Standing::Joining };
                let marker = Marker { identity, checkpointed: 0, standing, closed: None };
                platter.set_marker(&marker).unwrap();
                let joins = Beginning::Join { cluster: CLUSTER, seeds };
                (marker, if host == 0 { Beginning::Open } else { joins })
            }
        };
        assert_ne!(marker.standing, Standing::Removed, "{address} was removed and is started");
        let opened = open(platter, marker, &config, session, metrics.clone());
        let recovered = opened.machine.applied_index().load(Ordering::Acquire);
        assert!(recovered >= marker.checkpointed, "{address} went back behind its marker");
        let store = start(config, beginning, metrics, opened).await.unwrap();
        self.say(|| format!("{address} starts, applied to {recovered}, timers at {percent} %"));
        self.net.serve(&address, &store);
        self.witnessing.spawn(self.witnesses.clone().watch(store.clone(), address));
        let mut hosts = self.hosts.lock().unwrap();
        hosts[host].skewed = !WELL.contains(&percent);
        hosts[host].running = Some((store, dead));
    }

    /// How long the timers of a process take, of what they should.
    fn timer_percent(&self) -> u32 {
        match self.random.below(10) {
            0 if self.in_trouble => 25 + self.random.below(276) as u32,
            0..=2 => WELL.start + self.random.below(u64::from(WELL.end - WELL.start)) as u32,
            _ => 100,
        }
    }

    fn running(&self) -> Vec<(usize, Store)> {
        let hosts = self.hosts.lock().unwrap();
        let running = hosts.iter().enumerate();
        running.filter_map(|(index, host)| Some((index, host.running.as_ref()?.0.clone()))).collect()
    }

    /// The power of `host` goes, and comes back with [`World::start`].
    fn crash(&self, host: usize) {
        let mut hosts = self.hosts.lock().unwrap();
        let host = &mut hosts[host];
        let Some((store, dead)) = host.running.take() else { return };
        dead.cancel();
        let torn = host.machine.cut_power();
        self.say(|| {
            format!(
                "{} loses power; {} of {} batches survive: {}",
                host.address, torn.survived, torn.unsynced, torn.how
            )
        });
        self.net.stop_serving(&host.address);
        // What is left of it can reach neither disk nor network.
        tokio::spawn(store.shutdown());
    }

    async fn stop(&self, host: usize) {
        let running = self.hosts.lock().unwrap()[host].running.take();
        let Some((store, dead)) = running else { return };
        let address = self.hosts.lock().unwrap()[host].address.clone();
        self.say(|| format!("{address} is stopped"));
        store.shutdown().await;
        dead.cancel();
        self.net.stop_serving(&address);
    }

    fn leader(&self) -> Option<(usize, Store)> {
        self.running().into_iter().find(|(_, store)| *store.leader().borrow())
    }

    async fn found(&mut self, members: usize) {
        let host = self.host();
        self.start(host).await;
        for _ in 1..members {
            let host = self.host();
            self.start(host).await;
            let store = self.running().pop().unwrap().1;
            tokio::time::timeout(RECOVERY, store.joined()).await.expect("a member does not join").unwrap();
        }
    }

    async fn trouble(&mut self, until: Instant) {
        self.in_trouble = true;
        while Instant::now() < until {
            let pause = self.random.between(Duration::from_millis(20), Duration::from_millis(900));
            tokio::time::sleep(pause).await;
            let hosts = self.hosts.lock().unwrap().len() as u64;
            let any = self.random.below(hosts) as usize;
            let address = |host: usize| self.hosts.lock().unwrap()[host].address.clone();
            match self.random.below(19) {
                0..=2 => self.crash(any),
                3..=6 => self.start_one().await,
                7 => {
                    let other = self.random.below(hosts) as usize;
                    self.say(|| format!("nothing goes from {} to {}", address(any), address(other)));
                    self.net.hold(&address(any), &address(other));
                }
                8 => {
                    self.say(|| format!("{} is cut off", address(any)));
                    for other in 0..hosts as usize {
                        self.net.hold(&address(any), &address(other));
                        self.net.hold(&address(other), &address(any));
                    }
                }
                9 | 10 => {
                    self.say(|| "the network is mended".to_string());
                    self.net.mend();
                }
                11 => {
                    self.say(|| format!("connections of {} break", address(any)));
                    let address = address(any);
                    self.net.break_connections(|from, to| from == address || to == address);
                }
                12 => {
                    let max = Duration::from_millis(5 + self.random.below(120));
                    self.say(|| format!("the network takes up to {max:?}"));
                    self.net.slow_down(max);
                }
                13 => {
                    let times = 1 + self.random.below(200) as u32;
                    self.say(|| format!("the disk of {} is {times} times as slow", address(any)));
                    self.hosts.lock().unwrap()[any].machine.slow_down(times);
                }
                14 => {
                    let jump = self.random.between(Duration::from_millis(100), Duration::from_secs(3));
                    self.say(|| format!("nobody gets to do anything for {jump:?}"));
                    tokio::time::advance(jump).await;
                }
                15 => self.change_members(any).await,
                16 => {
                    let stall = self.random.between(Duration::from_millis(500), Duration::from_secs(8));
                    self.say(|| format!("the next sync of {} takes {stall:?} longer", address(any)));
                    self.hosts.lock().unwrap()[any].machine.stall(stall);
                }
                17 => {
                    let seconds = self.random.below(20_000_000) as i64 - 10_000_000;
                    self.say(|| format!("the wall clock leaps to {seconds} s from the right time"));
                    clock::leap(seconds);
                }
                _ => {
                    if self.random.chance(50) {
                        self.stop(any).await;
                    } else if let Some((_, leader)) = self.leader() {
                        self.say(|| "leadership is handed over".to_string());
                        // What comes of it is the group's business.
                        let _ = tokio::time::timeout(Duration::from_secs(1), leader.transfer_leadership(None)).await;
                    }
                }
            }
        }
    }

    async fn start_one(&mut self) {
        let down = {
            let hosts = self.hosts.lock().unwrap();
            hosts.iter().position(|host| host.running.is_none() && !host.removed)
        };
        if let Some(host) = down {
            self.start(host).await;
        }
    }

    async fn change_members(&mut self, any: usize) {
        let members = self.leader().map_or(Vec::new(), |(_, leader)| leader.members());
        let voters = members.len();
        // One that was to leave may still count: of two such ones a small group would not recover. And one that is yet to join
        // may be the last that there is room for.
        let (all_left, wanted) = {
            let hosts = self.hosts.lock().unwrap();
            let all_left = members.iter().all(|member| !hosts[member.id as usize - 1].removed);
            (all_left, hosts.iter().filter(|host| !host.removed).count())
        };
        if voters > 3 && all_left && any != 0 && self.random.chance(60) {
            let Some((_, leader)) = self.leader() else { return };
            self.say(|| format!("host {any} is to leave"));
            // Whatever comes of it, nobody starts it again.
            self.hosts.lock().unwrap()[any].removed = true;
            let _ = tokio::time::timeout(Duration::from_secs(2), leader.remove_member(any as u64 + 1)).await;
            self.crash(any);
        } else if voters > 0 && voters.max(wanted) < VOTERS_MAX {
            let host = self.host();
            self.say(|| format!("host {host} joins"));
            self.start(host).await;
        }
    }

    /// Nothing is broken any more, and everybody is there who should be.
    async fn mend(&mut self) {
        self.say(|| "all is mended".to_string());
        self.in_trouble = false;
        self.net.mend();
        let hosts = self.hosts.lock().unwrap().len();
        for host in 0..hosts {
            let skewed = {
                let hosts = self.hosts.lock().unwrap();
                hosts[host].machine.slow_down(1);
                hosts[host].machine.stall(Duration::ZERO);
                hosts[host].skewed
            };
            if skewed {
                self.stop(host).await;
            }
            let (running, removed) = {
                let hosts = self.hosts.lock().unwrap();
                (hosts[host].running.is_some(), hosts[host].removed)
            };
            if !running && !removed {
                self.start(host).await;
            }
        }
    }

    /// Waits until all members hold the same and take writes.
    async fn recover(&self) {
        let until = Instant::now() + RECOVERY;
        // Those that were to leave and did not are gone for good, and the others know.
        loop {
            let mut left = Vec::new();
            if let Some((_, leader)) = self.leader() {
                let members = leader.members();
                {
                    let hosts = self.hosts.lock().unwrap();
                    let ids = members.into_iter().map(|member| member.id);
                    left.extend(ids.filter(|id| hosts[*id as usize - 1].removed));
                }
                for id in &left {
                    let _ = tokio::time::timeout(Duration::from_secs(5), leader.remove_member(*id)).await;
                }
                if left.is_empty() && self.agree(&leader).await {
                    return;
                }
            }
            if Instant::now() > until {
                let states: Vec<_> = self
                    .running()
                    .iter()
                    .map(|(host, store)| {
                        let leads = *store.leader().borrow();
                        format!("host {host} at {:?}, leads {leads}, {:?}", store.revision(), store.members())
                    })
                    .collect();
                panic!("the group does not recover:\n{}", states.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn agree(&self, leader: &Store) -> bool {
        let written = leader.commit(put("/end", 0)).await;
        let Ok(revision) = written else { return false };
        for (_, store) in self.running() {
            let reached = tokio::time::timeout(Duration::from_secs(5), store.wait_for(revision)).await;
            if !matches!(reached, Ok(Ok(()))) || !matches!(store.joined().await, Ok(())) {
                return false;
            }
        }
        let mut digests = Vec::new();
        for (_, store) in self.running() {
            let Ok(snapshot) = store.snapshot_at(revision) else { return false };
            digests.push(snapshot.digest());
        }
        assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "members differ at {revision:?}: {digests:x?}");
        true
    }

    fn client(&self, number: usize) -> Client {
        Client {
            number: number as u64,
            random: self.random.clone(),
            hosts: self.hosts.clone(),
            history: self.history.clone(),
            acknowledged: self.acknowledged.clone(),
            began: self.began,
            verbose: self.verbose,
        }
    }

    fn judge(&self) {
        for (key, operations) in self.history.lock().unwrap().iter() {
            assert!(is_linearizable(operations), "key {key}: no order explains {operations:#?}");
        }
        for (revision, key, value) in self.acknowledged.lock().unwrap().iter() {
            let Some(events) = self.witnesses.at(*revision) else { continue };
            let event = &events[0];
            assert_eq!(event.key, format!("/{key}"), "{revision:?} was acknowledged for another key");
            assert_eq!(event.value, Some(format!("{value}").into()), "{revision:?} was acknowledged for another value");
        }
    }
}

/// As on a machine whose clock takes `percent` of the right time.
fn run_at(timing: Timing, percent: u32) -> Timing {
    let run = |time: Duration| time * percent / 100;
    Timing {
        heartbeat_interval: run(timing.heartbeat_interval),
        election_timeout_min: run(timing.election_timeout_min),
        election_timeout_max: run(timing.election_timeout_max),
        connect_timeout: run(timing.connect_timeout),
        leader_timeout: run(timing.leader_timeout),
    }
}

/// Segments that are full soon.
const SEGMENT_BYTES: u64 = 4096;

/// What is opened of a member on a simulated disk.
fn open(platter: disk::Platter, marker: Marker, config: &Config, session: u64, metrics: Metrics) -> Opened {
    let identity = marker.identity;
    let database = Database::Simulated(platter.clone());
    let machine = Machine::open(&database, config, identity, marker.standing, metrics.clone()).unwrap();
    let applied = machine.applied_id();
    let place = Place::Simulated(platter.clone());
    let journal = Journal::open(place, identity, SEGMENT_BYTES, applied.map_or(0, |id| id.index)).unwrap();
    if let Some(applied) = applied
        && journal.last().is_none_or(|last| last.index < applied.index)
    {
        journal.purge(applied);
    }
    let disk = Disk::start_simulated(platter, journal, machine.pace(), metrics);
    let log = LogStore::open(disk.clone(), machine.applied_index()).unwrap();
    if machine.membership().voter_ids().any(|voter| voter == identity.member) {
        machine.stands(Standing::Member);
    }
    let (_, closed) = oneshot::channel();
    Opened { disk, closed, log, machine, identity, session }
}

/// One world, from its beginning to the judgement.
pub(super) async fn live(seed: u64) {
    let mut world = World::new(seed);
    let members = match world.random.below(10) {
        0 => 7,
        1..=3 => 5,
        _ => 3,
    };
    world.found(members).await;
    let seconds = TROUBLE[world.random.below(10) as usize].clone();
    let until =
        Instant::now() + world.random.between(Duration::from_secs(seconds.start), Duration::from_secs(seconds.end));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(world.client(number).run(until));
    }
    world.trouble(until).await;
    world.mend().await;
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    world.recover().await;
    world.judge();
    for (host, _) in world.running() {
        world.stop(host).await;
    }
    while let Some(ended) = world.witnessing.join_next().await {
        ended.unwrap();
    }
}

/// openraft drops what it is asked for while it has not heard of the last checkpoint's end, of which the store has heard.
#[test]
fn a_checkpoint_that_raft_dropped_is_asked_for_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(SimulatedRuntime::scope(1, async {
        let mut config = Config::new("/");
        config.free_bytes_min = 0;
        config.log_bytes_max = 1;
        let metrics = Metrics::default();
        let marker = Marker {
            identity: Identity { cluster: CLUSTER.0, member: 1 },
            checkpointed: 0,
            standing: Standing::Member,
            closed: None,
        };
        let platter = disk::Machine::new(Random::new(1)).open();
        let opened = open(platter, marker, &config, 1, metrics.clone());
        opened.machine.lets_raft_wait(Duration::from_secs(1));
        let store = start(config, Beginning::Open, metrics, opened).await.unwrap();
        for n in 0..20 {
            store.commit(put("/k", n)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        // Of the last state but one that was frozen.
        let mut checkpointed = store.shared.machine.checkpointed();
        let last = store.status().await.last_log_index;
        let reached = checkpointed.wait_for(|index| *index + 2 >= last);
        tokio::time::timeout(Duration::from_secs(30), reached).await.expect("no checkpoint is made any more").unwrap();
        store.shutdown().await;
    }));
}
