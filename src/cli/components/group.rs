//! etcd's arguments, for what takes its place: the group of servers.

use std::time::Duration;

use mussel_store::Timing;

use super::values::number;
use super::{Argument, ArgumentError, Unused};

const REASONS: [(&str, &str); 4] = [
    ("quota-backend-bytes", "the store has no size of its own to run into"),
    ("auto-compaction-*", "old revisions go by themselves"),
    ("snapshot-count", "checkpoints follow the size of the log"),
    ("listen-metrics-urls", "figures are served at /metrics of the API"),
];
/// The longest that etcd takes.
const ELECTION_MILLISECONDS_MAX: u64 = 50_000;

/// `heartbeat-interval` and `election-timeout`, in milliseconds. As in etcd the first bounds the round trips between servers,
/// and the second is about how long a leader may be silent. All servers should have the same.
pub fn timing(texts: &[String], unused: &mut Unused) -> Result<Timing, ArgumentError> {
    let arguments = Argument::list("--etcd-arg", texts);
    let mut timing = Timing::default();
    let mut election = None;
    for argument in &arguments {
        match argument.name.as_str() {
            "heartbeat-interval" => {
                let interval = argument.read(number(50, ELECTION_MILLISECONDS_MAX / 5))?;
                timing.heartbeat_interval = Duration::from_millis(interval);
                // Without the other one: in the proportion of the defaults.
                if election.is_none() {
                    set_election(&mut timing, interval * 4);
                }
            }
            "election-timeout" => {
                let silence = argument.read(number(500, ELECTION_MILLISECONDS_MAX))?;
                set_election(&mut timing, silence);
                election = Some(argument);
            }
            _ => unused.note(argument, &[], &REASONS),
        }
    }
    if let Some(argument) = election {
        argument.read(|_| {
            let bears = timing.election_timeout_min > timing.heartbeat_interval;
            if bears { Ok(()) } else { Err("must be at least five times the heartbeat-interval".to_owned()) }
        })?;
    }
    Ok(timing)
}

/// A follower that heard nothing for the longer of the two and a random time between them asks to lead: 0.8 to 1 times the silence.
fn set_election(timing: &mut Timing, silence_milliseconds: u64) {
    timing.election_timeout_max = Duration::from_millis(silence_milliseconds / 2);
    timing.election_timeout_min = Duration::from_millis(silence_milliseconds * 3 / 10);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<Timing, String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        timing(&texts, &mut Unused::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn etcds_names_set_the_clockwork() {
        assert_eq!(read(&[]), Ok(Timing::default()));
        let slow = read(&["heartbeat-interval=500", "election-timeout=5000"]).unwrap();
        assert_eq!(slow.heartbeat_interval, Duration::from_millis(500));
        assert_eq!((slow.election_timeout_min.as_millis(), slow.election_timeout_max.as_millis()), (1500, 2500));
        assert_eq!(read(&["election-timeout=5000", "heartbeat-interval=500"]), Ok(slow), "in any order");
        let alone = read(&["heartbeat-interval=500"]).unwrap();
        assert!(alone.election_timeout_min > alone.heartbeat_interval);
        assert!(read(&["heartbeat-interval=0"]).is_err());
        let error = read(&["heartbeat-interval=500", "election-timeout=1000"]).unwrap_err();
        assert!(error.contains("five times"), "{error}");
    }
}
