//! The other groups: access control, certificates, extension of the API, scheduling, devices.

use serde_json::Value;

use super::age;
use super::column::{AGE, CREATED_AT, Column, NAME, Printer, boolean, integer, text as column};
use super::text::{self, NONE, UNSET, list, number};
use crate::object::ObjectExt;
use crate::quantity::Quantity;

pub(super) fn printer(group: &str, kind: &str) -> Option<&'static Printer> {
    Some(match (group.split('.').next().unwrap_or_default(), kind) {
        ("rbac", "Role" | "ClusterRole") | ("apiextensions", "CustomResourceDefinition") => &CREATED,
        ("rbac", "RoleBinding" | "ClusterRoleBinding") => &BINDING,
        ("certificates", "CertificateSigningRequest") => &SIGNING_REQUEST,
        ("coordination", "Lease") => &LEASE,
        ("scheduling", "PriorityClass") => &PRIORITY_CLASS,
        ("node", "RuntimeClass") => &RUNTIME_CLASS,
        ("apiregistration", "APIService") => &API_SERVICE,
        ("admissionregistration", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => &WEBHOOKS,
        ("admissionregistration", "ValidatingAdmissionPolicy") => &VALIDATING_POLICY,
        ("admissionregistration", "MutatingAdmissionPolicy") => &MUTATING_POLICY,
        ("admissionregistration", "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding") => {
            &POLICY_BINDING
        }
        ("metrics", "NodeMetrics" | "PodMetrics") => &METRICS,
        ("flowcontrol", "FlowSchema") => &FLOW_SCHEMA,
        ("flowcontrol", "PriorityLevelConfiguration") => &PRIORITY_LEVEL,
        ("resource", "ResourceClaim") => &RESOURCE_CLAIM,
        ("resource", "ResourceSlice") => &RESOURCE_SLICE,
        _ => return None,
    })
}

static CREATED: Printer = Printer {
    columns: &[NAME, CREATED_AT],
    cells: |object, _| vec![text::name(object), object.meta_str("creationTimestamp").into()],
};

static BINDING: Printer = Printer {
    columns: &[
        NAME,
        column("Role", "The role that is bound."),
        AGE,
        column("Users", "Users in the binding.").wide(),
        column("Groups", "Groups in the binding.").wide(),
        column("ServiceAccounts", "Service accounts in the binding.").wide(),
    ],
    cells: |object, now| {
        let subjects = list(object, "subjects");
        let of = |kind: &str, shown: fn(&Value) -> String| {
            subjects.iter().filter(|s| s.kind() == kind).map(shown).collect::<Vec<_>>().join(", ")
        };
        let name = |s: &Value| s.str_at("name").to_owned();
        vec![
            text::name(object),
            format!("{}/{}", object.str_at("roleRef.kind"), object.str_at("roleRef.name")).into(),
            age::of(object, now),
            of("User", name).into(),
            of("Group", name).into(),
            of("ServiceAccount", |s| format!("{}/{}", s.str_at("namespace"), s.str_at("name"))).into(),
        ]
    },
};

static SIGNING_REQUEST: Printer = Printer {
    columns: &[
        NAME,
        AGE,
        column("SignerName", "Who is to sign."),
        column("Requestor", "Who asks."),
        column("RequestedDuration", "How long the certificate should be valid."),
        column("Condition", "Whether the request is approved, and signed."),
    ],
    cells: |object, now| {
        let duration = object.at("spec.expirationSeconds").and_then(Value::as_i64);
        let has = |ty: &str| list(object, "status.conditions").iter().any(|c| c.str_at("type") == ty);
        let mut condition = match () {
            () if has("Denied") => "Denied",
            () if has("Approved") => "Approved",
            () => "Pending",
        }
        .to_owned();
        if has("Failed") {
            condition.push_str(",Failed");
        }
        if !object.str_at("status.certificate").is_empty() {
            condition.push_str(",Issued");
        }
        vec![
            text::name(object),
            age::of(object, now),
            text::or(object, "spec.signerName", NONE).into(),
            object.str_at("spec.username").into(),
            duration.map_or_else(|| NONE.to_owned(), age::human_duration).into(),
            condition.into(),
        ]
    },
};

static LEASE: Printer = Printer {
    columns: &[NAME, column("Holder", "Who holds the lease."), AGE],
    cells: |object, now| vec![text::name(object), object.str_at("spec.holderIdentity").into(), age::of(object, now)],
};

static PRIORITY_CLASS: Printer = Printer {
    columns: &[
        NAME,
        integer("Value", "The priority of pods of this class."),
        boolean("Global-Default", "Whether pods without a class are of this one."),
        AGE,
        column("PreemptionPolicy", "Whether its pods may displace others."),
    ],
    cells: |object, now| {
        vec![
            text::name(object),
            number(object, "value").into(),
            text::flag(object, "globalDefault").into(),
            age::of(object, now),
            object.str_at("preemptionPolicy").into(),
        ]
    },
};

static RUNTIME_CLASS: Printer = Printer {
    columns: &[NAME, column("Handler", "The runtime's name for it."), AGE],
    cells: |object, now| vec![text::name(object), object.str_at("handler").into(), age::of(object, now)],
};

static API_SERVICE: Printer = Printer {
    columns: &[
        NAME,
        column("Service", "The service that answers, or Local."),
        column("Available", "Whether the service is available."),
        AGE,
    ],
    cells: |object, now| {
        let service = object.at("spec.service").map(|s| format!("{}/{}", s.str_at("namespace"), s.str_at("name")));
        let condition = list(object, "status.conditions").iter().find(|c| c.str_at("type") == "Available");
        let available = match condition {
            None => "Unknown".to_owned(),
            Some(c) if c.str_at("status") == "True" => "True".to_owned(),
            Some(c) => format!("{} ({})", c.str_at("status"), c.str_at("reason")),
        };
        vec![
            text::name(object),
            service.unwrap_or_else(|| "Local".to_owned()).into(),
            available.into(),
            age::of(object, now),
        ]
    },
};

static METRICS: Printer = Printer {
    columns: &[
        NAME,
        column("cpu", "CPU in use, in cores."),
        column("memory", "Memory in use."),
        column("Window", "The time over which CPU was measured."),
    ],
    cells: |object, _| {
        // A pod uses what its containers use.
        let containers = list(object, "containers");
        let used = |resource: &str| {
            let all = containers.iter().chain((containers.is_empty()).then_some(object));
            let amounts = all.filter_map(|one| one["usage"][resource].as_str()?.parse::<Quantity>().ok());
            amounts.reduce(|a, b| a + b).unwrap_or(Quantity::ZERO).to_string()
        };
        vec![text::name(object), used("cpu").into(), used("memory").into(), object.str_at("window").into()]
    },
};

static WEBHOOKS: Printer = Printer {
    columns: &[NAME, integer("Webhooks", "How many webhooks there are."), AGE],
    cells: |object, now| vec![text::name(object), text::len(object, "webhooks").into(), age::of(object, now)],
};

const PARAM_KIND: Column = column("ParamKind", "The kind of the policy's parameters.");

static VALIDATING_POLICY: Printer = Printer {
    columns: &[NAME, integer("Validations", "How many rules there are."), PARAM_KIND, AGE],
    cells: |object, now| {
        vec![text::name(object), text::len(object, "spec.validations").into(), param_kind(object), age::of(object, now)]
    },
};

static MUTATING_POLICY: Printer = Printer {
    columns: &[NAME, integer("Mutations", "How many mutations there are."), PARAM_KIND, AGE],
    cells: |object, now| {
        vec![text::name(object), text::len(object, "spec.mutations").into(), param_kind(object), age::of(object, now)]
    },
};

fn param_kind(policy: &Value) -> Value {
    let kind = policy.at("spec.paramKind").map(|of| format!("{}/{}", of.api_version(), of.kind()));
    kind.unwrap_or_else(|| UNSET.to_owned()).into()
}

static POLICY_BINDING: Printer = Printer {
    columns: &[
        NAME,
        column("PolicyName", "The policy that is bound."),
        column("ParamRef", "The parameters that it is bound to."),
        AGE,
    ],
    cells: |object, now| {
        let reference = object.at("spec.paramRef").map(|of| match (of.str_at("namespace"), of.str_at("name")) {
            ("", "") => "*".to_owned(),
            ("", name) => name.to_owned(),
            (namespace, "") => format!("{namespace}/*"),
            (namespace, name) => format!("{namespace}/{name}"),
        });
        vec![
            text::name(object),
            object.str_at("spec.policyName").into(),
            reference.unwrap_or_else(|| UNSET.to_owned()).into(),
            age::of(object, now),
        ]
    },
};

static FLOW_SCHEMA: Printer = Printer {
    columns: &[
        NAME,
        column("PriorityLevel", "Where matching requests go."),
        integer("MatchingPrecedence", "The lowest matches first."),
        column("DistinguisherMethod", "What separates flows."),
        AGE,
        column("MissingPL", "Whether the priority level is missing."),
    ],
    cells: |object, now| {
        let dangling = list(object, "status.conditions").iter().find(|c| c.str_at("type") == "Dangling");
        vec![
            text::name(object),
            object.str_at("spec.priorityLevelConfiguration.name").into(),
            number(object, "spec.matchingPrecedence").into(),
            text::or(object, "spec.distinguisherMethod.type", NONE).into(),
            age::of(object, now),
            dangling.map_or("?", |c| c.str_at("status")).into(),
        ]
    },
};

static PRIORITY_LEVEL: Printer = Printer {
    columns: &[
        NAME,
        column("Type", "Whether requests are limited."),
        column("NominalConcurrencyShares", "Its share of the concurrency."),
        column("Queues", "How many queues there are."),
        column("HandSize", "How many queues a flow is dealt."),
        column("QueueLengthLimit", "How long a queue may be."),
        AGE,
    ],
    cells: |object, now| {
        let limited = |field: &str| text::scalar(object.at(&format!("spec.limited.{field}")), NONE);
        vec![
            text::name(object),
            object.str_at("spec.type").into(),
            limited("nominalConcurrencyShares").into(),
            limited("limitResponse.queuing.queues").into(),
            limited("limitResponse.queuing.handSize").into(),
            limited("limitResponse.queuing.queueLengthLimit").into(),
            age::of(object, now),
        ]
    },
};

static RESOURCE_CLAIM: Printer = Printer {
    columns: &[NAME, column("State", "What became of the claim."), AGE],
    cells: |object, now| {
        let mut states = Vec::new();
        if object.is_deleting() {
            states.push("deleted");
        }
        if object.at("status.allocation").is_some() {
            states.push("allocated");
        } else if !object.is_deleting() {
            states.push("pending");
        }
        if text::len(object, "status.reservedFor") > 0 {
            states.push("reserved");
        }
        vec![text::name(object), states.join(",").into(), age::of(object, now)]
    },
};

static RESOURCE_SLICE: Printer = Printer {
    columns: &[
        NAME,
        column("Node", "The node that has the devices."),
        column("Driver", "The driver of the devices."),
        column("Pool", "The pool of the devices."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            text::name(object),
            text::or(object, "spec.nodeName", UNSET).into(),
            object.str_at("spec.driver").into(),
            object.str_at("spec.pool.name").into(),
            age::of(object, now),
        ]
    },
};
