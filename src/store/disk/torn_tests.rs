//! What a power cut may make of a batch that was being written: any of its sectors may be on disk or not, or hold garbage.
//! The engine has to find the batch whole or not at all, and all before it. `MUSSEL_STORE_TORN_ROUNDS` sets how often.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::OpenError;
use crate::disk::engine::{Engine, SEGMENT_BYTES, Space, Writes};
use crate::disk::inspect;
use crate::disk::lock::DirLock;
use crate::disk::tail::HEADER_BYTES;
use crate::sim::random::Random;

const SECTOR_BYTES: usize = 512;
const ROUNDS: &str = "MUSSEL_STORE_TORN_ROUNDS";

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

fn open(dir: &Path) -> Engine {
    Engine::open(dir, 1 << 20, DirLock::take(dir).unwrap()).unwrap().0
}

fn records(engine: &Engine) -> Records {
    engine.scan(Space::State, b"").map(Result::unwrap).collect()
}

/// Mostly small ones, as votes are; some long ones, as checkpoints are. One that `is_long` does often not fit a segment's rest.
fn batch(random: &Random, records: &mut Records, is_long: bool) -> Writes {
    let mut writes = Writes::default();
    let (count, bytes_max) = match random.below(8) {
        _ if is_long => (90, 6000),
        0 => (1 + random.below(60), 6000),
        _ => (1 + random.below(4), 1500),
    };
    for _ in 0..count {
        let key = format!("/k/{}", random.below(200)).into_bytes();
        if random.chance(20) {
            writes.remove(Space::State, &key);
            records.remove(&key);
        } else {
            let value: Vec<u8> = (0..random.below(bytes_max)).map(|_| random.next() as u8).collect();
            writes.put(Space::State, &key, value.clone());
            records.insert(key, value);
        }
    }
    writes
}

/// What is on disk, of what was there before and what was written over it. Garbage is only where something else was written:
/// a sector that ends an older batch and begins this one still ends the older one. One with the header of a segment is as it
/// was or as it was to be, as disks write sectors.
pub(crate) fn tear(before: &[u8], after: &[u8], segment_bytes: usize, random: &Random) -> Vec<u8> {
    let mut torn = after.to_vec();
    if random.chance(30) && before.len() < after.len() {
        torn.truncate(before.len());
    }
    let keeps = [0, 10, 50, 90, 100][random.below(5) as usize];
    let garbage = random.chance(30);
    let up_to = random.chance(50).then(|| random.below(40));
    let mut written = 0;
    for (number, sector) in torn.chunks_mut(SECTOR_BYTES).enumerate() {
        let from = number * SECTOR_BYTES;
        let old = before.get(from..).map_or(&[][..], |rest| &rest[..rest.len().min(sector.len())]);
        if old == &*sector {
            continue;
        }
        written += 1;
        // In the order of the writes, or in none.
        let is_kept = match up_to {
            Some(up_to) => written <= up_to,
            None => random.chance(keeps),
        };
        if is_kept {
            continue;
        }
        let is_garbage = garbage && !from.is_multiple_of(segment_bytes) && random.chance(20);
        for (place, byte) in sector.iter_mut().enumerate() {
            let before = old.get(place).copied().unwrap_or(0);
            if *byte != before {
                *byte = if is_garbage { random.next() as u8 } else { before };
            }
        }
    }
    torn
}

#[test]
fn a_torn_batch_is_found_and_dropped_whole() {
    let rounds = std::env::var(ROUNDS).map_or(12, |rounds| rounds.parse().unwrap());
    let (mut whole, mut dropped, mut crossed) = (0, 0, 0);
    for seed in 0..rounds {
        let random = Random::new(seed);
        let work = tempfile::tempdir().unwrap();
        let (running, left) = (work.path().join("running"), work.path().join("left"));
        fs::create_dir_all(&running).unwrap();
        let db = |dir: &Path| dir.join("sled/db");
        let engine = open(&running);
        let mut now = Records::new();
        for _ in 0..random.below(60) {
            engine.write(&batch(&random, &mut now, false)).unwrap();
        }
        // After each: what a crash in the middle of it may leave.
        for n in 0..6 {
            let (old, before) = (now.clone(), fs::read(db(&running)).unwrap());
            engine.write(&batch(&random, &mut now, n == 0)).unwrap();
            let after = fs::read(db(&running)).unwrap();
            // A segment begins within the batch, at the end of the file or in place of one that is no longer needed.
            let header = |bytes: &[u8], at: usize| bytes.get(at..at + HEADER_BYTES).map(<[u8]>::to_vec);
            let begins = (0..after.len()).step_by(SEGMENT_BYTES).any(|at| header(&before, at) != header(&after, at));
            crossed += usize::from(begins);
            for _ in 0..4 {
                let _ = fs::remove_dir_all(&left);
                fs::create_dir_all(left.join("sled/blobs")).unwrap();
                for file in fs::read_dir(running.join("sled")).unwrap().map(Result::unwrap) {
                    if file.file_type().unwrap().is_file() {
                        fs::copy(file.path(), left.join("sled").join(file.file_name())).unwrap();
                    }
                }
                fs::write(db(&left), tear(&before, &after, SEGMENT_BYTES, &random)).unwrap();
                if let Err(error) = inspect::inspect(&db(&left), &left, true) {
                    panic!("seed {seed}: a torn end is taken for damage: {error}");
                }
                let opened = open(&left);
                let found = records(&opened);
                if found == now {
                    whole += 1;
                } else if found == old {
                    dropped += 1;
                } else {
                    let kept = |records: &Records| {
                        records.iter().filter(|(key, value)| found.get(*key) == Some(value)).count()
                    };
                    panic!(
                        "seed {seed}: {} records, {} of {} old ones and {} of {} new ones",
                        found.len(),
                        kept(&old),
                        old.len(),
                        kept(&now),
                        now.len()
                    );
                }
                // It goes on from there.
                let mut more = found;
                opened.write(&batch(&random, &mut more, false)).unwrap();
                drop(opened);
                assert!(records(&open(&left)) == more, "seed {seed}: the next batch is not there");
            }
        }
    }
    assert!(whole > 0 && dropped > 0 && crossed > 0, "{whole} whole, {dropped} dropped, {crossed} crossed a segment");
}

#[test]
fn damage_before_the_last_batch_is_no_torn_end() {
    let random = Random::new(1);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sled/db");
    let engine = open(dir.path());
    let mut databases = Vec::new();
    // So few that they stay in the first segment, whose place in the file is their place in the log.
    for n in 0..60 {
        let mut writes = Writes::default();
        let value: Vec<u8> = (0..900).map(|_| random.next() as u8).collect();
        writes.put(Space::State, format!("/k/{}", n % 40).as_bytes(), value);
        engine.write(&writes).unwrap();
        databases.push(fs::read(&file).unwrap());
    }
    drop(engine);
    let whole = databases.last().unwrap().clone();
    let left = dir.path().join("left");
    let inspected = |bytes: &[u8]| {
        fs::write(&left, bytes).unwrap();
        inspect::inspect(&left, dir.path(), true)
    };
    inspected(&whole).unwrap();
    // Where the log ended before the last batches.
    let end = |back: usize| {
        let before = &databases[databases.len() - 1 - back];
        whole.iter().zip(before).position(|(last, before)| last != before).unwrap_or(before.len())
    };
    let mut torn = whole.clone();
    torn[end(1) + 20..].fill(0);
    inspected(&torn).unwrap();
    let mut found = 0;
    for (back, length) in [(2, 1), (2, 40), (5, 300), (10, 3000), (18, 1)] {
        for fill in [0, 0xff] {
            let mut damaged = whole.clone();
            let from = end(back) + 30;
            damaged[from..from + length].fill(fill);
            if damaged != whole {
                let error = inspected(&damaged).unwrap_err();
                assert!(
                    matches!(error, OpenError::Corrupt { .. }) && error.to_string().contains("at offset"),
                    "{error}"
                );
                found += 1;
            }
        }
    }
    assert!(found >= 5, "{found}");
}
