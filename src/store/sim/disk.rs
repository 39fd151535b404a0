//! A disk that forgets what was not flushed, when the power goes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use crate::disk::engine::Space;
use crate::disk::identity::Marker;
use crate::sim::random::Random;

type Records = BTreeMap<Vec<u8>, Vec<u8>>;
type Change = (Vec<u8>, Option<Vec<u8>>);

#[derive(Default)]
struct Surface {
    /// What a read sees.
    now: Records,
    /// What survives a power cut for certain.
    durable: Records,
    /// Batches since the last flush, each of which survives as a whole or not at all, and none without those before it:
    /// that is what the engine promises.
    unflushed: Vec<Vec<Change>>,
    marker: Option<Marker>,
    /// Counts power cuts: who opened it before one has nothing to say any more.
    power: u64,
    /// Flushes take this many times as long.
    slowness: u32,
}

/// The disk of one machine, which outlives its processes.
#[derive(Clone, Default)]
pub(crate) struct Machine(Arc<Mutex<Surface>>);

impl Machine {
    /// What a process opens.
    pub(crate) fn open(&self) -> Platter {
        let power = self.0.lock().unwrap().power;
        Platter { surface: self.0.clone(), power }
    }

    pub(crate) fn marker(&self) -> Option<Marker> {
        self.0.lock().unwrap().marker
    }

    /// The power goes: some of what was not flushed is lost.
    pub(crate) fn cut_power(&self, random: &Random) {
        let mut surface = self.0.lock().unwrap();
        let survives = random.below(surface.unflushed.len() as u64 + 1) as usize;
        let batches: Vec<_> = surface.unflushed.drain(..).take(survives).collect();
        for change in batches.into_iter().flatten() {
            apply(&mut surface.durable, change);
        }
        surface.now = surface.durable.clone();
        surface.power += 1;
    }

    pub(crate) fn slow_down(&self, times: u32) {
        self.0.lock().unwrap().slowness = times;
    }

    pub(crate) fn slowness(&self) -> u32 {
        self.0.lock().unwrap().slowness.max(1)
    }
}

fn apply(records: &mut Records, (key, value): Change) {
    match value {
        Some(value) => records.insert(key, value),
        None => records.remove(&key),
    };
}

pub(crate) struct Platter {
    surface: Arc<Mutex<Surface>>,
    power: u64,
}

impl Platter {
    fn with<T>(&self, act: impl FnOnce(&mut Surface) -> T) -> io::Result<T> {
        let mut surface = self.surface.lock().unwrap();
        if surface.power != self.power {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the power has gone"));
        }
        Ok(act(&mut surface))
    }

    pub(crate) fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.with(|surface| surface.now.get(&[&[space as u8], key].concat()).cloned())
    }

    pub(crate) fn scan(
        &self,
        space: Space,
        start: &[u8],
    ) -> impl Iterator<Item = io::Result<(Vec<u8>, Vec<u8>)>> + use<> {
        let range = [&[space as u8], start].concat()..vec![space as u8 + 1];
        let found = self.with(|surface| -> Vec<_> {
            surface.now.range(range).map(|(key, value)| Ok((key[1..].to_vec(), value.clone()))).collect()
        });
        found.unwrap_or_else(|error| vec![Err(error)]).into_iter()
    }

    pub(crate) fn write(&self, changes: Vec<Change>) -> io::Result<()> {
        self.with(|surface| {
            for change in &changes {
                apply(&mut surface.now, change.clone());
            }
            surface.unflushed.push(changes);
        })
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.with(|surface| {
            for change in std::mem::take(&mut surface.unflushed).into_iter().flatten() {
                apply(&mut surface.durable, change);
            }
        })
    }

    pub(crate) fn write_marker(&self, marker: &Marker) -> io::Result<()> {
        self.with(|surface| surface.marker = Some(*marker))
    }
}
