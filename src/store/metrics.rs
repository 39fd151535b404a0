//! What the store tells about itself. The names say what etcd's say, so that dashboards carry over.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub commits: Counter,
    pub refused: Counter,
    pub failed: Counter,
    /// Txns that wait for their outcome.
    pub pending: Gauge,
    /// From [`crate::Store::commit`] to its answer.
    pub commit_seconds: Histogram,
    pub fsync_seconds: Histogram,
    pub apply_seconds: Histogram,
    pub checkpoint_seconds: Histogram,
    /// Times that everything on disk was read to find damage, and what was found.
    pub scrubs: Counter,
    pub scrub_errors: Counter,
    pub db_bytes: Gauge,
    pub keys: Gauge,
    pub revision: Gauge,
    pub watchers: Gauge,
    pub watchers_cut_off: Counter,
    pub has_leader: Gauge,
    pub is_leader: Gauge,
    pub leader_changes: Counter,
    pub is_learner: Gauge,
    /// From a question to another member to its answer, of whatever kind.
    pub peer_round_trip_seconds: Histogram,
    pub peer_connections: Gauge,
    pub peer_refused: Counter,
    /// Whole snapshots, to one member.
    pub snapshot_send_seconds: Histogram,
    pub snapshot_send_failures: Counter,
    pub snapshot_sent_bytes: Counter,
    /// From the first part of a snapshot to its installation.
    pub snapshot_receive_seconds: Histogram,
    /// Linearizable reads that found no leader in time.
    pub reads_failed: Counter,
}

fn seconds() -> Histogram {
    // 62 us to 2 s.
    Histogram::new(exponential_buckets(0.000_062_5, 2.0, 16))
}

fn long() -> Histogram {
    // 10 ms to 5 min.
    Histogram::new(exponential_buckets(0.01, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            commits: Counter::default(),
            refused: Counter::default(),
            failed: Counter::default(),
            pending: Gauge::default(),
            commit_seconds: seconds(),
            fsync_seconds: seconds(),
            apply_seconds: seconds(),
            checkpoint_seconds: seconds(),
            scrubs: Counter::default(),
            scrub_errors: Counter::default(),
            db_bytes: Gauge::default(),
            keys: Gauge::default(),
            revision: Gauge::default(),
            watchers: Gauge::default(),
            watchers_cut_off: Counter::default(),
            has_leader: Gauge::default(),
            is_leader: Gauge::default(),
            leader_changes: Counter::default(),
            is_learner: Gauge::default(),
            peer_round_trip_seconds: seconds(),
            peer_connections: Gauge::default(),
            peer_refused: Counter::default(),
            snapshot_send_seconds: long(),
            snapshot_send_failures: Counter::default(),
            snapshot_sent_bytes: Counter::default(),
            snapshot_receive_seconds: long(),
            reads_failed: Counter::default(),
        }
    }
}

impl Metrics {
    /// Adds all to `registry`, under names that begin with `mussel_store_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("mussel_store");
        registry.register("commits", "Transactions committed", self.commits.clone());
        registry.register("refused", "Transactions refused by a precondition", self.refused.clone());
        registry.register("proposals_failed", "Transactions that failed", self.failed.clone());
        registry.register("proposals_pending", "Transactions waiting for their outcome", self.pending.clone());
        registry.register("commit_duration_seconds", "From commit call to answer", self.commit_seconds.clone());
        registry.register("wal_fsync_duration_seconds", "Flushes of the log", self.fsync_seconds.clone());
        registry.register("apply_duration_seconds", "Application of one Raft entry", self.apply_seconds.clone());
        registry.register("checkpoint_duration_seconds", "Checkpoints", self.checkpoint_seconds.clone());
        registry.register("scrubs", "Times that all records on disk were read", self.scrubs.clone());
        registry.register("scrub_errors", "Damaged records found on disk", self.scrub_errors.clone());
        registry.register("db_total_size_bytes", "Size of the database on disk", self.db_bytes.clone());
        registry.register("keys", "Keys in the newest revision", self.keys.clone());
        registry.register("revision", "Newest applied revision", self.revision.clone());
        registry.register("watchers", "Open watches", self.watchers.clone());
        registry.register("slow_watchers_cut_off", "Watches cut off for being slow", self.watchers_cut_off.clone());
        registry.register("has_leader", "1 when a leader is known", self.has_leader.clone());
        registry.register("is_leader", "1 when this member leads", self.is_leader.clone());
        registry.register("is_learner", "1 while this member does not vote", self.is_learner.clone());
        let round_trip = self.peer_round_trip_seconds.clone();
        registry.register(
            "peer_round_trip_time_seconds",
            "From a question to another member to its answer",
            round_trip,
        );
        registry.register("peer_connections", "Connections of other members", self.peer_connections.clone());
        registry.register("peer_refused", "Connections that were refused", self.peer_refused.clone());
        let sent = self.snapshot_send_seconds.clone();
        registry.register("snapshot_send_duration_seconds", "Snapshots to other members", sent);
        let failed = self.snapshot_send_failures.clone();
        registry.register("snapshot_send_failures", "Snapshots that were not sent to their end", failed);
        let bytes = self.snapshot_sent_bytes.clone();
        registry.register("snapshot_sent_bytes", "Snapshots to other members", bytes);
        let received = self.snapshot_receive_seconds.clone();
        registry.register("snapshot_receive_duration_seconds", "Snapshots of the leader, to installation", received);
        registry.register("reads_failed", "Linearizable reads without a leader", self.reads_failed.clone());
        registry.register("leader_changes_seen", "Leader changes seen", self.leader_changes.clone());
    }
}
