//! Short names for pod templates: equal on every server and after every restart.

use serde::Serialize;
use sha2::{Digest, Sha256};

/// No vowels and no look-alikes, so that a hash never spells a word; upstream's alphabet.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Ten letters for `object` and the number of collisions it already met.
pub fn hash<T: Serialize>(object: &T, collisions: Option<i32>) -> serde_json::Result<String> {
    let mut digest = Sha256::new();
    // Through a Value: its maps are sorted, whatever order the type has.
    digest.update(serde_json::to_vec(&serde_json::to_value(object)?)?);
    if let Some(collisions) = collisions {
        digest.update(collisions.to_le_bytes());
    }
    Ok(digest
        .finalize()
        .iter()
        .take(10)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_stable_and_knows_collisions() {
        let object = serde_json::json!({"b": 1, "a": [2]});
        let first = hash(&object, None).unwrap();
        assert_eq!(first, hash(&serde_json::json!({"a": [2], "b": 1}), None).unwrap());
        assert_eq!(first.len(), 10);
        assert!(first.bytes().all(|b| ALPHABET.contains(&b)));
        assert_ne!(first, hash(&object, Some(1)).unwrap());
    }
}
