//! Catches what libcontainer logs while it makes a process.
//!
//! The part that fails is often a fork of a fork, whose error reaches the caller without its cause; the cause is only
//! logged. All forks share one anonymous file, from which the caller can tell it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// A cause is a line or two.
const TEXT_BYTES_MAX: usize = 4096;

struct Errors(File);

/// Starts catching, in this process and its forks. `None` when the kernel gives no anonymous file; errors then have
/// no cause.
pub fn catch() -> Option<File> {
    let file = File::from(memfd_create(c"errors", MFdFlags::MFD_CLOEXEC).ok()?);
    let ours = file.try_clone().ok()?;
    tracing::subscriber::set_global_default(Errors(file)).ok()?;
    Some(ours)
}

/// The error that was logged first, which is the one nearest to the cause.
pub fn first(file: &File) -> Option<String> {
    let mut buffer = vec![0; TEXT_BYTES_MAX];
    let length = file.read_at(&mut buffer, 0).ok()?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    text.lines().next().map(str::to_owned)
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let line = fields.0.trim().replace('\n', " ");
        let _ = writeln!(&self.0, "{line}");
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
