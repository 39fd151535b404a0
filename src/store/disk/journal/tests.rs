use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use openraft::EntryPayload;

use super::*;
use crate::disk::database::Database;
use crate::disk::engine::{Engine, Space, Writes};
use crate::disk::identity;
use crate::disk::lock::DirLock;
use crate::disk::records;
use crate::disk::torn_tests::tear;
use crate::raft::{self, LeaderId, SimulatedRuntime};
use crate::sim::random::Random;
use crate::{Config, Freshness, Revision, Store, Txn};

const IDENTITY: Identity = Identity { cluster: 7, member: 3 };
const SMALL: u64 = 8192;

fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

/// An entry of about `bytes` bytes that do not compress.
fn entry(term: u64, index: u64, bytes: usize) -> Encoded {
    let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ term;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let value: Vec<u8> = (0..bytes).map(|_| noise()).collect();
    let txn = Txn { puts: vec![("/k".into(), value.into())], ..Txn::default() };
    let payload = EntryPayload::Normal(raft::Batch { id: None, txns: Arc::new(vec![txn]) });
    (id(term, index), records::encode_entry(&raft::Entry { log_id: id(term, index), payload }).unwrap())
}

fn open_after(dir: &Path, applied: u64) -> Result<Journal, JournalError> {
    Journal::open(Place::Directory(dir.to_path_buf()), IDENTITY, SMALL, applied)
}

fn open(dir: &Path) -> Journal {
    open_after(dir, u64::MAX).unwrap()
}

fn append(journal: &Journal, entries: &[Encoded]) {
    let staged = journal.stage(entries).unwrap();
    staged.sync().unwrap();
    journal.settle(staged);
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(Result::unwrap);
    files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
}

/// What a journal has to hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    entries: BTreeMap<u64, Vec<u8>>,
    last: Option<LogId>,
    purged: u64,
}

impl Model {
    fn append(&mut self, entries: &[Encoded]) {
        self.entries.extend(entries.iter().map(|(id, entry)| (id.index, entry.clone())));
        self.last = entries.last().map(|(id, _)| *id);
    }

    fn cut_back(&mut self, last: Option<LogId>) {
        self.entries.split_off(&last.map_or(0, |id| id.index + 1));
        self.last = last;
    }

    fn purge(&mut self, id: LogId) {
        self.purged = id.index;
        self.entries = self.entries.split_off(&(id.index + 1));
        if self.last.is_none_or(|last| last.index < id.index) {
            self.last = Some(id);
        }
    }

    fn is_in(&self, journal: &Journal) -> bool {
        let next = self.entries.keys().last().copied().unwrap_or(self.purged) + 1;
        journal.start().map_or(0, |id| id.index) <= self.purged
            && journal.read(next).unwrap().is_none()
            && self.entries.iter().all(|(index, entry)| journal.read(*index).unwrap().as_ref() == Some(entry))
    }
}

#[test]
fn entries_come_back_and_files_are_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    assert_eq!((journal.start(), journal.last()), (None, None));
    let mut most = 0;
    for n in 0..400u64 {
        append(&journal, &[entry(1, 2 * n + 1, 300), entry(1, 2 * n + 2, if n % 60 == 59 { 20_000 } else { 10 })]);
        if n % 20 == 19 {
            journal.purge(id(1, 2 * n - 10));
        }
        if n % 50 == 49 {
            journal = open(dir.path());
        }
        assert_eq!(journal.last(), Some(id(1, 2 * n + 2)));
        assert_eq!(journal.read(2 * n + 1).unwrap(), Some(entry(1, 2 * n + 1, 300).1));
        most = most.max(files(dir.path()).len());
    }
    assert!(most <= 10, "{most} files");
    assert!(journal.start().unwrap().index > 700, "{:?}", journal.start());
    assert_eq!(journal.read(journal.start().unwrap().index).unwrap(), None);
    let bytes: usize = files(dir.path()).values().map(Vec::len).sum();
    assert_eq!(journal.bytes_on_disk().unwrap(), bytes as u64);
    let checked: Vec<_> = (0..).map_while(|nth| journal.check(nth)).map(Result::unwrap).collect();
    assert!(checked.len() > 1 && checked.iter().all(|bytes| *bytes > RECORDS_AT), "{checked:?}");
}

#[test]
fn a_log_that_is_behind_the_state_begins_anew_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    append(&journal, &[entry(1, 1, 10), entry(1, 2, 10)]);
    journal.purge(id(2, 50));
    assert_eq!((journal.start(), journal.last()), (Some(id(2, 50)), Some(id(2, 50))));
    assert_eq!(journal.read(2).unwrap(), None);
    // Nothing is noted of it before something follows.
    assert_eq!(open(dir.path()).last(), Some(id(1, 2)));
    append(&journal, &[entry(2, 51, 10)]);
    let journal = open_after(dir.path(), 50).unwrap();
    assert_eq!((journal.start(), journal.last()), (Some(id(2, 50)), Some(id(2, 51))));
    assert_eq!(journal.read(51).unwrap(), Some(entry(2, 51, 10).1));
    match open_after(dir.path(), 49) {
        Err(JournalError::Damaged { detail, .. }) => assert!(detail.contains("after entry 50"), "{detail}"),
        other => panic!("{:?}", other.map(drop)),
    }
}

/// Everything that may happen to a journal, with crashes that tear what was being written. `MUSSEL_STORE_TORN_ROUNDS` sets how
/// often.
#[test]
fn whatever_happens_what_was_durable_is_there() {
    let (mut whole, mut dropped) = (0, 0);
    let rounds = std::env::var("MUSSEL_STORE_TORN_ROUNDS").map_or(40, |rounds| rounds.parse().unwrap());
    for seed in 0..rounds {
        let random = Random::new(seed);
        let work = tempfile::tempdir().unwrap();
        let mut dir = work.path().join("0");
        fs::create_dir(&dir).unwrap();
        let mut journal = open(&dir);
        let mut model = Model::default();
        let (mut term, mut state) = (1, 0);
        for step in 1..=60 {
            let next = model.last.map_or(1, |id| id.index + 1);
            let mut after = model.clone();
            let (before, staged) = match random.below(10) {
                0 => {
                    let kept = state + random.below(next - state);
                    let last = (kept > 0).then(|| id(term, kept));
                    term += 1;
                    after.cut_back(last);
                    (files(&dir), journal.stage_cut(last).unwrap())
                }
                1 => {
                    // A state may be beyond the log, when it was got from another member.
                    state += random.below(next + 3 - state);
                    if state > 0 {
                        model.purge(id(term, state));
                        journal.purge(id(term, state));
                    }
                    continue;
                }
                _ => {
                    let count = 1 + random.below(4);
                    let bytes = |index| random.below(if index % 17 == 0 { 12_000 } else { 900 }) as usize;
                    let entries: Vec<_> = (next..next + count).map(|index| entry(term, index, bytes(index))).collect();
                    after.append(&entries);
                    (files(&dir), journal.stage(&entries).unwrap())
                }
            };
            if random.chance(25) {
                let left = work.path().join(step.to_string());
                fs::create_dir(&left).unwrap();
                for (name, now) in files(&dir) {
                    // A new one is made as a whole before it is written to.
                    let fresh = vec![0; now.len()];
                    let before = before.get(&name).unwrap_or(&fresh);
                    fs::write(left.join(name), tear(before, &now, usize::MAX, &random)).unwrap();
                }
                dir = left;
                journal = match open_after(&dir, state) {
                    Ok(journal) => journal,
                    Err(error) => panic!("seed {seed}, step {step}: {error}"),
                };
                if journal.last().is_none_or(|last| last.index < state) && state > 0 {
                    journal.purge(id(term, state));
                }
                if after.is_in(&journal) {
                    whole += 1;
                    model = after;
                } else {
                    dropped += 1;
                    assert!(model.is_in(&journal), "seed {seed}, step {step}");
                }
                model.last = journal.last();
            } else {
                staged.sync().unwrap();
                journal.settle(staged);
                model = after;
                assert_eq!(journal.last(), model.last, "seed {seed}, step {step}");
            }
            if random.chance(10) {
                journal.reopen().unwrap();
            }
            assert!(model.is_in(&journal), "seed {seed}, step {step}");
        }
        assert!(files(&dir).values().map(Vec::len).sum::<usize>() < 40 * SMALL as usize, "seed {seed}");
    }
    assert!(whole > 30 && dropped > 30, "{whole} whole, {dropped} dropped");
}

#[test]
fn damage_is_named_and_the_torn_end_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let mut ends = Vec::new();
    for index in 1..=60 {
        append(&journal, &[entry(1, index, 400)]);
        ends.push((journal.index().segments.back().unwrap().slot.number(), journal.writer().end));
    }
    let newest = ends.last().unwrap().0;
    let flip = |slot: u32, at: u64| {
        let path = dir.path().join(slot.to_string());
        let mut bytes = fs::read(&path).unwrap();
        bytes[at as usize] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    for (index, (slot, end)) in (1u64..).zip(&ends) {
        // In its body, and in its head.
        for back in [5, 410] {
            flip(*slot, end - back);
            let opened = open_after(dir.path(), 0);
            match opened {
                Ok(journal) => {
                    assert_eq!((index, journal.last()), (60, Some(id(1, 59))), "{back} bytes before the end")
                }
                Err(JournalError::Damaged { file, detail }) => {
                    assert!(index < 60, "{detail}");
                    assert!(file.ends_with(slot.to_string()) && detail.contains("at offset"), "{detail}");
                }
                Err(error) => panic!("{error}"),
            }
            flip(*slot, end - back);
        }
    }
    // A header; that of the newest segment, too.
    for slot in [ends[30].0, newest] {
        flip(slot, 60);
        assert!(matches!(open_after(dir.path(), 0), Err(JournalError::Damaged { .. })), "{slot}");
        flip(slot, 60);
    }
    // The state has it: nothing is lost.
    let (slot, end) = ends[3];
    flip(slot, end - 5);
    let journal = open_after(dir.path(), 45).unwrap();
    assert_eq!((journal.last(), journal.read(60).unwrap()), (Some(id(1, 60)), Some(entry(1, 60, 400).1)));
    assert_eq!(journal.read(4).unwrap(), None);
    // Found while it runs.
    let (slot, end) = ends[50];
    flip(slot, end - 5);
    let found: Vec<_> = (0..).map_while(|nth| journal.check(nth)).filter_map(Result::err).collect();
    assert_eq!(found.len(), 1);
    assert!(found[0].to_string().contains(&format!("/{slot}: ")), "{}", found[0]);
    assert_eq!(journal.read(51).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn another_members_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    append(&open(dir.path()), &[entry(1, 1, 10)]);
    let other = Identity { member: 4, ..IDENTITY };
    let opened = Journal::open(Place::Directory(dir.path().to_path_buf()), other, SMALL, 0);
    assert!(matches!(opened, Err(JournalError::Damaged { .. })));
}

/// Makes of the directory of a store what the layout before had.
fn go_back(dir: &Path) {
    let log = dir.join(DIRECTORY);
    let marker = identity::read(dir).unwrap().unwrap();
    let journal = Journal::open(Place::Directory(log.clone()), marker.identity, SEGMENT_BYTES, 0).unwrap();
    let (engine, _closed) = Engine::open(dir, 1 << 20, DirLock::take(dir).unwrap()).unwrap();
    let mut writes = Writes::default();
    let first = journal.start().map_or(0, |id| id.index + 1);
    for index in first..=journal.last().unwrap().index {
        if let Some(entry) = journal.read(index).unwrap() {
            writes.put(Space::Log, &index.to_be_bytes(), entry);
        }
    }
    if let Some(start) = journal.start() {
        writes.put(Space::Meta, b"purged", records::encode_log_id(start).unwrap());
    }
    engine.write(&writes).unwrap();
    fs::remove_dir_all(log).unwrap();
    let file = dir.join("identity");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("format=4", "format=3")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layout_before_is_read_and_replaced() {
    SimulatedRuntime::scope(1, comes_from_the_layout_before()).await;
}

async fn comes_from_the_layout_before() {
    let dir = tempfile::tempdir().unwrap();
    let config = || {
        let mut config = Config::new(dir.path());
        config.log_bytes_max = 20_000;
        config
    };
    let mut commits = 0;
    for round in 0..4 {
        let store = Store::open(config()).await.unwrap();
        assert_eq!(store.revision(), Revision(commits), "round {round}");
        for _ in 0..100 {
            commits += 1;
            let puts = vec![(format!("/k/{}", commits % 37).into(), vec![commits as u8; 500].into())];
            store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
        }
        store.shutdown().await;
        go_back(dir.path());
        // A journal that an earlier try left behind, before an older version went on, is of no account.
        fs::create_dir(dir.path().join(DIRECTORY)).unwrap();
        fs::write(dir.path().join(DIRECTORY).join("0"), "stale").unwrap();
    }
    let store = Store::open(config()).await.unwrap();
    let snapshot = store.snapshot(Freshness::Linearizable).await.unwrap();
    assert_eq!((store.revision(), snapshot.len()), (Revision(commits), 37));
    for n in commits - 36..=commits {
        assert_eq!(snapshot.get(format!("/k/{}", n % 37).as_bytes()).unwrap().revision, Revision(n));
    }
    store.shutdown().await;
    assert!(identity::has_journal(dir.path()).unwrap());
    let (engine, _closed) = Engine::open(dir.path(), 1 << 20, DirLock::take(dir.path()).unwrap()).unwrap();
    let database = Database::Engine(Box::new(engine));
    assert_eq!(database.scan(Space::Log, &[]).count(), 0);
}
