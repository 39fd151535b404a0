//! Pods and pod templates.

use std::collections::HashSet;

use serde_json::Value;

use super::container::{Role, Surroundings, containers, identity, profiles};
use super::cursor::{Field, differing, same};
use super::meta::{annotations, labels, standard_finalizers};
use super::{resources, selector, volume};
use crate::field::{FieldError, FieldErrors};
use crate::names;

pub fn pod_create(pod: &Value) -> FieldErrors {
    let spec = Field::root(pod).get("spec");
    let mut errors = standard_finalizers(pod);
    errors.extend(pod_spec(&spec));
    let ephemeral = spec.get("ephemeralContainers");
    if !ephemeral.is_zero() {
        errors.push(ephemeral.forbidden("cannot be set on create"));
    }
    if !spec.get("schedulingGates").is_zero() && !spec.get("nodeName").is_zero() {
        errors.push(spec.get("nodeName").forbidden("cannot be set until all schedulingGates have been cleared"));
    }
    errors
}

pub(super) fn pod_spec(spec: &Field<'_>) -> FieldErrors {
    let (volumes, mut errors) = volume::volumes(&spec.get("volumes"));
    let restart = spec.get("restartPolicy");
    let around = Surroundings {
        volumes,
        grace_seconds: spec.get("terminationGracePeriodSeconds").int(),
        restart_policy: restart.text(),
    };
    let mut taken = HashSet::new();
    errors.extend(containers(&spec.get("containers"), Role::Main, &around, &mut taken));
    errors.extend(containers(&spec.get("initContainers"), Role::Init, &around, &mut taken));
    errors.extend(containers(&spec.get("ephemeralContainers"), Role::Ephemeral, &around, &mut taken));
    for container in spec.list("ephemeralContainers") {
        let target = container.get("targetContainerName");
        let exists = |list: &str| spec.list(list).iter().any(|c| c.get("name").value == target.value);
        if !target.is_zero() && !exists("containers") && !exists("initContainers") {
            errors.push(target.not_found());
        }
    }
    if spec.get("resources").is_present() {
        errors.extend(resources::requirements(&spec.get("resources")));
    }
    errors.extend(restart.one_of(&["Always", "OnFailure", "Never"]));
    errors.extend(spec.get("dnsPolicy").one_of(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]));
    errors.extend(labels(&spec.get("nodeSelector")));
    errors.extend(security_context(spec));
    for secret in spec.list("imagePullSecrets") {
        if secret.get("name").is_zero() && secret.get("name").is_present() {
            errors.push(secret.get("name").required(""));
        }
    }
    errors.extend(selector::affinity(&spec.get("affinity")));
    errors.extend(dns_config(spec));
    for gate in spec.list("readinessGates") {
        let kind = gate.get("conditionType");
        errors.extend(kind.each_invalid(names::is_qualified_name(kind.text())));
    }
    errors.extend(scheduling_gates(spec));
    errors.extend(selector::topology_spread(&spec.list("topologySpreadConstraints")));
    errors.extend(host_users(spec));
    for (field, check) in [
        ("serviceAccountName", names::is_dns1123_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::is_dns1123_subdomain),
    ] {
        let field = spec.get(field);
        if !field.is_zero() {
            errors.extend(field.each_invalid(check(field.text())));
        }
    }
    let deadline = spec.get("activeDeadlineSeconds");
    if deadline.int().is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
        errors.push(deadline.invalid("must be between 1 and 2147483647, inclusive"));
    }
    for field in ["hostname", "subdomain"] {
        let field = spec.get(field);
        if !field.is_zero() {
            errors.extend(field.each_invalid(names::is_dns1123_label(field.text())));
        }
    }
    errors.extend(selector::tolerations(&spec.list("tolerations")));
    for alias in spec.list("hostAliases") {
        let ip = alias.get("ip");
        errors.extend(ip.each_invalid(names::is_ip(ip.text())));
        for hostname in alias.list("hostnames") {
            for message in names::is_dns1123_subdomain(hostname.text()) {
                let path = alias.path.child("hostnames");
                errors.push(FieldError::invalid(&path, hostname.text(), message));
            }
        }
    }
    for field in ["priorityClassName", "runtimeClassName"] {
        let field = spec.get(field);
        if !field.is_zero() {
            errors.extend(field.each_invalid(names::is_dns1123_subdomain(field.text())));
        }
    }
    errors.extend(spec.get("preemptionPolicy").none_or_one_of(&["Never", "PreemptLowerPriority"]));
    let overhead = spec.get("overhead");
    errors.extend(resources::list(&overhead));
    errors.extend(spec.get("os").get("name").none_or_one_of(&["linux", "windows"]));
    let grace = spec.get("terminationGracePeriodSeconds");
    if grace.int().is_some_and(|seconds| seconds < 0) {
        errors.push(grace.invalid("must be greater than or equal to 0"));
    }
    errors
}

fn host_users(spec: &Field<'_>) -> FieldErrors {
    let users = spec.get("hostUsers");
    if users.is_absent() || users.flag() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    for field in ["hostPID", "hostIPC", "hostNetwork"] {
        if spec.get(field).flag() {
            errors.push(users.forbidden(format!("when `{field}` is true")));
        }
    }
    errors
}

fn scheduling_gates(spec: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut seen = HashSet::new();
    for gate in spec.list("schedulingGates") {
        let name = gate.get("name");
        for message in names::is_qualified_name(name.text()) {
            errors.push(FieldError::invalid(&gate.path, name.text(), message));
        }
        if !seen.insert(name.text()) {
            errors.push(FieldError::duplicate(&gate.path, name.text()));
        }
    }
    errors
}

fn security_context(spec: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    if spec.get("hostNetwork").flag() {
        for list in ["containers", "initContainers"] {
            for port in spec.list(list).iter().flat_map(|container| container.list("ports")) {
                let (host, inner) = (port.get("hostPort"), port.get("containerPort"));
                if !host.is_zero() && host.value != inner.value {
                    errors.push(inner.invalid("must match `hostPort` when `hostNetwork` is true"));
                }
            }
        }
    }
    let share = spec.get("shareProcessNamespace");
    if share.flag() && spec.get("hostPID").flag() {
        errors.push(share.invalid("ShareProcessNamespace and HostPID cannot both be enabled"));
    }
    let context = spec.get("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        errors.extend(identity(&context.get(field)));
    }
    for group in context.list("supplementalGroups") {
        errors.extend(identity(&group));
    }
    errors.extend(context.get("supplementalGroupsPolicy").none_or_one_of(&["Merge", "Strict"]));
    errors.extend(context.get("fsGroupChangePolicy").none_or_one_of(&["Always", "OnRootMismatch"]));
    let mut seen = HashSet::new();
    for sysctl in context.list("sysctls") {
        let name = sysctl.get("name");
        if name.is_zero() {
            errors.push(name.required(""));
        } else if !is_sysctl_name(name.text()) {
            errors.push(name.invalid(
                "must have at most 253 characters and match regex \
                 ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ));
        } else if !seen.insert(name.text()) {
            errors.push(name.duplicate());
        }
        let host = spec.get("hostNetwork").flag() && name.text().starts_with("net.");
        let ipc = spec.get("hostIPC").flag()
            && (name.text().starts_with("kernel.shm")
                || name.text().starts_with("kernel.msg")
                || name.text().starts_with("fs.mqueue."));
        if host {
            errors.push(name.invalid("may not be specified when 'hostNetwork' is true"));
        }
        if ipc {
            errors.push(name.invalid("may not be specified when 'hostIPC' is true"));
        }
    }
    errors.extend(profiles(&context));
    errors
}

fn is_sysctl_name(name: &str) -> bool {
    let part = |part: &str| {
        let outer = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        bytes.iter().all(|b| outer(*b) || matches!(b, b'-' | b'_'))
            && [bytes.first(), bytes.last()].iter().all(|end| end.is_some_and(|b| outer(*b)))
    };
    name.len() <= 253 && name.split(['.', '/']).all(part)
}

fn dns_config(spec: &Field<'_>) -> FieldErrors {
    let config = spec.get("dnsConfig");
    let servers = config.get("nameservers");
    let mut errors = Vec::new();
    if spec.get("dnsPolicy").text() == "None" {
        if config.is_absent() {
            return vec![config.required("must provide `dnsConfig` when `dnsPolicy` is None")];
        }
        if servers.is_zero() {
            return vec![servers.required("must provide at least one DNS nameserver when `dnsPolicy` is None")];
        }
    }
    if servers.count() > 3 {
        errors.push(servers.invalid("must not have more than 3 nameservers"));
    }
    for server in servers.items() {
        errors.extend(server.each_invalid(names::is_ip(server.text())));
    }
    let searches = config.get("searches");
    if searches.count() > 32 {
        errors.push(searches.invalid("must not have more than 32 search paths"));
    }
    let total: usize = searches.items().iter().map(|search| search.text().len() + 1).sum();
    if total > 2049 {
        errors.push(searches.invalid("must not have more than 2048 characters (including spaces) in the search list"));
    }
    for search in searches.items() {
        let domain = search.text().strip_suffix('.').unwrap_or(search.text());
        if !search.is_zero() && search.text() != "." {
            errors.extend(search.each_invalid(names::is_dns1123_subdomain(&domain.replace('_', "a"))));
        }
    }
    for option in config.list("options") {
        errors.extend(option.get("name").not_empty());
    }
    errors
}

/// `{metadata, spec}` of a workload. Its own pods must match `selector`, which the caller checks.
pub(super) fn pod_template(template: &Field<'_>) -> FieldErrors {
    let meta = template.get("metadata");
    let mut errors = labels(&meta.get("labels"));
    errors.extend(annotations(&meta.get("annotations")));
    errors.extend(pod_spec(&template.get("spec")));
    let ephemeral = template.get("spec").get("ephemeralContainers");
    if !ephemeral.is_zero() {
        errors.push(ephemeral.forbidden("ephemeral containers not allowed in pod template"));
    }
    errors
}

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub fn pod_update(new: &Value, old: &Value) -> FieldErrors {
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let mut errors = Vec::new();
    for name in ["containers", "initContainers"] {
        let list = spec.get(name);
        if list.count() != before.get(name).count() {
            return vec![list.forbidden("pod updates may not add or remove containers")];
        }
        for container in list.items() {
            errors.extend(container.get("image").not_empty());
        }
    }
    errors.extend(deadline_update(&spec, &before));
    errors.extend(tolerations_update(&spec, &before));
    errors.extend(gates_update(&spec, &before));
    if !errors.is_empty() {
        return errors;
    }
    // The old spec with the changes that are allowed must be the new one.
    let mut allowed = before.value.clone();
    if let Some(map) = allowed.as_object_mut() {
        for list in ["containers", "initContainers"] {
            let images = spec.list(list);
            let containers = map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
            for (container, new) in containers.zip(images) {
                if let Some(container) = container.as_object_mut() {
                    container.insert("image".to_owned(), new.get("image").value.clone());
                }
            }
        }
        let mut take = |field: &str| match spec.get(field).value {
            Value::Null => map.remove(field),
            value => map.insert(field.to_owned(), value.clone()),
        };
        take("activeDeadlineSeconds");
        take("tolerations");
        take("schedulingGates");
        let grace = |spec: &Field<'_>| spec.get("terminationGracePeriodSeconds").int();
        if grace(&before).is_some_and(|seconds| seconds < 0) && grace(&spec) == Some(1) {
            take("terminationGracePeriodSeconds");
        }
        if !before.get("schedulingGates").is_zero() {
            // Where it may run can be narrowed while it is held back.
            take("nodeSelector");
            take("affinity");
        }
    }
    if !same(&allowed, spec.value) {
        let mut places = Vec::new();
        differing(spec.value, &allowed, &spec.path, 5, &mut places);
        errors.push(spec.forbidden(format!("{UPDATABLE}\n{}", places.join("\n"))));
    }
    errors
}

fn deadline_update(spec: &Field<'_>, before: &Field<'_>) -> FieldErrors {
    let deadline = spec.get("activeDeadlineSeconds");
    match (deadline.int(), before.get("activeDeadlineSeconds").int()) {
        (Some(new), _) if !(1..=i64::from(i32::MAX)).contains(&new) => {
            vec![deadline.invalid("must be between 1 and 2147483647, inclusive")]
        }
        (Some(new), Some(old)) if new > old => vec![deadline.invalid("must be less than or equal to previous value")],
        (None, Some(_)) => vec![deadline.invalid("must not update from a positive integer to nil value")],
        _ => Vec::new(),
    }
}

fn tolerations_update(spec: &Field<'_>, before: &Field<'_>) -> FieldErrors {
    let tolerations = spec.list("tolerations");
    let without_seconds = |value: &Value| {
        let mut value = value.clone();
        if let Some(map) = value.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        value
    };
    let kept = before
        .list("tolerations")
        .iter()
        .all(|old| tolerations.iter().any(|new| same(&without_seconds(new.value), &without_seconds(old.value))));
    if kept {
        selector::tolerations(&tolerations)
    } else {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        vec![spec.get("tolerations").forbidden(detail)]
    }
}

fn gates_update(spec: &Field<'_>, before: &Field<'_>) -> FieldErrors {
    let had = before.list("schedulingGates");
    let fresh = spec
        .list("schedulingGates")
        .into_iter()
        .find(|gate| !had.iter().any(|old| old.get("name").value == gate.get("name").value));
    match fresh {
        Some(gate) => {
            let name = gate.get("name").text();
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            vec![spec.get("schedulingGates").forbidden(detail)]
        }
        None => Vec::new(),
    }
}

pub fn pod_status(new: &Value, old: &Value) -> FieldErrors {
    let (status, before) = (Field::root(new).get("status"), Field::root(old).get("status"));
    let spec = Field::root(new).get("spec");
    let mut errors = Vec::new();
    let nominated = status.get("nominatedNodeName");
    if !nominated.is_zero() {
        errors.extend(nominated.each_invalid(names::is_dns1123_subdomain(nominated.text())));
    }
    // What has ended for good does not start again.
    let policy = spec.get("restartPolicy").text();
    for container in status.list("containerStatuses") {
        let name = container.get("name");
        let old = before.list("containerStatuses").into_iter().find(|old| old.get("name").value == name.value);
        let ended = old.as_ref().map(|old| old.get("state").get("terminated"));
        let Some(ended) = ended.filter(Field::is_present) else { continue };
        let own = spec.list("containers").into_iter().find(|c| c.get("name").value == name.value);
        let special = own.is_some_and(|c| c.get("restartPolicy").is_present());
        let final_now = match policy {
            "Never" => true,
            "OnFailure" => ended.get("exitCode").int() == Some(0),
            _ => false,
        };
        if final_now && !special && container.get("state").get("terminated").is_absent() {
            errors.push(container.get("state").forbidden("may not be transitioned to non-terminated state"));
        }
    }
    let mut seen = HashSet::new();
    for ip in status.list("podIPs") {
        let address = ip.get("ip");
        errors.extend(ip.each_invalid(names::is_ip(address.text())));
        if !seen.insert(address.text()) {
            errors.push(ip.duplicate());
        }
    }
    errors
}

/// The `ephemeralcontainers` subresource: containers may be added, nothing else may change.
pub fn pod_ephemeral_containers_update(new: &Value, old: &Value) -> FieldErrors {
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let list = spec.get("ephemeralContainers");
    let mut errors = pod_spec(&spec);
    for old in before.list("ephemeralContainers") {
        let name = old.get("name").text();
        match list.items().iter().find(|new| new.get("name").text() == name) {
            None => errors.push(list.forbidden(format!("existing ephemeral containers {name:?} may not be removed\n"))),
            Some(new) if !same(new.value, old.value) => {
                let mut places = Vec::new();
                differing(new.value, old.value, &new.path, 5, &mut places);
                let places = places.join("\n");
                errors.push(
                    list.forbidden(format!("existing ephemeral containers {name:?} may not be changed\n{places}")),
                );
            }
            Some(_) => (),
        }
    }
    errors
}

/// The `resize` subresource: CPU and memory of running containers.
pub fn pod_resize_update(new: &Value, old: &Value) -> FieldErrors {
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let mut allowed = before.value.clone();
    for list in ["containers", "initContainers"] {
        if spec.get(list).count() != before.get(list).count() {
            return vec![spec.get(list).forbidden("containers may not be added or removed on resize")];
        }
        let containers = allowed.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, new) in containers.zip(spec.list(list)) {
            if let Some(container) = container.as_object_mut() {
                container.insert("resources".to_owned(), new.get("resources").value.clone());
                container.insert("resizePolicy".to_owned(), new.get("resizePolicy").value.clone());
            }
        }
    }
    if let Some(map) = allowed.as_object_mut()
        && spec.get("resources").is_present()
    {
        map.insert("resources".to_owned(), spec.get("resources").value.clone());
    }
    let mut errors = pod_spec(&spec);
    if !same(&allowed, spec.value) {
        errors.push(spec.forbidden("only cpu and memory resources are mutable"));
    }
    errors
}

pub fn pod_template_create(template: &Value) -> FieldErrors {
    pod_template(&Field::root(template).get("template"))
}
