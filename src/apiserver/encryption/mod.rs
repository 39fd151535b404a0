//! Encryption at rest: what the store, its log and its backups hold of Secrets is encrypted.
//!
//! [`Storage`] is the wall: all of this crate reads and writes the store through it, and sees plain values. Which resources
//! are encrypted, and with which keys, says an [`EncryptionConfiguration`] in Kubernetes' own form. It lies sealed in the
//! store beside the objects ([`record`]), so that all servers follow the one that changes it, also those that were down; what
//! it is sealed with is the [`Vault`]'s affair, and not in the store.
//!
//! What always holds:
//! - A value is written under the configuration that is in force when it is committed: such a transaction has the record's
//!   revision among its preconditions. So a server that has not heard of a new key cannot write with the old one.
//! - A read uses a configuration at least as new as what it reads, since both come in the store's order.
//! - A key is dropped only after a pass over all objects has found none that needs it.

mod cipher;
mod config;
mod keyring;
mod record;
mod rotation;
mod storage;

pub use config::{ConfigError, EncryptionConfiguration};
pub use keyring::TransformError;
pub use rotation::{Encryption, EncryptionStatus, RotationError};
pub use storage::{Snapshot, Storage, StorageWatchError, Versioned, Watch};

/// What keeps the keys: seals them for the store, and has the copy that lies on this machine.
pub trait Vault: std::fmt::Debug + Send + Sync + 'static {
    /// May take a while; it is called where that does not matter.
    ///
    /// # Errors
    /// With a reason for people.
    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, String>;

    /// The inverse, for what any server of the cluster has sealed.
    ///
    /// # Errors
    /// With a reason for people.
    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, String>;

    /// The copy on this machine, `None` when there is none.
    ///
    /// # Errors
    /// With a reason for people.
    fn kept(&self) -> Result<Option<String>, String>;

    /// Replaces the copy on this machine, durably.
    ///
    /// # Errors
    /// With a reason for people.
    fn keep(&self, configuration: &str) -> Result<(), String>;
}
