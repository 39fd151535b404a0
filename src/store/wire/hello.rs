//! The first words on a connection: who calls whom, of which cluster, and which version both speak.
//!
//! ```text
//! caller    "MUSSELST" min:u16 max:u16 cluster:u128 from:u64 to:u64
//! answerer  "MUSSELST" code:u16 version:u16 min:u16 max:u16 cluster:u128 member:u64
//! ```
//! All numbers little-endian. The layout of these two never changes; whatever follows is of the version agreed on, the
//! newest that both know. So each member can be upgraded on its own, in any order.

use std::fmt;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{ClusterId, MemberId};

const MAGIC: &[u8; 8] = b"MUSSELST";

/// What the caller says.
pub(crate) const HELLO_BYTES: usize = 8 + 4 + 16 + 8 + 8;

/// Instead of a member's id: whoever answers.
pub(crate) const ANYBODY: MemberId = 0;

/// The versions of the protocol that a member speaks, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireVersions {
    pub oldest: u16,
    pub newest: u16,
}

impl WireVersions {
    /// What this version of the code speaks.
    pub const NOW: Self = Self { oldest: 1, newest: 1 };

    fn common(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for WireVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.oldest, self.newest)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) versions: WireVersions,
    pub(crate) cluster: ClusterId,
    pub(crate) from: MemberId,
    /// Who the caller thinks to have reached, or [`ANYBODY`].
    pub(crate) to: MemberId,
}

/// What the answering end says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answerer {
    pub(crate) versions: WireVersions,
    pub(crate) cluster: ClusterId,
    pub(crate) member: MemberId,
}

/// A connection that is agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) version: u16,
    /// Who is at the other end.
    pub(crate) member: MemberId,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    #[error("the other end does not speak our protocol")]
    NotOurs,
    #[error("the other end speaks versions {theirs} of the protocol, this one {ours}")]
    Versions { ours: WireVersions, theirs: WireVersions },
    #[error("the other end belongs to cluster {theirs}, this one to {ours}")]
    OtherCluster { ours: ClusterId, theirs: ClusterId },
    #[error("member {found:016x} answers where {wanted:016x} was looked for")]
    OtherMember { wanted: MemberId, found: MemberId },
    /// The caller was removed from the group.
    #[error("member {0:016x} was removed from the group")]
    Removed(MemberId),
    #[error("exchange first words")]
    Io(#[source] io::Error),
}

impl From<io::Error> for HelloError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

const OK: u16 = 0;
const VERSIONS: u16 = 1;
const OTHER_CLUSTER: u16 = 2;
const OTHER_MEMBER: u16 = 3;
const REMOVED: u16 = 4;

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], HelloError> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(HelloError::NotOurs)?;
    *bytes = rest;
    Ok(*head)
}

fn take_magic(bytes: &mut &[u8]) -> Result<(), HelloError> {
    if take::<8>(bytes)? == *MAGIC { Ok(()) } else { Err(HelloError::NotOurs) }
}

fn take_u16(bytes: &mut &[u8]) -> Result<u16, HelloError> {
    take(bytes).map(u16::from_le_bytes)
}

fn take_u64(bytes: &mut &[u8]) -> Result<u64, HelloError> {
    take(bytes).map(u64::from_le_bytes)
}

fn take_versions(bytes: &mut &[u8]) -> Result<WireVersions, HelloError> {
    Ok(WireVersions { oldest: take_u16(bytes)?, newest: take_u16(bytes)? })
}

/// Says who calls, and learns whether that is welcome.
pub(crate) async fn call(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    hello: Hello,
) -> Result<Agreed, HelloError> {
    let Hello { versions, cluster, from, to } = hello;
    let words = [
        &MAGIC[..],
        &versions.oldest.to_le_bytes(),
        &versions.newest.to_le_bytes(),
        &cluster.0.to_le_bytes(),
        &from.to_le_bytes(),
        &to.to_le_bytes(),
    ];
    stream.write_all(&words.concat()).await?;
    stream.flush().await?;

    let mut answer = [0; 8 + 2 + 2 + 4 + 16 + 8];
    stream.read_exact(&mut answer).await?;
    let mut rest = &answer[..];
    take_magic(&mut rest)?;
    let (code, version) = (take_u16(&mut rest)?, take_u16(&mut rest)?);
    let theirs = take_versions(&mut rest)?;
    let their_cluster = ClusterId(u128::from_le_bytes(take(&mut rest)?));
    let member = take_u64(&mut rest)?;
    match code {
        OK if (versions.oldest..=versions.newest).contains(&version) => Ok(Agreed { version, member }),
        VERSIONS => Err(HelloError::Versions { ours: versions, theirs }),
        OTHER_CLUSTER => Err(HelloError::OtherCluster { ours: cluster, theirs: their_cluster }),
        OTHER_MEMBER => Err(HelloError::OtherMember { wanted: to, found: member }),
        REMOVED => Err(HelloError::Removed(from)),
        _ => Err(HelloError::NotOurs),
    }
}

/// Hears who calls, and answers. A caller that is refused is told why.
pub(crate) async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    own: Answerer,
    is_removed: impl FnOnce(MemberId) -> bool,
) -> Result<Agreed, HelloError> {
    let mut words = [0; HELLO_BYTES];
    stream.read_exact(&mut words).await?;
    let mut rest = &words[..];
    take_magic(&mut rest)?;
    let versions = take_versions(&mut rest)?;
    let cluster = ClusterId(u128::from_le_bytes(take(&mut rest)?));
    let (from, to) = (take_u64(&mut rest)?, take_u64(&mut rest)?);

    let outcome = match own.versions.common(versions) {
        None => Err((VERSIONS, HelloError::Versions { ours: own.versions, theirs: versions })),
        Some(_) if cluster != own.cluster => {
            Err((OTHER_CLUSTER, HelloError::OtherCluster { ours: own.cluster, theirs: cluster }))
        }
        Some(_) if (to != ANYBODY && to != own.member) || from == own.member => {
            Err((OTHER_MEMBER, HelloError::OtherMember { wanted: to, found: own.member }))
        }
        Some(_) if is_removed(from) => Err((REMOVED, HelloError::Removed(from))),
        Some(version) => Ok(version),
    };
    let (code, version) = match &outcome {
        Ok(version) => (OK, *version),
        Err((code, _)) => (*code, 0),
    };
    let words = [
        &MAGIC[..],
        &code.to_le_bytes(),
        &version.to_le_bytes(),
        &own.versions.oldest.to_le_bytes(),
        &own.versions.newest.to_le_bytes(),
        &own.cluster.0.to_le_bytes(),
        &own.member.to_le_bytes(),
    ];
    stream.write_all(&words.concat()).await?;
    stream.flush().await?;
    outcome.map(|version| Agreed { version, member: from }).map_err(|(_, error)| error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);

    fn speaks(oldest: u16, newest: u16) -> WireVersions {
        WireVersions { oldest, newest }
    }

    async fn meet(hello: Hello, own: Answerer) -> (Result<Agreed, HelloError>, Result<Agreed, HelloError>) {
        let (mut near, mut far) = tokio::io::duplex(64);
        tokio::join!(call(&mut near, hello), answer(&mut far, own, |member| member == 9))
    }

    #[tokio::test]
    async fn both_ends_learn_why_they_do_not_fit() {
        let hello = Hello { versions: speaks(1, 2), cluster: CLUSTER, from: 1, to: 2 };
        let own = Answerer { versions: speaks(1, 1), cluster: CLUSTER, member: 2 };
        let (near, far) = meet(hello, own).await;
        assert_eq!(near.unwrap(), Agreed { version: 1, member: 2 });
        assert_eq!(far.unwrap(), Agreed { version: 1, member: 1 });
        let (near, far) = meet(Hello { to: ANYBODY, ..hello }, Answerer { versions: speaks(2, 3), ..own }).await;
        assert_eq!((near.unwrap().version, far.unwrap().version), (2, 2));

        let (near, far) = meet(hello, Answerer { versions: speaks(3, 4), ..own }).await;
        assert!(matches!(near, Err(HelloError::Versions { theirs, .. }) if theirs == speaks(3, 4)));
        assert!(matches!(far, Err(HelloError::Versions { theirs, .. }) if theirs == speaks(1, 2)));
        let (near, far) = meet(hello, Answerer { cluster: ClusterId(8), ..own }).await;
        assert!(matches!(near, Err(HelloError::OtherCluster { theirs: ClusterId(8), .. })));
        assert!(matches!(far, Err(HelloError::OtherCluster { theirs: CLUSTER, .. })));
        let (near, far) = meet(hello, Answerer { member: 3, ..own }).await;
        assert!(matches!(near, Err(HelloError::OtherMember { wanted: 2, found: 3 })));
        assert!(far.is_err());
        let (near, far) = meet(Hello { from: 9, ..hello }, own).await;
        assert!(matches!(near, Err(HelloError::Removed(9))));
        assert!(matches!(far, Err(HelloError::Removed(9))));
    }

    #[tokio::test]
    async fn garbage_gets_no_answer() {
        let own = Answerer { versions: speaks(1, 1), cluster: CLUSTER, member: 2 };
        let (mut near, mut far) = tokio::io::duplex(64);
        near.write_all(&[b'x'; 44]).await.unwrap();
        assert!(matches!(answer(&mut far, own, |_| false).await, Err(HelloError::NotOurs)));
        drop(far);
        assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
