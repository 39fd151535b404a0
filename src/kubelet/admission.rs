//! The last check before a pod may run here. The scheduler made the same checks with older knowledge, and pods may name
//! their node without asking it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod};
use mussel_api::quantity::Quantity;

use crate::allocation::{self, Allocations, Given, Pending};
use crate::shared::Shared;
use crate::status::Verdict;
use crate::{pod, resources, sysctls};

fn rejected(reason: &str, message: &str) -> Verdict {
    Verdict { reason: reason.into(), message: format!("Pod was rejected: {message}"), disruption: false }
}

/// # Errors
/// Why the pod fails, in upstream's words.
pub async fn admit(shared: &Shared, pod: &Pod) -> Result<(), Verdict> {
    sysctls::check(pod, &shared.config.tuning.allowed_unsafe_sysctls)
        .map_err(|message| rejected("SysctlForbidden", &message))?;
    let mut admitted = shared.admitted.lock().await;
    let others = others(shared, &mut admitted, pod);
    let labels = shared.node.get("", &shared.config.node_name).and_then(|n| n.metadata.labels.clone());
    let labels = labels.unwrap_or_else(|| shared.config.labels.clone());
    check(pod, others.iter().map(AsRef::as_ref), &Room::of(shared), &labels, &shared.config.node_name)?;
    admitted.insert(pod::uid(pod), Given::wanted(pod));
    Ok(())
}

/// A pod that ran before this process did keeps its room.
pub async fn readmit(shared: &Shared, pod: &Pod) {
    shared.admitted.lock().await.insert(pod::uid(pod), Given::before_restart(pod));
}

/// An admitted pod with what it may have now and, where that is not all that it asks for, why.
pub async fn allocate(shared: &Shared, pod: &Arc<Pod>) -> (Arc<Pod>, Option<Pending>) {
    let mut admitted = shared.admitted.lock().await;
    let now = admitted.apply(pod);
    if Arc::ptr_eq(&now, pod) {
        admitted.forget_wait(pod::uid(pod));
        return (now, None);
    }
    let others = others(shared, &mut admitted, pod);
    if let Err(pending) = Room::of(shared).resize(pod, &now, others.iter().map(AsRef::as_ref)) {
        if pending.reason == DEFERRED {
            admitted.defer(pod::uid(pod));
        } else {
            admitted.forget_wait(pod::uid(pod));
        }
        return (now, Some(pending));
    }
    admitted.insert(pod::uid(pod), Given::wanted(pod));
    drop(admitted);
    if !allocation::grows(&now, pod).is_empty() {
        freed(shared).await;
    }
    (pod.clone(), None)
}

/// Some pod has less than before: those that wait for room look again.
pub async fn freed(shared: &Shared) {
    shared.admitted.lock().await.deferred().for_each(|uid| shared.registry.wake(uid));
}

/// The admitted pods beside `pod`, as they were let in.
fn others(shared: &Shared, admitted: &mut Allocations, pod: &Pod) -> Vec<Arc<Pod>> {
    let all = shared.registry.list();
    let alive: Vec<_> = all.into_iter().filter(|(_, p)| !p.finished).map(|(p, _)| p).collect();
    admitted.retain(|uid| alive.iter().any(|p| pod::uid(p) == uid));
    let others = alive.iter().filter(|p| pod::uid(p) != pod::uid(pod) && admitted.contains(pod::uid(p)));
    others.map(|p| admitted.apply(p)).collect()
}

const DEFERRED: &str = "Deferred";

struct Room {
    pods_max: u32,
    milli_cpu: i64,
    memory: i64,
    apparmor: bool,
}

impl Room {
    fn of(shared: &Shared) -> Self {
        let room = shared.machine.room(&shared.config.tuning);
        Self {
            pods_max: shared.config.tuning.pods_max,
            milli_cpu: room.milli_cpu,
            memory: room.memory,
            apparmor: shared.machine.apparmor,
        }
    }

    /// Whether `pod`, which has what `now` says, may have what it asks for.
    fn resize<'a>(&self, pod: &Pod, now: &Pod, others: impl Iterator<Item = &'a Pod> + Clone) -> Result<(), Pending> {
        if pod::is_static(pod) {
            let message = "In-place resize of static-pods is not supported".to_owned();
            return Err(Pending { reason: "Infeasible", message });
        }
        for name in allocation::grows(pod, now) {
            let (capacity, unit): (i64, fn(&Quantity) -> i64) =
                if name == "cpu" { (self.milli_cpu, Quantity::to_milli) } else { (self.memory, Quantity::value) };
            let wanted = unit(&resources::pod_request(pod, name));
            if wanted > capacity {
                let message =
                    format!("Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {capacity}");
                return Err(Pending { reason: "Infeasible", message });
            }
            let used: i64 = others.clone().map(|p| unit(&resources::pod_request(p, name))).sum();
            if used.saturating_add(wanted) > capacity {
                let message = format!(
                    "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
                );
                return Err(Pending { reason: DEFERRED, message });
            }
        }
        Ok(())
    }
}

fn check<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    room: &Room,
    labels: &BTreeMap<String, String>,
    node: &str,
) -> Result<(), Verdict> {
    let count = others.clone().count();
    if u32::try_from(count).unwrap_or(u32::MAX) >= room.pods_max {
        let text =
            format!("Node didn't have enough resource: pods, requested: 1, used: {count}, capacity: {}", room.pods_max);
        return Err(rejected("OutOfpods", &text));
    }
    let fits = |name: &str, capacity: i64, unit: fn(&Quantity) -> i64| {
        let wanted = unit(&resources::pod_request(pod, name));
        let used: i64 = others.clone().map(|p| unit(&resources::pod_request(p, name))).sum();
        if wanted > 0 && used.saturating_add(wanted) > capacity {
            let text = format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
            );
            return Err(rejected(&format!("OutOf{name}"), &text));
        }
        Ok(())
    };
    fits("cpu", room.milli_cpu, Quantity::to_milli)?;
    fits("memory", room.memory, Quantity::value)?;
    if !room.apparmor && asks_for_apparmor(pod) {
        return Err(rejected("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"));
    }
    if !selects(pod, labels, node) {
        return Err(rejected("NodeAffinity", "Predicate NodeAffinity failed"));
    }
    let mine = ports(pod);
    let theirs: Vec<_> = others.flat_map(ports).collect();
    let clash = |a: &(String, String, i32), b: &(String, String, i32)| {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
        a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || any(&a.0) || any(&b.0))
    };
    if mine.iter().any(|a| theirs.iter().any(|b| clash(a, b))) {
        return Err(rejected("NodePorts", "Predicate NodePorts failed"));
    }
    Ok(())
}

fn asks_for_apparmor(pod: &Pod) -> bool {
    let own = pod::spec(pod).and_then(|s| s.security_context.as_ref()?.app_armor_profile.as_ref());
    let containers = pod::all_containers(pod);
    let theirs = containers.iter().filter_map(|c| c.security_context.as_ref()?.app_armor_profile.as_ref());
    own.into_iter().chain(theirs).any(|profile| profile.type_ != "Unconfined")
}

/// Address, protocol and number of each port that the pod takes on the node.
fn ports(pod: &Pod) -> Vec<(String, String, i32)> {
    let sidecars = pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c));
    let all = pod::containers(pod).iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    all.filter_map(|p| {
        let host = p.host_port.filter(|h| *h > 0)?;
        Some((p.host_ip.clone().unwrap_or_default(), p.protocol.clone().unwrap_or_else(|| "TCP".into()), host))
    })
    .collect()
}

fn selects(pod: &Pod, labels: &BTreeMap<String, String>, node: &str) -> bool {
    let Some(spec) = pod::spec(pod) else { return true };
    if spec.node_selector.iter().flatten().any(|(k, v)| labels.get(k) != Some(v)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|r| r.node_selector_terms.iter().any(|term| term_matches(term, labels, node)))
}

fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, node: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement_holds(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| requirement_holds(r, (r.key == "metadata.name").then_some(node)))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|o| o == v));
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
    let than = number(values.first().map(String::as_str));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(than).is_some_and(|(v, t)| v > t),
        "Lt" => number(value).zip(than).is_some_and(|(v, t)| v < t),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_resize_waits_for_room_that_can_be_and_fails_for_room_that_cannot() {
        let asks = |cpu: &str| pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}));
        let room = Room { pods_max: 3, milli_cpu: 1000, memory: 1 << 30, apparmor: false };
        let (now, other) = (asks("100m"), asks("700m"));
        for (wanted, expected) in [
            ("300m", None),
            (
                "301m",
                Some(("Deferred", "Node didn't have enough resource: cpu, requested: 301, used: 700, capacity: 1000")),
            ),
            ("1001m", Some(("Infeasible", "Node didn't have enough capacity: cpu, requested: 1001, capacity: 1000"))),
            ("50m", None),
        ] {
            let result = room.resize(&asks(wanted), &now, std::iter::once(&other)).err();
            let expected = expected.map(|(reason, message)| Pending { reason, message: message.into() });
            assert_eq!(result, expected, "{wanted}");
        }
    }

    #[test]
    fn pods_that_do_not_fit_are_rejected_with_upstreams_reasons() {
        let asks = |cpu: &str| pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}));
        let port = |ip: &str| {
            pod(json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]}))
        };
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let room = Room { pods_max: 3, milli_cpu: 1000, memory: 1 << 30, apparmor: false };
        let armored = |kind: &str| {
            pod(json!({"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": kind}}}]}))
        };
        let selector = |value: &str| pod(json!({"nodeSelector": {"a": value}, "containers": []}));
        for (new, others, expected) in [
            (asks("500m"), vec![asks("500m")], None),
            (asks("501m"), vec![asks("500m")], Some("OutOfcpu")),
            (asks("0"), vec![asks("0"), asks("0"), asks("0")], Some("OutOfpods")),
            (port(""), vec![port("10.0.0.1")], Some("NodePorts")),
            (port("10.0.0.2"), vec![port("10.0.0.1")], None),
            (selector("1"), vec![], None),
            (armored("Unconfined"), vec![], None),
            (armored("RuntimeDefault"), vec![], Some("AppArmor")),
            (selector("2"), vec![], Some("NodeAffinity")),
        ] {
            let result = check(&new, others.iter(), &room, &labels, "n");
            assert_eq!(result.err().map(|v| v.reason).as_deref(), expected);
        }
    }
}
