//! Whether what clients saw of a key can be put in one order that respects time (Wing and Gong's search, with the states
//! that led nowhere remembered, as Lowe does).

use std::collections::HashSet;
use std::time::Duration;

/// A key's value: 0 for none, else the number of the write that wrote it, which no other has.
pub(crate) type Value = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    Read(Value),
    Wrote(Value),
    /// Wrote the second where the first was.
    Swapped(Value, Value),
    /// Wanted to find the first, and found the second.
    Refused(Value, Value),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) did: Did,
    pub(crate) from: Duration,
    /// `None` when its outcome is unknown: it took effect at any time after its beginning, or never.
    pub(crate) to: Option<Duration>,
}

fn step(state: Value, did: Did) -> Option<Value> {
    match did {
        Did::Read(value) => (state == value).then_some(state),
        Did::Wrote(value) => Some(value),
        Did::Swapped(old, new) => (state == old).then_some(new),
        Did::Refused(wanted, found) => (state == found && wanted != found).then_some(state),
    }
}

/// Whether some order explains it all.
pub(crate) fn is_linearizable(operations: &[Operation]) -> bool {
    assert!(operations.len() <= 128, "too many operations on one key");
    let mut operations = operations.to_vec();
    operations.sort_by_key(|operation| operation.from);
    let certain = operations
        .iter()
        .enumerate()
        .filter(|(_, operation)| operation.to.is_some())
        .fold(0u128, |mask, (index, _)| mask | 1 << index);
    let mut seen = HashSet::new();
    let mut open = vec![(0u128, 0)];
    while let Some((done, state)) = open.pop() {
        if done & certain == certain {
            return true;
        }
        // Whatever comes next began before all that is left has ended.
        let left = || (0..operations.len()).filter(|index| done & (1 << index) == 0);
        let first_end = left().filter_map(|index| operations[index].to).min().unwrap_or(Duration::MAX);
        for index in left().take_while(|index| operations[*index].from <= first_end) {
            if let Some(next) = step(state, operations[index].did) {
                let next = (done | 1 << index, next);
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(did: Did, from: u64, to: u64) -> Operation {
        let to = (to > 0).then(|| Duration::from_millis(to));
        Operation { did, from: Duration::from_millis(from), to }
    }

    #[test]
    fn tells_possible_histories_from_others() {
        use Did::{Read, Refused, Swapped, Wrote};
        let possible: &[&[(Did, u64, u64)]] = &[
            &[(Wrote(1), 1, 2), (Read(1), 3, 4)],
            &[(Wrote(1), 1, 5), (Read(0), 2, 3), (Read(1), 4, 6)],
            &[(Wrote(1), 1, 0), (Read(0), 9, 10), (Read(1), 11, 12)],
            &[(Wrote(1), 1, 2), (Swapped(1, 2), 3, 4), (Refused(1, 2), 5, 6)],
            &[(Wrote(1), 1, 9), (Wrote(2), 1, 9), (Read(1), 3, 4), (Read(2), 5, 6)],
            &[(Swapped(7, 8), 1, 0), (Read(0), 2, 3)],
        ];
        let impossible: &[&[(Did, u64, u64)]] = &[
            &[(Wrote(1), 1, 2), (Read(0), 3, 4)],
            &[(Wrote(1), 1, 5), (Read(1), 2, 3), (Read(0), 4, 6)],
            &[(Wrote(1), 1, 0), (Read(1), 2, 3), (Read(0), 4, 5)],
            &[(Wrote(1), 1, 2), (Wrote(2), 3, 4), (Swapped(1, 3), 5, 6)],
            &[(Wrote(1), 5, 6), (Read(1), 1, 2)],
            &[(Wrote(1), 1, 2), (Wrote(2), 3, 4), (Read(2), 5, 6), (Read(1), 7, 8)],
        ];
        for (cases, expected) in [(possible, true), (impossible, false)] {
            for case in cases {
                let operations: Vec<_> = case.iter().map(|(did, from, to)| operation(*did, *from, *to)).collect();
                assert_eq!(is_linearizable(&operations), expected, "{case:?}");
            }
        }
    }
}
