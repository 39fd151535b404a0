//! The configuration in the store: sealed, with what may be known of it beside it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Outside of what the API serves.
pub const KEY: &[u8] = b"/mussel/encryption";
const FORMAT: u32 = 1;

/// How far a change of keys has come, by k3s' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Start,
    /// There is a new key, which all servers read with.
    Prepare,
    /// The new key is written with.
    Rotate,
    /// Objects are to be written anew; or are just being.
    ReencryptRequest,
    ReencryptActive,
    ReencryptFinished,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Prepare => "prepare",
            Self::Rotate => "rotate",
            Self::ReencryptRequest => "reencrypt_request",
            Self::ReencryptActive => "reencrypt_active",
            Self::ReencryptFinished => "reencrypt_finished",
        }
    }

    pub fn is_reencrypting(self) -> bool {
        matches!(self, Self::ReencryptRequest | Self::ReencryptActive)
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    format: u32,
    pub stage: Stage,
    /// Old keys stay after the objects were written anew.
    #[serde(default)]
    pub keeps_keys: bool,
    /// Of the configuration.
    pub hash: String,
    sealed: String,
}

impl Record {
    pub fn new(stage: Stage, keeps_keys: bool, hash: String, sealed: &[u8]) -> Self {
        Self { format: FORMAT, stage, keeps_keys, hash, sealed: STANDARD.encode(sealed) }
    }

    /// `None` when it is not one that this version reads.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(bytes).ok().filter(|record| record.format == FORMAT)
    }

    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    pub fn sealed(&self) -> Vec<u8> {
        STANDARD.decode(&self.sealed).unwrap_or_default()
    }
}
