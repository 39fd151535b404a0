//! Faults that a world can be given, to show that it notices them.

use std::sync::LazyLock;

pub(crate) const FAULT: &str = "MUSSEL_SIM_FAULT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The log says that entries are durable, and is synced only now and then.
    UnsyncedLog,
    /// The database does so with votes and checkpoints.
    UnsyncedState,
}

/// Whoever does not sync does so every so many writes.
pub(crate) const SYNCED_ONE_IN: u64 = 20;

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UnsyncedLog => "unsynced-log",
            Self::UnsyncedState => "unsynced-state",
        }
    }

    /// Whether this process's world has it.
    pub(crate) fn is_given(self) -> bool {
        static GIVEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(FAULT).ok());
        GIVEN.as_deref() == Some(self.name())
    }
}
