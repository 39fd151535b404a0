//! HorizontalPodAutoscalers: as many Pods as metrics ask for, within bounds.
//!
//! Metrics can be asked for but not watched, so each autoscaler is looked at every 15 seconds, as upstream does; without any,
//! nothing is. How many Pods a metric asks for is in [`replicas`], what is made of that in [`behavior`].

mod behavior;
mod metrics;
mod replicas;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use mussel_api::quantity::Quantity;
use mussel_api::resource;
use mussel_api::selector::LabelSelector;
use mussel_client::{Change, EventType, Informer, Recorder, WorkQueue};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::behavior::{Bounds, Memory};
use self::metrics::{Metric, MetricsApis};
use self::replicas::{Proposal, Question, Target, Tolerance};
use crate::Context;
use crate::control::{self, Key, follow, key_of, queue_all};
use crate::error::{Outcome, is_not_found, text};

/// Between two looks at the metrics of an autoscaler.
const PERIOD: Duration = Duration::from_secs(15);
const TOLERANCE: f64 = 0.1;
const PATH: &str = "/apis/autoscaling/v2";

/// An autoscaler as it is served in v2. Its many fields are looked at where they matter.
#[derive(Clone, Debug, Deserialize)]
struct Autoscaler {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
}

impl kube::Resource for Autoscaler {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "HorizontalPodAutoscaler".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "autoscaling".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v2".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "horizontalpodautoscalers".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

struct Controller {
    client: Client,
    apis: MetricsApis,
    recorder: Recorder,
    autoscalers: Informer<Autoscaler>,
    pods: Informer<Pod>,
    memories: Mutex<HashMap<Key, Memory>>,
    /// Which Pods each autoscaler answers for, as it was last seen.
    selectors: Mutex<HashMap<Key, LabelSelector>>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let autoscalers = context.informers.of::<Autoscaler>();
    let pods = context.informers.of::<Pod>();
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        apis: MetricsApis { client: context.client() },
        recorder: context.recorder("horizontal-pod-autoscaler"),
        autoscalers: autoscalers.clone(),
        pods: pods.clone(),
        memories: Mutex::default(),
        selectors: Mutex::default(),
    };
    let on_change = |change: &Change<Autoscaler>| match change {
        // What we write ourselves is no reason to look again.
        Change::Applied { old: Some(old), new } if old.spec == new.spec => {}
        Change::Applied { new, .. } | Change::Deleted(new) => queue.add(key_of(&**new)),
        Change::Resync => {}
    };
    let resync = || queue_all(&autoscalers, &queue);
    tokio::join!(follow(autoscalers.clone(), stop.clone(), on_change, resync), async {
        tokio::select! {
            () = stop.cancelled() => return,
            () = async { tokio::join!(autoscalers.synced(), pods.synced()); } => (),
        }
        let work = |key| controller.reconcile(key);
        control::work("horizontal pod autoscaler", queue.clone(), 5, stop.clone(), work).await;
    });
}

/// What a look at an autoscaler finds out, and shows in its status.
struct Look<'a> {
    controller: &'a Controller,
    autoscaler: &'a Autoscaler,
    namespace: &'a str,
    status: Value,
    /// Of the target, as its Scale says.
    current: i64,
    seen: i64,
    selector: String,
    pods: Vec<Arc<Pod>>,
}

/// The target's replica count, and where it is changed.
struct Scale {
    path: String,
    object: Value,
}

impl Controller {
    fn memories(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn selectors(&self) -> std::sync::MutexGuard<'_, HashMap<Key, LabelSelector>> {
        self.selectors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The autoscalers that answer for one of these Pods, by name.
    fn answering_for(&self, namespace: &str, pods: &[Arc<Pod>]) -> Vec<String> {
        let none = BTreeMap::new();
        let selectors = self.selectors();
        let of_namespace = selectors.iter().filter(|((own, _), _)| own == namespace);
        let mut names: Vec<String> = of_namespace
            .filter(|(_, selector)| {
                pods.iter().any(|pod| selector.matches_map(pod.metadata.labels.as_ref().unwrap_or(&none)))
            })
            .map(|((_, name), _)| name.clone())
            .collect();
        names.sort();
        names
    }

    async fn reconcile(&self, key: Key) -> Outcome {
        let Some(autoscaler) = self.autoscalers.get(&key.0, &key.1) else {
            self.memories().remove(&key);
            self.selectors().remove(&key);
            return Ok(None);
        };
        let mut look = Look {
            controller: self,
            autoscaler: &autoscaler,
            namespace: &key.0,
            status: autoscaler.status.clone(),
            current: 0,
            seen: 0,
            selector: String::new(),
            pods: Vec::new(),
        };
        look.run(&key).await;
        let mut status = look.status;
        if status["desiredReplicas"].is_null() {
            // A status without it is none.
            status["desiredReplicas"] = 0.into();
        }
        if status != autoscaler.status {
            self.write(&autoscaler, &key, status).await?;
        }
        Ok(Some(PERIOD))
    }

    async fn write(&self, autoscaler: &Autoscaler, key: &Key, status: Value) -> Result<(), crate::error::Error> {
        let object = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": autoscaler.metadata, "spec": autoscaler.spec, "status": status});
        let path = format!("{PATH}/namespaces/{}/horizontalpodautoscalers/{}/status", key.0, key.1);
        match self.put(&path, &object).await {
            Err(error) if is_not_found(&error) => Ok(()),
            outcome => Ok(outcome.map(|_| ())?),
        }
    }

    async fn put(&self, path: &str, object: &Value) -> kube::Result<Value> {
        let request = http::Request::put(path).header("content-type", "application/json");
        let request = request.body(object.to_string().into_bytes()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    /// The plural of a kind, and whether it lives in namespaces.
    async fn resource_of(&self, api_version: &str, kind: &str) -> Result<(String, bool), String> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        if let Some(row) = resource::by_kind(group, version, kind) {
            return Ok((row.plural.to_string(), row.namespaced));
        }
        let list = self.apis.get(&root(api_version), &[]).await?;
        let resources = list["resources"].as_array().into_iter().flatten();
        let found = resources
            .filter_map(|resource| Some((resource["name"].as_str()?, resource)))
            .find(|(name, resource)| !name.contains('/') && resource["kind"] == *kind);
        let (name, resource) = found.ok_or_else(|| format!("no matches for kind {kind:?} in group {group:?}"))?;
        Ok((name.to_owned(), resource["namespaced"] == true))
    }

    async fn scale(&self, namespace: &str, target: &Value) -> Result<Scale, String> {
        let of = |field: &str| target[field].as_str().unwrap_or_default();
        let (api_version, kind, name) = (of("apiVersion"), of("kind"), of("name"));
        let (plural, _) = self.resource_of(api_version, kind).await?;
        let path = format!("{}/namespaces/{namespace}/{plural}/{name}/scale", root(api_version));
        let object = self.apis.get(&path, &[]).await?;
        Ok(Scale { path, object })
    }
}

fn root(api_version: &str) -> String {
    if api_version.contains('/') { format!("/apis/{api_version}") } else { format!("/api/{api_version}") }
}

impl Look<'_> {
    fn event(&self, type_: EventType, reason: &str, message: impl Into<String>) {
        let metadata = &self.autoscaler.metadata;
        let about = ObjectReference {
            api_version: Some("autoscaling/v2".to_owned()),
            kind: Some("HorizontalPodAutoscaler".to_owned()),
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
            field_path: None,
        };
        self.controller.recorder.event(about, type_, reason, message.into());
    }

    fn warn(&self, reason: &str, message: impl Into<String>) {
        self.event(EventType::Warning, reason, message);
    }

    fn condition(&mut self, type_: &str, good: bool, reason: &str, message: impl Into<String>) {
        set_condition(&mut self.status, type_, good, reason, &message.into(), Timestamp::now());
    }

    async fn run(&mut self, key: &Key) {
        let spec = &self.autoscaler.spec;
        let target = &spec["scaleTargetRef"];
        let scale = match self.controller.scale(self.namespace, target).await {
            Ok(scale) => scale,
            Err(why) => {
                self.warn("FailedGetScale", why.clone());
                let message = format!("the HPA controller was unable to get the target's current scale: {why}");
                return self.condition("AbleToScale", false, "FailedGetScale", message);
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        self.condition("AbleToScale", true, "SucceededGetScale", message);
        self.current = scale.object["spec"]["replicas"].as_i64().unwrap_or_default();
        self.seen = scale.object["status"]["replicas"].as_i64().unwrap_or_default();
        let (current, least) = (self.current, spec["minReplicas"].as_i64().unwrap_or(1));
        let most = spec["maxReplicas"].as_i64().unwrap_or_default();
        let now = Instant::now();
        self.controller.memories().entry(key.clone()).or_default().begin(current, now);

        let mut figures = self.status["currentMetrics"].clone();
        let (wanted, why) = if current == 0 && least != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.condition("ScalingActive", false, "ScalingDisabled", message);
            return self.finish(current, None, false);
        } else if current > most {
            (most, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < least {
            (least, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            let selector = scale.object["status"]["selector"].as_str().unwrap_or_default().to_owned();
            let Some((proposal, metric, seen)) = self.ask(key, selector).await else {
                self.status["currentReplicas"] = current.into();
                return;
            };
            figures = seen;
            let bounds = Bounds { least, most, behavior: &spec["behavior"] };
            let decision =
                self.controller.memories().entry(key.clone()).or_default().decide(&bounds, current, proposal, now);
            self.condition("AbleToScale", true, decision.able.0, decision.able.1);
            let (limited, reason, message) = decision.limited;
            self.condition("ScalingLimited", limited, reason, message);
            let why = if proposal > current {
                format!("{metric} above target")
            } else {
                "All metrics below target".to_owned()
            };
            (decision.replicas, why)
        };
        if wanted == current {
            return self.finish(current, Some(figures), false);
        }
        let mut object = scale.object;
        object["spec"]["replicas"] = wanted.into();
        if let Err(error) = self.controller.put(&scale.path, &object).await {
            let error = text(&error);
            self.warn("FailedRescale", format!("New size: {wanted}; reason: {why}; error: {error}"));
            let message = format!("the HPA controller was unable to update the target scale: {error}");
            self.condition("AbleToScale", false, "FailedUpdateScale", message);
            self.status["currentReplicas"] = current.into();
            return;
        }
        let message = format!("the HPA controller was able to update the target scale to {wanted}");
        self.condition("AbleToScale", true, "SucceededRescale", message);
        self.event(EventType::Normal, "SuccessfulRescale", format!("New size: {wanted}; reason: {why}"));
        self.controller.memories().entry(key.clone()).or_default().scaled(current, wanted, now);
        self.finish(wanted, Some(figures), true);
    }

    fn finish(&mut self, desired: i64, figures: Option<Value>, scaled: bool) {
        self.status["currentReplicas"] = self.current.into();
        self.status["desiredReplicas"] = desired.into();
        match figures.filter(|figures| figures.as_array().is_some_and(|list| !list.is_empty())) {
            Some(figures) => self.status["currentMetrics"] = figures,
            None => {
                self.status.as_object_mut().and_then(|status| status.remove("currentMetrics"));
            }
        }
        if scaled {
            self.status["lastScaleTime"] = stamp(Timestamp::now()).into();
        }
    }

    /// The largest number that a metric asks for, the metric's name, and the status of all. `None`: none of them says, or
    /// some do not and the others ask for fewer Pods, and the conditions say why.
    async fn ask(&mut self, key: &Key, selector: String) -> Option<(i64, String, Value)> {
        if selector.is_empty() {
            self.warn("SelectorRequired", "selector is required");
            let message = "the HPA target's scale is missing a selector";
            self.condition("ScalingActive", false, "InvalidSelector", message);
            return None;
        }
        let parsed = match LabelSelector::parse(&selector) {
            Ok(parsed) => parsed,
            Err(error) => {
                let why = format!("couldn't convert selector into a corresponding internal selector object: {error}");
                self.warn("InvalidSelector", why.clone());
                self.condition("ScalingActive", false, "InvalidSelector", why);
                return None;
            }
        };
        let none = BTreeMap::new();
        let of_target = |pod: &Arc<Pod>| parsed.matches_map(pod.metadata.labels.as_ref().unwrap_or(&none));
        self.pods = self.controller.pods.list_in(self.namespace).into_iter().filter(of_target).collect();
        self.controller.selectors().insert(key.clone(), parsed);
        let answering = self.controller.answering_for(self.namespace, &self.pods);
        if answering.len() > 1 {
            let list = answering.join(" ");
            let why = format!("pods by selector {selector} are controlled by multiple HPAs: [{list}]");
            self.warn("AmbiguousSelector", why.clone());
            self.condition("ScalingActive", false, "AmbiguousSelector", why);
            return None;
        }
        self.selector = selector;
        let spec = &self.autoscaler.spec;
        let mut best: Option<(i64, String)> = None;
        let mut figures = Vec::new();
        let mut first: Option<(&'static str, String)> = None;
        let metrics = spec["metrics"].as_array().map_or(&[][..], Vec::as_slice);
        let mut failures = 0;
        for metric in metrics {
            match self.of_metric(metric).await {
                Ok((proposal, name, figure)) => {
                    figures.push(figure);
                    if best.as_ref().is_none_or(|(replicas, _)| proposal.replicas > *replicas) {
                        best = Some((proposal.replicas, name));
                    }
                }
                Err((reason, why)) => {
                    self.warn(reason, why.clone());
                    failures += 1;
                    first.get_or_insert((reason, why));
                }
            }
        }
        // With a metric missing, the others may ask for more but not for fewer.
        let fewer = best.as_ref().is_none_or(|(replicas, _)| *replicas < self.current);
        if let Some((reason, why)) = first
            && fewer
        {
            let message = format!("the HPA was unable to compute the replica count: {why}");
            self.condition("ScalingActive", false, reason, message);
            let total = metrics.len();
            self.warn(
                "FailedComputeMetricsReplicas",
                format!("invalid metrics ({failures} invalid out of {total}), first error is: {why}"),
            );
            return None;
        }
        let (replicas, name) = best?;
        let message = format!("the HPA was able to successfully calculate a replica count from {name}");
        self.condition("ScalingActive", true, "ValidMetricFound", message);
        Some((replicas, name, figures.into()))
    }

    /// What one metric asks for, its name, and its part of the status; or reason and text of why it does not.
    async fn of_metric(&self, spec: &Value) -> Result<(Proposal, String, Value), (&'static str, String)> {
        let kind = spec["type"].as_str().unwrap_or_default();
        let (field, reason) = match kind {
            "Resource" => ("resource", "FailedGetResourceMetric"),
            "ContainerResource" => ("containerResource", "FailedGetContainerResourceMetric"),
            "Pods" => ("pods", "FailedGetPodsMetric"),
            "Object" => ("object", "FailedGetObjectMetric"),
            "External" => ("external", "FailedGetExternalMetric"),
            other => return Err(("InvalidMetricSourceType", format!("unknown metric source type {other:?}"))),
        };
        let source = &spec[field];
        let outcome = match kind {
            "Resource" | "ContainerResource" => self.of_resource(source).await,
            "Pods" => self.of_pods(source).await,
            "Object" => self.of_object(source).await,
            _ => self.of_external(source).await,
        };
        let (proposal, name, mut figure) = outcome.map_err(|why| (reason, why))?;
        for own in ["name", "container", "metric", "describedObject"] {
            if !source[own].is_null() {
                figure[own] = source[own].clone();
            }
        }
        Ok((proposal, name, json!({"type": kind, field: figure})))
    }

    async fn of_resource(&self, source: &Value) -> Result<(Proposal, String, Value), String> {
        let resource = source["name"].as_str().unwrap_or_default();
        let container = source["container"].as_str();
        let (target, percent) =
            match (milli(&source["target"]["averageValue"]), source["target"]["averageUtilization"].as_i64()) {
                (Some(milli), _) => (Target::Average(milli), false),
                (None, Some(percent)) => (Target::Utilization(percent), true),
                (None, None) => {
                    return Err(
                        "invalid resource metric source: neither an average utilization target nor an average value \
                            (usage) target was set"
                            .to_owned(),
                    );
                }
            };
        let failed = |why: String| format!("failed to get {resource} utilization: {why}");
        let metrics = self.controller.apis.resource(self.namespace, &self.selector, resource, container).await;
        let question = Question { container, ..self.question(resource) };
        let proposal = replicas::of_pods(&question, metrics.map_err(failed)?, target).map_err(failed)?;
        let whose = container.map_or_else(|| "resource".to_owned(), |_| "container resource".to_owned());
        let name = match percent {
            true => format!("{resource} {whose} utilization (percentage of request)"),
            false => format!("{resource} {whose}"),
        };
        let mut now = json!({"averageValue": shown(proposal.milli)});
        if let Some(percent) = proposal.percent {
            now["averageUtilization"] = percent.into();
        }
        Ok((proposal, name, json!({"current": now})))
    }

    async fn of_pods(&self, source: &Value) -> Result<(Proposal, String, Value), String> {
        let metric = metric(source)?;
        let target = milli(&source["target"]["averageValue"]).ok_or("no average value target was set")?;
        let metrics = self.controller.apis.of_pods(self.namespace, &self.selector, &metric).await?;
        let proposal = replicas::of_pods(&self.question(""), metrics, Target::Average(target))?;
        let figure = json!({"current": {"averageValue": shown(proposal.milli)}});
        Ok((proposal, format!("pods metric {}", metric.name), figure))
    }

    async fn of_object(&self, source: &Value) -> Result<(Proposal, String, Value), String> {
        let metric = metric(source)?;
        let described = &source["describedObject"];
        let of = |field: &str| described[field].as_str().unwrap_or_default();
        let (plural, _) = self.controller.resource_of(of("apiVersion"), of("kind")).await?;
        let resource = match of("apiVersion").split_once('/') {
            Some((group, _)) => format!("{plural}.{group}"),
            None => plural,
        };
        let value = self.controller.apis.of_object(self.namespace, &resource, of("name"), &metric).await?;
        let name = format!("{} metric {}", of("kind"), metric.name);
        self.of_value(source, value, name, "object")
    }

    async fn of_external(&self, source: &Value) -> Result<(Proposal, String, Value), String> {
        let metric = metric(source)?;
        let value = self.controller.apis.external(self.namespace, &metric).await?;
        self.of_value(source, value, format!("external metric {}({})", metric.name, metric.selector), "external")
    }

    fn of_value(
        &self,
        source: &Value,
        value: i64,
        name: String,
        what: &str,
    ) -> Result<(Proposal, String, Value), String> {
        let target = &source["target"];
        let average = target["type"] == "AverageValue" || target["value"].is_null();
        if let Some(target) = milli(&target["averageValue"]).filter(|_| average) {
            let proposal = replicas::of_value_per_pod(self.seen, value, target, self.tolerance());
            return Ok((proposal, name, json!({"current": {"averageValue": shown(proposal.milli)}})));
        }
        let Some(target) = milli(&target["value"]) else {
            return Err(format!(
                "invalid {what} metric source: neither a value target nor an average value target was set"
            ));
        };
        let proposal = replicas::of_value(&self.question(""), value, target)?;
        Ok((proposal, name, json!({"current": {"value": shown(proposal.milli)}})))
    }

    fn question<'a>(&'a self, resource: &'a str) -> Question<'a> {
        Question {
            pods: &self.pods,
            current: self.current,
            resource,
            container: None,
            tolerance: self.tolerance(),
            now: Timestamp::now(),
        }
    }

    fn tolerance(&self) -> Tolerance {
        let of = |direction: &str| {
            let told = self.autoscaler.spec["behavior"][direction]["tolerance"].as_str();
            told.and_then(|text| text.parse::<Quantity>().ok()).map_or(TOLERANCE, |quantity| quantity.to_f64())
        };
        Tolerance { down: of("scaleDown"), up: of("scaleUp") }
    }
}

fn metric(source: &Value) -> Result<Metric<'_>, String> {
    let selector = &source["metric"]["selector"];
    Ok(Metric { name: source["metric"]["name"].as_str().unwrap_or_default(), selector: selector_text(selector)? })
}

/// A label selector as a query has it.
fn selector_text(selector: &Value) -> Result<String, String> {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut terms: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let values = values.join(",");
        terms.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            other => return Err(format!("{other:?} is not a valid label selector operator")),
        });
    }
    Ok(terms.join(","))
}

fn milli(quantity: &Value) -> Option<i64> {
    Some(quantity.as_str()?.parse::<Quantity>().ok()?.to_milli())
}

fn shown(milli: i64) -> String {
    Quantity::from_milli(milli).to_string()
}

fn stamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn set_condition(status: &mut Value, type_: &str, good: bool, reason: &str, message: &str, now: Timestamp) {
    if !status.is_object() {
        *status = json!({});
    }
    let good = if good { "True" } else { "False" };
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let at = conditions.iter().position(|condition| condition["type"] == *type_);
    let since = at.and_then(|at| conditions.get(at)).filter(|condition| condition["status"] == *good);
    let since = since.and_then(|condition| condition["lastTransitionTime"].as_str()).map(str::to_owned);
    let new = json!({"type": type_, "status": good, "reason": reason, "message": message,
        "lastTransitionTime": since.unwrap_or_else(|| stamp(now))});
    match at.and_then(|at| conditions.get_mut(at)) {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
    status["conditions"] = conditions.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_keep_their_time_and_place() {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut status = Value::Null;
        set_condition(&mut status, "AbleToScale", true, "A", "a", time("2026-01-01T00:00:00Z"));
        set_condition(&mut status, "ScalingActive", true, "B", "b", time("2026-01-01T00:00:00Z"));
        set_condition(&mut status, "AbleToScale", true, "C", "c", time("2026-01-02T00:00:00Z"));
        let first = &status["conditions"][0];
        assert_eq!((&first["reason"], &first["lastTransitionTime"]), (&json!("C"), &json!("2026-01-01T00:00:00Z")));
        set_condition(&mut status, "AbleToScale", false, "D", "d", time("2026-01-02T00:00:00Z"));
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "2026-01-02T00:00:00Z");
        assert_eq!(status["conditions"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn selectors_become_queries() {
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]});
        assert_eq!(selector_text(&selector).unwrap(), "a=b,c in (d,e),!f");
        assert!(selector_text(&json!({"matchExpressions": [{"key": "c", "operator": "Near"}]})).is_err());
    }
}
