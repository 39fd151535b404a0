//! A place in the store for what makes a new machine the cluster's server. What it is, and that nobody can read it who may
//! not, is the affair of whoever puts it there; here it is bytes.

use bytes::Bytes;
use mussel_store::{CommitError, Freshness, Precondition, ReadError, Revision, Txn};

use crate::ApiServer;

/// Outside of what the API serves.
pub const KEY: &[u8] = b"/mussel/bootstrap";

impl ApiServer {
    /// What is there, and since when.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn bootstrap_data(&self) -> Result<Option<(Bytes, Revision)>, ReadError> {
        let snapshot = self.context().store.snapshot(Freshness::Linearizable).await?;
        Ok(snapshot.get(KEY).map(|stored| (stored.stored().clone(), stored.revision)))
    }

    /// Replaces what was there since `before`.
    ///
    /// # Errors
    /// `Refused` when it has been replaced already.
    pub async fn put_bootstrap_data(&self, before: Option<Revision>, data: Bytes) -> Result<Revision, CommitError> {
        let key = Bytes::from_static(KEY);
        let precondition = match before {
            Some(revision) => Precondition::At(key.clone(), revision),
            None => Precondition::Absent(key.clone()),
        };
        let txn = Txn { preconditions: vec![precondition], puts: vec![(key, data)], deletes: Vec::new() };
        self.context().store.commit(txn).await
    }
}
