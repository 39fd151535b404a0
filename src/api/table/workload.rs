//! What makes pods: deployments, sets, jobs, autoscalers, and disruption budgets.

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use super::column::{AGE, CONTAINERS, IMAGES, NAME, Printer, SELECTOR, integer, text as column};
use super::text::{self, NONE, UNSET, condition, list, number};
use crate::object::ObjectExt;

const TEMPLATE: &str = "spec.template.spec";

pub(super) fn core(kind: &str) -> Option<&'static Printer> {
    (kind == "ReplicationController").then_some(&REPLICATION_CONTROLLER)
}

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "Deployment" => &DEPLOYMENT,
        "ReplicaSet" => &REPLICA_SET,
        "DaemonSet" => &DAEMON_SET,
        "StatefulSet" => &STATEFUL_SET,
        "ControllerRevision" => &CONTROLLER_REVISION,
        "Job" => &JOB,
        "CronJob" => &CRON_JOB,
        "HorizontalPodAutoscaler" => &AUTOSCALER,
        "PodDisruptionBudget" => &BUDGET,
        _ => return None,
    })
}

static DEPLOYMENT: Printer = Printer {
    columns: &[
        NAME,
        column("Ready", "Number of the pod with ready state"),
        column("Up-to-date", "Replicas that have the latest template."),
        column("Available", "Replicas ready for at least minReadySeconds."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object, now| {
        let [names, images] = text::containers(object, TEMPLATE);
        vec![
            text::name(object),
            format!("{}/{}", number(object, "status.readyReplicas"), number(object, "spec.replicas")).into(),
            number(object, "status.updatedReplicas").into(),
            number(object, "status.availableReplicas").into(),
            age::of(object, now),
            names,
            images,
            text::selector(object.at("spec.selector")).into(),
        ]
    },
};

const REPLICAS: &[super::Column] = &[
    NAME,
    integer("Desired", "Replicas that should be there."),
    integer("Current", "Replicas that are there."),
    integer("Ready", "Replicas that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

static REPLICA_SET: Printer = Printer {
    columns: REPLICAS,
    cells: |object, now| replicas(object, now, text::selector(object.at("spec.selector"))),
};

static REPLICATION_CONTROLLER: Printer = Printer {
    columns: REPLICAS,
    cells: |object, now| replicas(object, now, text::labels(text::map(object, "spec.selector"))),
};

fn replicas(object: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let [names, images] = text::containers(object, TEMPLATE);
    vec![
        text::name(object),
        number(object, "spec.replicas").into(),
        number(object, "status.replicas").into(),
        number(object, "status.readyReplicas").into(),
        age::of(object, now),
        names,
        images,
        selector.into(),
    ]
}

static DAEMON_SET: Printer = Printer {
    columns: &[
        NAME,
        integer("Desired", "Nodes that should run the daemon pod."),
        integer("Current", "Nodes that run the daemon pod and should."),
        integer("Ready", "Nodes whose daemon pod is ready."),
        integer("Up-to-date", "Nodes whose daemon pod has the latest template."),
        integer("Available", "Nodes whose daemon pod is available."),
        column("Node Selector", "Labels that nodes must have."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object, now| {
        let [names, images] = text::containers(object, TEMPLATE);
        vec![
            text::name(object),
            number(object, "status.desiredNumberScheduled").into(),
            number(object, "status.currentNumberScheduled").into(),
            number(object, "status.numberReady").into(),
            number(object, "status.updatedNumberScheduled").into(),
            number(object, "status.numberAvailable").into(),
            text::labels(text::map(object, "spec.template.spec.nodeSelector")).into(),
            age::of(object, now),
            names,
            images,
            text::selector(object.at("spec.selector")).into(),
        ]
    },
};

static STATEFUL_SET: Printer = Printer {
    columns: &[NAME, column("Ready", "Number of the pod with ready state"), AGE, CONTAINERS, IMAGES],
    cells: |object, now| {
        let [names, images] = text::containers(object, TEMPLATE);
        let ready = format!("{}/{}", number(object, "status.readyReplicas"), number(object, "spec.replicas"));
        vec![text::name(object), ready.into(), age::of(object, now), names, images]
    },
};

static CONTROLLER_REVISION: Printer = Printer {
    columns: &[
        NAME,
        column("Controller", "Controller of the object"),
        integer("Revision", "Revision of the state."),
        AGE,
    ],
    cells: |object, now| {
        let owners = list(object, "metadata.ownerReferences");
        let controller = owners.iter().find(|o| text::flag(o, "controller")).map(|owner| {
            let group = owner.str_at("apiVersion").rsplit_once('/').map(|(group, _)| format!(".{group}"));
            format!("{}{}/{}", owner.kind().to_lowercase(), group.unwrap_or_default(), owner.str_at("name"))
        });
        vec![
            text::name(object),
            controller.unwrap_or_else(|| NONE.to_owned()).into(),
            number(object, "revision").into(),
            age::of(object, now),
        ]
    },
};

static JOB: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Status of the job."),
        column("Completions", "Pods that have succeeded, of those that should."),
        column("Duration", "Time required to complete the job."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |job, now| {
        let [names, images] = text::containers(job, TEMPLATE);
        vec![
            text::name(job),
            job_status(job).into(),
            job_completions(job).into(),
            job_duration(job, now).into(),
            age::of(job, now),
            names,
            images,
            text::selector(job.at("spec.selector")).into(),
        ]
    },
};

fn job_status(job: &Value) -> &'static str {
    let has = |ty| condition(job, ty) == "True";
    match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if job.is_deleting() => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn job_completions(job: &Value) -> String {
    let succeeded = number(job, "status.succeeded");
    match (job.at("spec.completions").and_then(Value::as_i64), number(job, "spec.parallelism")) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let Some(start) = age::parse(job.str_at("status.startTime")) else { return String::new() };
    let end = age::parse(job.str_at("status.completionTime")).unwrap_or(now);
    age::human_duration(end.as_second() - start.as_second())
}

static CRON_JOB: Printer = Printer {
    columns: &[
        NAME,
        column("Schedule", "When jobs are made, in Cron format."),
        column("Timezone", "The time zone of the schedule."),
        column("Suspend", "Whether no more jobs are made."),
        integer("Active", "Jobs that are running."),
        column("Last Schedule", "Time since the last job was made."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |object, now| {
        let [names, images] = text::containers(object, "spec.jobTemplate.spec.template.spec");
        let last = object.str_at("status.lastScheduleTime");
        let suspend = match object.at("spec.suspend").and_then(Value::as_bool) {
            None => UNSET,
            Some(true) => "True",
            Some(false) => "False",
        };
        vec![
            text::name(object),
            object.str_at("spec.schedule").into(),
            text::or(object, "spec.timeZone", NONE).into(),
            suspend.into(),
            text::len(object, "status.active").into(),
            if last.is_empty() { NONE.to_owned() } else { age::since(last, now) }.into(),
            age::of(object, now),
            names,
            images,
            text::selector(object.at("spec.jobTemplate.spec.selector")).into(),
        ]
    },
};

static AUTOSCALER: Printer = Printer {
    columns: &[
        NAME,
        column("Reference", "What is scaled."),
        column("Targets", "Current and wanted values of the metrics."),
        column("MinPods", "The least number of pods."),
        column("MaxPods", "The greatest number of pods."),
        column("Replicas", "The current number of pods."),
        AGE,
    ],
    cells: |object, now| {
        let target =
            format!("{}/{}", object.str_at("spec.scaleTargetRef.kind"), object.str_at("spec.scaleTargetRef.name"));
        vec![
            text::name(object),
            target.into(),
            targets(object).into(),
            text::scalar(object.at("spec.minReplicas"), UNSET).into(),
            number(object, "spec.maxReplicas").into(),
            number(object, "status.currentReplicas").into(),
            age::of(object, now),
        ]
    },
};

fn targets(autoscaler: &Value) -> String {
    if let Some(wanted) = autoscaler.at("spec.targetCPUUtilizationPercentage") {
        let current = autoscaler.at("status.currentCPUUtilizationPercentage");
        return format!("cpu: {}/{wanted}%", current.map_or("<unknown>".to_owned(), |c| format!("{c}%")));
    }
    let metrics = list(autoscaler, "spec.metrics");
    let current = list(autoscaler, "status.currentMetrics");
    let shown: Vec<String> =
        metrics.iter().enumerate().map(|(i, spec)| target(spec, current.get(i).unwrap_or(&Value::Null))).collect();
    match shown.len() {
        0 => NONE.to_owned(),
        n if n > 2 => format!("{} + {} more...", shown[..2].join(", "), n - 2),
        _ => shown.join(", "),
    }
}

/// One metric: `cpu: 20%/80%`, `3/10`, `<unknown>/500m (avg)`.
fn target(spec: &Value, current: &Value) -> String {
    let ty = spec.str_at("type");
    let mut key = ty.to_owned();
    key[..ty.chars().next().map_or(0, char::len_utf8)].make_ascii_lowercase();
    let (spec, current) = (&spec[&key], &current[&key]);
    let prefix = match ty {
        "Resource" | "ContainerResource" => format!("{}: ", spec.str_at("name")),
        _ => String::new(),
    };
    let of = |field: &str, unit: &str| text::scalar(current.at(&format!("current.{field}")), "").to_string() + unit;
    let shown = |field: &str, unit: &str| match current.at(&format!("current.{field}")) {
        Some(_) => of(field, unit),
        None => "<unknown>".to_owned(),
    };
    let is_resource = !prefix.is_empty();
    if let Some(wanted) = spec.at("target.averageUtilization") {
        return format!("{prefix}{}/{wanted}%", shown("averageUtilization", "%"));
    }
    if let Some(wanted) = spec.at("target.averageValue") {
        let average = if is_resource || ty == "Pods" { "" } else { " (avg)" };
        return format!("{prefix}{}/{}{average}", shown("averageValue", ""), text::scalar(Some(wanted), ""));
    }
    match spec.at("target.value") {
        Some(wanted) => format!("{prefix}{}/{}", shown("value", ""), text::scalar(Some(wanted), "")),
        None => format!("{prefix}<unknown>/<auto>"),
    }
}

static BUDGET: Printer = Printer {
    columns: &[
        NAME,
        column("Min Available", "Pods that must stay available."),
        column("Max Unavailable", "Pods that may be unavailable."),
        integer("Allowed Disruptions", "Evictions that are allowed now."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            text::name(object),
            text::scalar(object.at("spec.minAvailable"), "N/A").into(),
            text::scalar(object.at("spec.maxUnavailable"), "N/A").into(),
            number(object, "status.disruptionsAllowed").into(),
            age::of(object, now),
        ]
    },
};
