//! The engine, or what stands in for it when a group is simulated.

use std::io;
use std::path::Path;

use crate::disk::engine::{Engine, Packer, Slice, Space, Writes};
use crate::disk::identity::{self, Marker};
use crate::disk::memory;

pub(crate) enum Database {
    Engine(Box<Engine>),
    #[cfg(test)]
    Simulated(crate::sim::disk::Platter),
}

impl Database {
    /// For messages.
    pub(crate) fn file(&self) -> &Path {
        match self {
            Self::Engine(engine) => engine.file(),
            #[cfg(test)]
            Self::Simulated(_) => Path::new("simulated"),
        }
    }

    pub(crate) fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Engine(engine) => engine.get(space, key),
            #[cfg(test)]
            Self::Simulated(platter) => platter.get(space, key),
        }
    }

    /// All records of `space` from `start` on, in key order.
    pub(crate) fn scan(
        &self,
        space: Space,
        start: &[u8],
    ) -> Box<dyn Iterator<Item = io::Result<(Vec<u8>, Vec<u8>)>> + '_> {
        match self {
            Self::Engine(engine) => Box::new(engine.scan(space, start)),
            #[cfg(test)]
            Self::Simulated(platter) => Box::new(platter.scan(space, start)),
        }
    }

    /// Applies all changes or none. They are durable when this returns.
    pub(crate) fn write(&self, writes: &Writes) -> io::Result<()> {
        match self {
            Self::Engine(engine) => engine.write(writes),
            #[cfg(test)]
            // Its writes take time, see `Disk::start_simulated`.
            Self::Simulated(_) => Err(io::Error::other("a simulated disk is not written to by a thread")),
        }
    }

    /// Makes records for [`Writes::put_record`]; `None` where values are not packed.
    pub(crate) fn packer(&self) -> Option<Packer> {
        match self {
            // A write packs for itself what was not packed before.
            Self::Engine(_) => Packer::new().ok(),
            #[cfg(test)]
            Self::Simulated(_) => None,
        }
    }

    /// See [`Engine::reopen`].
    pub(crate) fn reopen(&self) -> io::Result<()> {
        match self {
            Self::Engine(engine) => engine.reopen(),
            #[cfg(test)]
            Self::Simulated(_) => Ok(()),
        }
    }

    /// See [`Engine::settle`].
    pub(crate) fn settle(&self) -> io::Result<()> {
        match self {
            Self::Engine(engine) => engine.settle(),
            #[cfg(test)]
            Self::Simulated(_) => Ok(()),
        }
    }

    /// See [`Engine::forget_cached`].
    pub(crate) fn forget_cached(&self) {
        match self {
            Self::Engine(engine) => engine.forget_cached(),
            #[cfg(test)]
            Self::Simulated(_) => {}
        }
    }

    /// Gives back memory that reading or writing very much has left behind. `keys` are some of `space`, as many as there
    /// are, or a few hundred that are spread over it. Takes some tens of milliseconds.
    pub(crate) fn give_memory_back(&self, space: Space, keys: &[&[u8]]) {
        match self {
            Self::Engine(engine) => {
                engine.shrink_cache(space, keys);
                memory::trim();
            }
            #[cfg(test)]
            Self::Simulated(_) => {}
        }
    }

    /// See [`Engine::read_slice`].
    pub(crate) fn read_slice(&self, start: &[u8]) -> Slice {
        match self {
            Self::Engine(engine) => engine.read_slice(start),
            #[cfg(test)]
            Self::Simulated(_) => Slice::default(),
        }
    }

    /// Replaces the marker file in `dir`, after all that was written before.
    pub(crate) fn write_marker(&self, dir: &Path, marker: &Marker) -> io::Result<()> {
        match self {
            Self::Engine(_) => identity::write(dir, marker),
            #[cfg(test)]
            Self::Simulated(platter) => platter.set_marker(marker),
        }
    }

    pub(crate) fn bytes_on_disk(&self) -> io::Result<u64> {
        match self {
            Self::Engine(engine) => engine.bytes_on_disk(),
            #[cfg(test)]
            Self::Simulated(_) => Ok(0),
        }
    }
}
