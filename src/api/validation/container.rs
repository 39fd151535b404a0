//! Containers of every kind.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::cursor::{Field, too_many};
use super::resources;
use crate::field::{FieldError, FieldErrors};
use crate::names;

/// What a pod's containers share.
pub(super) struct Surroundings<'a> {
    /// Names of the pod's volumes, and whether each is a PersistentVolumeClaim.
    pub volumes: HashMap<&'a str, bool>,
    pub grace_seconds: Option<i64>,
    pub restart_policy: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Main,
    Init,
    Ephemeral,
}

pub(super) fn containers<'a>(
    list: &Field<'a>,
    role: Role,
    around: &Surroundings<'a>,
    taken: &mut HashSet<&'a str>,
) -> FieldErrors {
    let mut errors = Vec::new();
    if role == Role::Main && list.is_zero() {
        return vec![list.required("")];
    }
    let items = list.items();
    for container in &items {
        let sidecar = role == Role::Init && container.get("restartPolicy").text() == "Always";
        errors.extend(common(container, role, around));
        let name = container.get("name");
        if !taken.insert(name.text()) {
            errors.push(name.duplicate());
        }
        match role {
            Role::Main => {
                errors.extend(lifecycle(&container.get("lifecycle"), around));
                errors.extend(probes(container));
                errors.extend(restart_policy(container, around));
            }
            Role::Init if sidecar => {
                errors.extend(lifecycle(&container.get("lifecycle"), around));
                errors.extend(probes(container));
            }
            Role::Init => {
                errors.extend(restart_policy(container, around));
                for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                    let field = container.get(field);
                    if field.is_present() {
                        errors.push(field.forbidden("may not be set for init containers without restartPolicy=Always"));
                    }
                }
            }
            Role::Ephemeral => errors.extend(ephemeral_only(container)),
        }
    }
    if role != Role::Ephemeral {
        errors.extend(host_ports(&items));
    }
    errors
}

fn ephemeral_only(container: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    const NOT_ALLOWED: [&str; 7] =
        ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy", "resources"];
    for field in NOT_ALLOWED {
        let field = container.get(field);
        if !field.is_zero() {
            errors.push(field.forbidden("cannot be set for an Ephemeral Container"));
        }
    }
    for mount in container.list("volumeMounts") {
        for field in ["subPath", "subPathExpr"] {
            let field = mount.get(field);
            if !field.is_zero() {
                errors.push(field.forbidden("cannot be set for an Ephemeral Container"));
            }
        }
    }
    errors
}

fn restart_policy(container: &Field<'_>, _around: &Surroundings<'_>) -> FieldErrors {
    let policy = container.get("restartPolicy");
    let mut errors = policy.none_or_one_of(&["Always", "Never", "OnFailure"]);
    let rules = container.get("restartPolicyRules");
    if !rules.is_zero() && policy.is_zero() {
        errors.push(policy.required("must specify restartPolicy when restart rules are used"));
    }
    if rules.count() > 20 {
        errors.push(too_many(&rules, rules.count(), 20));
    }
    errors
}

fn common(container: &Field<'_>, role: Role, around: &Surroundings<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let name = container.get("name");
    if name.is_zero() {
        errors.push(name.required(""));
    } else {
        errors.extend(name.each_invalid(names::is_dns1123_label(name.text())));
    }
    let image = container.get("image");
    if image.is_zero() {
        errors.push(image.required(""));
    } else if image.text().trim() != image.text() {
        errors.push(image.invalid("must not have leading or trailing whitespace"));
    }
    errors.extend(container.get("terminationMessagePolicy").one_of(&["File", "FallbackToLogsOnError"]));
    if role != Role::Ephemeral {
        errors.extend(ports(&container.get("ports")));
    }
    errors.extend(env(&container.get("env")));
    errors.extend(env_from(&container.get("envFrom")));
    errors.extend(volume_mounts(container, around));
    errors.extend(volume_devices(container, around));
    errors.extend(container.get("imagePullPolicy").one_of(&["Always", "IfNotPresent", "Never"]));
    if role != Role::Ephemeral {
        errors.extend(resources::requirements(&container.get("resources")));
        errors.extend(resize_policy(container, around));
    }
    errors.extend(security_context(&container.get("securityContext")));
    errors
}

fn resize_policy(container: &Field<'_>, around: &Surroundings<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut seen = HashSet::new();
    for policy in container.list("resizePolicy") {
        let name = policy.get("resourceName");
        if !seen.insert(name.text()) {
            errors.push(FieldError::duplicate(&policy.path, name.text()));
        }
        errors.extend(name.one_of(&["cpu", "memory"]));
        let restart = policy.get("restartPolicy");
        errors.extend(restart.one_of(&["NotRequired", "RestartContainer"]));
        if around.restart_policy == "Never" && restart.text() == "RestartContainer" {
            errors.push(restart.invalid("must be 'NotRequired' when `restartPolicy` is 'Never'"));
        }
    }
    errors
}

fn ports(ports: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut taken = HashSet::new();
    for port in ports.items() {
        let name = port.get("name");
        if !name.is_zero() {
            let messages = names::is_port_name(name.text());
            if messages.is_empty() && !taken.insert(name.text()) {
                errors.push(name.duplicate());
            }
            errors.extend(name.each_invalid(messages));
        }
        let number = port.get("containerPort");
        match number.int().unwrap_or_default() {
            0 => errors.push(number.required("")),
            value => errors.extend(number.each_invalid(names::is_port_number(value))),
        }
        let host = port.get("hostPort");
        if !host.is_zero() {
            errors.extend(host.each_invalid(names::is_port_number(host.int().unwrap_or_default())));
        }
        errors.extend(port.get("protocol").one_of(&["SCTP", "TCP", "UDP"]));
    }
    errors
}

fn host_ports(containers: &[Field<'_>]) -> FieldErrors {
    let mut errors = Vec::new();
    let mut taken = HashSet::new();
    for port in containers.iter().flat_map(|container| container.list("ports")) {
        let host = port.get("hostPort");
        if host.is_zero() {
            continue;
        }
        let number = host.int().unwrap_or_default();
        let key = format!("{}/{}/{number}", port.get("protocol").text(), port.get("hostIP").text());
        if !taken.insert(key.clone()) {
            errors.push(FieldError::duplicate(&host.path, key));
        }
    }
    errors
}

fn env(env: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    for variable in env.items() {
        let name = variable.get("name");
        if name.is_zero() {
            errors.push(name.required(""));
        } else {
            errors.extend(name.each_invalid(names::is_env_var_name(name.text())));
        }
        let source = variable.get("valueFrom");
        if source.is_present() {
            errors.extend(env_source(&source, !variable.get("value").is_zero()));
        }
    }
    errors
}

fn env_source(source: &Field<'_>, has_value: bool) -> FieldErrors {
    let mut errors = Vec::new();
    let mut sources = 0;
    let field = source.get("fieldRef");
    if field.is_present() {
        sources += 1;
        const SUPPORTED: [&str; 9] = [
            "metadata.name",
            "metadata.namespace",
            "metadata.uid",
            "spec.nodeName",
            "spec.serviceAccountName",
            "status.hostIP",
            "status.hostIPs",
            "status.podIP",
            "status.podIPs",
        ];
        errors.extend(field_ref(&field, &SUPPORTED));
    }
    let resource = source.get("resourceFieldRef");
    if resource.is_present() {
        sources += 1;
        errors.extend(resource_field_ref(&resource, false));
    }
    for reference in ["configMapKeyRef", "secretKeyRef"] {
        let reference = source.get(reference);
        if reference.is_present() {
            sources += 1;
            errors.extend(key_ref(&reference));
        }
    }
    let file = source.get("fileKeyRef");
    if file.is_present() {
        sources += 1;
        for field in ["key", "volumeName", "path"] {
            errors.extend(file.get(field).not_empty());
        }
    }
    if sources == 0 {
        let detail =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.push(FieldError::invalid(&source.path, "", detail));
    } else if has_value {
        errors.push(FieldError::invalid(&source.path, "", "may not be specified when `value` is not empty"));
    } else if sources > 1 {
        errors.push(FieldError::invalid(&source.path, "", "may not have more than one field specified at a time"));
    }
    errors
}

/// The key of `metadata.labels['key']` and `metadata.annotations['key']`, with the field before it.
fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

pub(super) fn field_ref(reference: &Field<'_>, supported: &[&str]) -> FieldErrors {
    let (version, path) = (reference.get("apiVersion"), reference.get("fieldPath"));
    if version.is_zero() {
        return vec![version.required("")];
    }
    if path.is_zero() {
        return vec![path.required("")];
    }
    if version.text() != "v1" {
        let detail =
            format!("error converting fieldPath: no kind \"Pod\" is registered for version {:?}", version.text());
        return vec![path.invalid(detail)];
    }
    if let Some((field, key)) = subscript(path.text()) {
        return match field {
            "metadata.annotations" => path.each_invalid(names::is_qualified_name(&key.to_lowercase())),
            "metadata.labels" => path.each_invalid(names::is_qualified_name(key)),
            other => vec![path.invalid(format!("field label does not support subscript: {other:?}"))],
        };
    }
    const CONVERTIBLE: [&str; 13] = [
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.podIP",
        "status.podIPs",
    ];
    if supported.contains(&path.text()) {
        Vec::new()
    } else if CONVERTIBLE.contains(&path.text()) {
        vec![path.not_supported(supported)]
    } else {
        vec![path.invalid(format!("error converting fieldPath: field label not supported: {}", path.text()))]
    }
}

pub(super) fn resource_field_ref(reference: &Field<'_>, in_volume: bool) -> FieldErrors {
    let mut errors = Vec::new();
    let name = reference.get("containerName");
    if in_volume && name.is_zero() {
        errors.push(name.required(""));
    }
    let resource = reference.get("resource");
    const SUPPORTED: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let hugepages =
        resource.text().starts_with("limits.hugepages-") || resource.text().starts_with("requests.hugepages-");
    if resource.is_zero() {
        errors.push(resource.required(""));
    } else if !SUPPORTED.contains(&resource.text()) && !hugepages {
        errors.push(resource.not_supported(&SUPPORTED));
    }
    errors
}

fn key_ref(reference: &Field<'_>) -> FieldErrors {
    let (name, key) = (reference.get("name"), reference.get("key"));
    let mut errors = Vec::new();
    if name.is_zero() {
        errors.push(name.required(""));
    }
    if key.is_zero() {
        errors.push(key.required(""));
    } else {
        errors.extend(key.each_invalid(names::is_config_map_key(key.text())));
    }
    errors
}

fn env_from(list: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    for source in list.items() {
        let prefix = source.get("prefix");
        if !prefix.is_zero() {
            errors.extend(prefix.each_invalid(names::is_env_var_name(prefix.text())));
        }
        let mut sources = 0;
        for reference in ["configMapRef", "secretRef"] {
            let reference = source.get(reference);
            if reference.is_present() {
                sources += 1;
                errors.extend(reference.get("name").not_empty());
            }
        }
        if sources == 0 {
            errors.push(FieldError::invalid(&list.path, "", "must specify one of: `configMapRef` or `secretRef`"));
        } else if sources > 1 {
            errors.push(FieldError::invalid(&list.path, "", "may not have more than one field specified at a time"));
        }
    }
    errors
}

fn volume_mounts(container: &Field<'_>, around: &Surroundings<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut points = HashSet::new();
    let devices = container.list("volumeDevices");
    for mount in container.list("volumeMounts") {
        let (name, path) = (mount.get("name"), mount.get("mountPath"));
        if name.is_zero() {
            errors.push(name.required(""));
        }
        if !around.volumes.contains_key(name.text()) {
            errors.push(name.not_found());
        }
        if path.is_zero() {
            errors.push(path.required(""));
        }
        if !points.insert(path.text()) {
            errors.push(path.invalid("must be unique"));
        }
        if devices.iter().any(|device| device.get("name").value == name.value) {
            errors.push(name.invalid("must not already exist in volumeDevices"));
        }
        if devices.iter().any(|device| device.get("devicePath").value == path.value) {
            errors.push(path.invalid("must not already exist as a path in volumeDevices"));
        }
        let (sub, expression) = (mount.get("subPath"), mount.get("subPathExpr"));
        if !sub.is_zero() {
            errors.extend(local_descending(&sub));
        }
        if !expression.is_zero() {
            if !sub.is_zero() {
                errors.push(expression.invalid("subPathExpr and subPath are mutually exclusive"));
            }
            errors.extend(local_descending(&expression));
        }
        let propagation = mount.get("mountPropagation");
        let privileged = container.get("securityContext").get("privileged").flag();
        errors.extend(propagation.none_or_one_of(&["Bidirectional", "HostToContainer", "None"]));
        if propagation.text() == "Bidirectional" && !privileged {
            errors.push(
                propagation.forbidden("Bidirectional mount propagation is available only to privileged containers"),
            );
        }
        let recursive = mount.get("recursiveReadOnly");
        errors.extend(recursive.none_or_one_of(&["Disabled", "Enabled", "IfPossible"]));
        if matches!(recursive.text(), "Enabled" | "IfPossible") {
            if !mount.get("readOnly").flag() {
                errors.push(recursive.forbidden("may only be specified when readOnly is true"));
            }
            if !matches!(propagation.text(), "" | "None") {
                errors
                    .push(recursive.forbidden("may only be specified when mountPropagation is None or not specified"));
            }
        }
    }
    errors
}

fn volume_devices(container: &Field<'_>, around: &Surroundings<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    for device in container.list("volumeDevices") {
        let (name, path) = (device.get("name"), device.get("devicePath"));
        if name.is_zero() {
            errors.push(name.required(""));
        }
        if !names.insert(name.text()) {
            errors.push(name.invalid("must be unique"));
        }
        match around.volumes.get(name.text()) {
            Some(true) => (),
            Some(false) => errors.push(
                name.invalid("can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"),
            ),
            None => errors.push(name.not_found()),
        }
        if path.is_zero() {
            errors.push(path.required(""));
        }
        if !paths.insert(path.text()) {
            errors.push(path.invalid("must be unique"));
        }
        if !path.is_zero() && path.text().split('/').any(|part| part == "..") {
            errors.push(path.invalid("must not contain '..'"));
        }
    }
    errors
}

/// A relative path that does not climb.
pub(super) fn local_descending(path: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    if path.text().starts_with('/') {
        errors.push(path.invalid("must be a relative path"));
    }
    if path.text().split('/').any(|part| part == "..") {
        errors.push(path.invalid("must not contain '..'"));
    }
    errors
}

fn lifecycle(lifecycle: &Field<'_>, around: &Surroundings<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    for hook in ["postStart", "preStop"] {
        let hook = lifecycle.get(hook);
        if hook.is_present() {
            errors.extend(handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], around.grace_seconds));
        }
    }
    let signal = lifecycle.get("stopSignal");
    if !signal.is_zero() && !signal.text().starts_with("SIG") {
        errors.push(signal.invalid("must be a valid signal name"));
    }
    errors
}

fn handler(holder: &Field<'_>, kinds: &[&str], grace_seconds: Option<i64>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut handlers = 0;
    for kind in kinds {
        let action = holder.get(kind);
        if action.is_absent() {
            continue;
        }
        handlers += 1;
        if handlers > 1 {
            errors.push(action.forbidden("may not specify more than 1 handler type"));
            continue;
        }
        match *kind {
            "exec" => errors.extend(action.get("command").not_empty()),
            "httpGet" => {
                errors.extend(action.get("path").not_empty());
                errors.extend(port_or_name(&action.get("port")));
                errors.extend(action.get("scheme").one_of(&["HTTP", "HTTPS"]));
                for header in action.list("httpHeaders") {
                    let name = header.get("name");
                    errors.extend(name.each_invalid(names::is_http_header_name(name.text())));
                }
            }
            "tcpSocket" => errors.extend(port_or_name(&action.get("port"))),
            "grpc" => {
                let port = action.get("port");
                errors.extend(port.each_invalid(names::is_port_number(port.int().unwrap_or_default())));
            }
            _ => {
                let seconds = action.get("seconds");
                let limit = grace_seconds.unwrap_or(30);
                let value = seconds.int().unwrap_or_default();
                if value < 0 || value > limit {
                    let detail = format!(
                        "must be non-negative and less than terminationGracePeriodSeconds ({limit}), got {value}"
                    );
                    errors.push(seconds.invalid(detail));
                }
            }
        }
    }
    if handlers == 0 {
        errors.push(holder.required("must specify a handler type"));
    }
    errors
}

/// A port by number or by name.
pub(super) fn port_or_name(port: &Field<'_>) -> FieldErrors {
    match port.value {
        Value::String(name) => port.each_invalid(names::is_port_name(name)),
        _ => {
            let number = port.int().unwrap_or_default();
            let messages = names::is_port_number(number);
            messages.into_iter().map(|message| FieldError::invalid(&port.path, number, message)).collect()
        }
    }
}

fn probes(container: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.get(name);
        if probe.is_absent() {
            continue;
        }
        errors.extend(handler(&probe, &["exec", "httpGet", "tcpSocket", "grpc"], None));
        for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            errors.extend(probe.get(field).non_negative());
        }
        let grace = probe.get("terminationGracePeriodSeconds");
        errors.extend(grace.positive());
        if name == "readinessProbe" {
            if grace.is_present() {
                errors.push(grace.invalid("must not be set for readinessProbes"));
            }
        } else {
            let threshold = probe.get("successThreshold");
            if threshold.int().unwrap_or(1) != 1 {
                errors.push(threshold.invalid("must be 1"));
            }
        }
    }
    errors
}

fn security_context(context: &Field<'_>) -> FieldErrors {
    if context.is_absent() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    for field in ["runAsUser", "runAsGroup"] {
        errors.extend(identity(&context.get(field)));
    }
    errors.extend(context.get("procMount").none_or_one_of(&["Default", "Unmasked"]));
    let escalation = context.get("allowPrivilegeEscalation");
    if escalation.is_present() && !escalation.flag() {
        if context.get("privileged").flag() {
            errors.push(context.invalid("cannot set `allowPrivilegeEscalation` to false and `privileged` to true"));
        }
        let added = context.get("capabilities").list("add");
        if added.iter().any(|capability| matches!(capability.text(), "CAP_SYS_ADMIN" | "SYS_ADMIN" | "ALL")) {
            errors.push(
                context.invalid("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"),
            );
        }
    }
    errors.extend(profiles(context));
    errors
}

/// User and group ids.
pub(super) fn identity(id: &Field<'_>) -> FieldErrors {
    match id.int() {
        Some(number) if !(0..=i64::from(i32::MAX)).contains(&number) => {
            vec![id.invalid("must be between 0 and 2147483647, inclusive")]
        }
        _ => Vec::new(),
    }
}

/// Seccomp and AppArmor, of pods and containers.
pub(super) fn profiles(context: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    for (field, word) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let profile = context.get(field);
        if profile.is_absent() {
            continue;
        }
        let (kind, local) = (profile.get("type"), profile.get("localhostProfile"));
        match kind.text() {
            "Localhost" if local.is_zero() => {
                let space = if word == "seccomp" { " " } else { "" };
                errors.push(local.required(format!("must be set when {word} type is Localhost{space}")));
            }
            "Localhost" if word == "seccomp" => errors.extend(local_descending(&local)),
            "RuntimeDefault" | "Unconfined" if local.is_present() => {
                errors.push(local.invalid(format!("can only be set when {word} type is Localhost")));
            }
            _ => (),
        }
        errors.extend(kind.one_of(&["Localhost", "RuntimeDefault", "Unconfined"]));
    }
    errors
}
