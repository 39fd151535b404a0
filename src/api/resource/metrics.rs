//! The rows of the resource metrics API. They are no built-in rows: a server has them only when it measures itself, and
//! nothing of them is ever stored.

use super::Resource;
use super::row::row;

pub const METRICS_GROUP: &str = "metrics.k8s.io";

/// `nodes` and `pods` of `metrics.k8s.io/v1beta1`.
pub fn metrics() -> [Resource; 2] {
    const VERBS: &[&str] = &["get", "list"];
    let mut rows = [
        row(METRICS_GROUP, "v1beta1", "NodeMetrics", "nodes").cluster().verbs(VERBS).done(),
        row(METRICS_GROUP, "v1beta1", "PodMetrics", "pods").verbs(VERBS).done(),
    ];
    // As metrics-server names them.
    for row in &mut rows {
        row.singular = "".into();
    }
    rows
}
