//! A disk that takes its time, and that keeps of what was not synced what it pleases, when the power goes.
//!
//! As the engine's own file: batches behind each other, each behind its length and checksum, of which those count that are
//! whole, up to the first that is not.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::disk::engine::Space;
use crate::disk::identity::Marker;
use crate::sim::random::Random;

type Records = BTreeMap<Vec<u8>, Vec<u8>>;
pub(crate) type Change = (Vec<u8>, Option<Vec<u8>>);

/// What a disk writes as a whole, or not. Real ones have more; the batches here are small.
const SECTOR_BYTES: usize = 64;
const HEAD_BYTES: usize = 8;
/// Of the log's files, whose headers count on it.
const LOG_SECTOR_BYTES: usize = 512;

#[derive(Default)]
struct Surface {
    /// What is synced, which is what a read sees.
    records: Records,
    /// Batches that were written and are not synced.
    tail: Vec<u8>,
    /// The log's files.
    log: Vec<LogFile>,
    marker: Option<Marker>,
    /// Counts power cuts: who opened it before one has nothing to say any more.
    power: u64,
    /// Syncs take this many times as long.
    slowness: u32,
    /// The next sync takes this much longer.
    stall: Duration,
}

/// A file of the log, whose owner has it synced.
#[derive(Default)]
struct LogFile {
    now: Vec<u8>,
    /// What was there, at the sectors that were written since the last sync.
    before: BTreeMap<usize, Vec<u8>>,
}

impl LogFile {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        for sector in at / LOG_SECTOR_BYTES..end.div_ceil(LOG_SECTOR_BYTES) {
            let from = sector * LOG_SECTOR_BYTES;
            let old = &self.now[from..self.now.len().min(from + LOG_SECTOR_BYTES)];
            self.before.entry(sector).or_insert_with(|| old.to_vec());
        }
        self.now[at..end].copy_from_slice(bytes);
    }

    /// Each sector is as it was or as it was to be; or what was to change is garbage. `keeps` says which are new.
    fn tear(&mut self, random: &Random, keeps: u64, garbage: bool) {
        for (sector, before) in std::mem::take(&mut self.before) {
            if random.below(100) < keeps {
                continue;
            }
            let from = sector * LOG_SECTOR_BYTES;
            for (byte, before) in self.now[from..].iter_mut().zip(before) {
                // A segment's header is one sector, which is there or not.
                let is_garbage = garbage && sector > 0 && *byte != before;
                *byte = if is_garbage { random.next() as u8 } else { before };
            }
        }
    }
}

/// What became of the batches that were not synced.
pub(crate) struct Torn {
    pub(crate) unsynced: usize,
    pub(crate) survived: usize,
    pub(crate) how: &'static str,
}

/// The disk of one machine, which outlives its processes.
#[derive(Clone)]
pub(crate) struct Machine {
    surface: Arc<Mutex<Surface>>,
    random: Random,
}

impl Machine {
    pub(crate) fn new(random: Random) -> Self {
        Self { surface: Arc::new(Mutex::new(Surface { slowness: 1, ..Surface::default() })), random }
    }

    /// What a process opens.
    pub(crate) fn open(&self) -> Platter {
        let power = self.surface.lock().unwrap().power;
        Platter { machine: self.clone(), power }
    }

    pub(crate) fn marker(&self) -> Option<Marker> {
        self.surface.lock().unwrap().marker
    }

    /// The power goes. What was not synced is there up to some byte; it may be garbage from some sector on, or lack a sector
    /// before others that are there.
    pub(crate) fn cut_power(&self) -> Torn {
        let random = &self.random;
        let mut surface = self.surface.lock().unwrap();
        let mut tail = std::mem::take(&mut surface.tail);
        let unsynced = batches(&tail).count();
        let bytes = tail.len() as u64;
        let sectors = bytes / SECTOR_BYTES as u64 + 1;
        let sector = random.below(sectors) as usize * SECTOR_BYTES;
        let how = match random.below(4) {
            0 => "all is there",
            1 => {
                tail.truncate(random.below(bytes + 1) as usize);
                "its end is missing"
            }
            2 => {
                tail[sector..].iter_mut().for_each(|byte| *byte = random.next() as u8);
                "its end is garbage"
            }
            _ => {
                tail.iter_mut().skip(sector).take(SECTOR_BYTES).for_each(|byte| *byte = 0);
                "a sector of it is missing"
            }
        };
        let mut survived = 0;
        for change in batches(&tail).inspect(|_| survived += 1).flatten() {
            apply(&mut surface.records, change);
        }
        let keeps = [0, 10, 50, 90, 100][random.below(5) as usize];
        let garbage = random.chance(30);
        surface.log.iter_mut().for_each(|file| file.tear(random, keeps, garbage));
        surface.power += 1;
        surface.stall = Duration::ZERO;
        Torn { unsynced, survived, how }
    }

    pub(crate) fn slow_down(&self, times: u32) {
        self.surface.lock().unwrap().slowness = times;
    }

    /// The next sync takes `time` longer.
    pub(crate) fn stall(&self, time: Duration) {
        self.surface.lock().unwrap().stall = time;
    }

    fn sync_time(&self) -> Duration {
        let usual = self.random.between(Duration::from_micros(200), Duration::from_millis(3));
        let mut surface = self.surface.lock().unwrap();
        usual * surface.slowness + std::mem::take(&mut surface.stall)
    }
}

fn apply(records: &mut Records, (key, value): Change) {
    match value {
        Some(value) => records.insert(key, value),
        None => records.remove(&key),
    };
}

fn append(tail: &mut Vec<u8>, batch: &[Change]) {
    let body = postcard::to_stdvec(batch).unwrap();
    tail.extend_from_slice(&(body.len() as u32).to_le_bytes());
    tail.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    tail.extend_from_slice(&body);
}

/// Those that are whole.
fn batches(mut tail: &[u8]) -> impl Iterator<Item = Vec<Change>> {
    std::iter::from_fn(move || {
        let (head, rest) = tail.split_first_chunk::<HEAD_BYTES>()?;
        let [a, b, c, d, checksum @ ..] = *head;
        let (body, rest) = rest.split_at_checked(u32::from_le_bytes([a, b, c, d]) as usize)?;
        if body.is_empty() || u32::from_le_bytes(checksum) != crc32fast::hash(body) {
            return None;
        }
        tail = rest;
        Some(postcard::from_bytes(body).unwrap())
    })
}

#[derive(Clone)]
pub(crate) struct Platter {
    machine: Machine,
    power: u64,
}

impl Platter {
    fn with<T>(&self, act: impl FnOnce(&mut Surface) -> T) -> io::Result<T> {
        let mut surface = self.machine.surface.lock().unwrap();
        if surface.power != self.power {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the power has gone"));
        }
        Ok(act(&mut surface))
    }

    pub(crate) fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.with(|surface| surface.records.get(&[&[space as u8], key].concat()).cloned())
    }

    pub(crate) fn scan(
        &self,
        space: Space,
        start: &[u8],
    ) -> impl Iterator<Item = io::Result<(Vec<u8>, Vec<u8>)>> + use<> {
        let range = [&[space as u8], start].concat()..vec![space as u8 + 1];
        let found = self.with(|surface| -> Vec<_> {
            surface.records.range(range).map(|(key, value)| Ok((key[1..].to_vec(), value.clone()))).collect()
        });
        found.unwrap_or_else(|error| vec![Err(error)]).into_iter()
    }

    /// How long the next sync takes.
    pub(crate) fn sync_time(&self) -> Duration {
        self.machine.sync_time()
    }

    pub(crate) fn log_files(&self) -> io::Result<u32> {
        self.with(|surface| surface.log.len() as u32)
    }

    pub(crate) fn create_log_file(&self, number: u32, bytes: u64) -> io::Result<()> {
        self.with(|surface| {
            assert_eq!(surface.log.len(), number as usize);
            surface.log.push(LogFile { now: vec![0; bytes as usize], before: BTreeMap::new() });
        })
    }

    pub(crate) fn with_log_file<T>(&self, number: u32, act: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        self.with(|surface| act(&surface.log[number as usize].now))
    }

    pub(crate) fn write_log_file(&self, number: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|surface| surface.log[number as usize].write(at as usize, bytes))
    }

    pub(crate) fn sync_log(&self) -> io::Result<()> {
        self.with(|surface| surface.log.iter_mut().for_each(|file| file.before.clear()))
    }

    /// A batch, and the marker file after it, as the disk thread has them written. Durable when this returns, if `syncs`.
    pub(crate) async fn write(&self, batch: Vec<Change>, marker: Option<Marker>, syncs: bool) -> io::Result<()> {
        if !batch.is_empty() {
            self.with(|surface| append(&mut surface.tail, &batch))?;
        }
        if !batch.is_empty() && syncs {
            tokio::time::sleep(self.machine.sync_time()).await;
            self.with(|surface| {
                let tail = std::mem::take(&mut surface.tail);
                for change in batches(&tail).flatten() {
                    apply(&mut surface.records, change);
                }
            })?;
        }
        if let Some(marker) = marker {
            tokio::time::sleep(self.machine.sync_time()).await;
            self.set_marker(&marker)?;
        }
        Ok(())
    }

    /// It is replaced as a whole, by a rename.
    pub(crate) fn set_marker(&self, marker: &Marker) -> io::Result<()> {
        self.with(|surface| surface.marker = Some(*marker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_was_not_synced_whole_batches_survive_in_their_order() {
        let batch = |n: u8| vec![(vec![b'l', n], Some(vec![n; 50])), (vec![b'm'], Some(vec![n]))];
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let machine = Machine::new(Random::new(seed));
            let old = machine.open();
            for n in 1..=4 {
                old.with(|surface| append(&mut surface.tail, &batch(n))).unwrap();
            }
            let torn = machine.cut_power();
            assert!(old.get(Space::Meta, b"").is_err(), "it was opened before the cut");
            let new = machine.open();
            let last = new.get(Space::Meta, b"").unwrap().map_or(0, |value| value[0]);
            let records = new.scan(Space::Log, b"").count();
            assert_eq!((usize::from(last), records, torn.unsynced), (torn.survived, torn.survived, 4), "{}", torn.how);
            seen.insert((torn.survived, torn.how));
        }
        assert!(seen.len() > 10, "{seen:?}");
    }
}
