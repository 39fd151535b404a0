//! Asks the metrics APIs: resources of the binary itself or a metrics-server, the others of an adapter, when there is one.

use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use mussel_api::quantity::Quantity;
use serde_json::Value;

use super::replicas::{Measured, Metrics};
use crate::error::text;

/// The metrics APIs, as the controller.
pub struct MetricsApis {
    pub client: Client,
}

impl MetricsApis {
    /// What Pods use of a resource, all containers together or one of them.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn resource(
        &self,
        namespace: &str,
        selector: &str,
        resource: &str,
        container: Option<&str>,
    ) -> Result<Metrics, String> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods");
        let failed = |why: String| format!("unable to get metrics for resource {resource}: {why}");
        let list = self.get(&path, &[("labelSelector", selector)]).await;
        let list = list.map_err(|why| failed(format!("unable to fetch metrics from resource metrics API: {why}")))?;
        let items = items(&list);
        if items.is_empty() {
            return Err(failed("no metrics returned from resource metrics API".to_owned()));
        }
        let mut metrics = Metrics::new();
        for item in items {
            let Some(name) = item["metadata"]["name"].as_str() else { continue };
            let containers = item["containers"].as_array().into_iter().flatten();
            let wanted = containers.filter(|one| container.is_none_or(|wanted| one["name"] == *wanted));
            let amounts: Option<Vec<i64>> = wanted.map(|one| milli(&one["usage"][resource])).collect();
            let Some(amounts) = amounts.filter(|amounts| !amounts.is_empty()) else { continue };
            metrics.insert(name.to_owned(), measured(item, "window", amounts.iter().sum()));
        }
        Ok(metrics)
    }

    /// A metric of each Pod.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn of_pods(&self, namespace: &str, selector: &str, metric: &Metric<'_>) -> Result<Metrics, String> {
        let failed = |why: String| {
            format!("unable to get metric {}: unable to fetch metrics from custom metrics API: {why}", metric.name)
        };
        let version = self.version("custom.metrics.k8s.io").await.map_err(failed)?;
        let path = format!("/apis/custom.metrics.k8s.io/{version}/namespaces/{namespace}/pods/*/{}", metric.name);
        let query = [("labelSelector", selector), ("metricLabelSelector", &metric.selector)];
        let list = self.get(&path, &query).await.map_err(failed)?;
        let items = items(&list);
        if items.is_empty() {
            return Err(failed("no metrics returned from custom metrics API".to_owned()));
        }
        let value = |item: &Value| {
            let name = item["describedObject"]["name"].as_str()?.to_owned();
            Some((name, measured(item, "windowSeconds", milli(&item["value"])?)))
        };
        Ok(items.iter().filter_map(value).collect())
    }

    /// A metric of one object, in thousandths. `resource` is as in `services` or `ingresses.networking.k8s.io`.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn of_object(
        &self,
        namespace: &str,
        resource: &str,
        name: &str,
        metric: &Metric<'_>,
    ) -> Result<i64, String> {
        let failed = |why: String| {
            format!(
                "unable to get metric {}: {resource} on {namespace} {name}/unable to fetch metrics from custom metrics API: {why}",
                metric.name
            )
        };
        let version = self.version("custom.metrics.k8s.io").await.map_err(failed)?;
        let root = format!("/apis/custom.metrics.k8s.io/{version}");
        let path = match resource {
            "namespaces" => format!("{root}/namespaces/{name}/metrics/{}", metric.name),
            _ => format!("{root}/namespaces/{namespace}/{resource}/{name}/{}", metric.name),
        };
        let list = self.get(&path, &[("metricLabelSelector", &metric.selector)]).await.map_err(failed)?;
        let value = items(&list).first().and_then(|item| milli(&item["value"]));
        value.ok_or_else(|| failed("no metrics returned from custom metrics API".to_owned()))
    }

    /// The sum of a metric of something outside, in thousandths.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn external(&self, namespace: &str, metric: &Metric<'_>) -> Result<i64, String> {
        let failed = |why: String| {
            format!(
                "unable to get external metric {namespace}/{}/{}: unable to fetch metrics from external metrics API: {why}",
                metric.name, metric.selector
            )
        };
        let path = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}", metric.name);
        let list = self.get(&path, &[("labelSelector", &metric.selector)]).await.map_err(failed)?;
        let values: Vec<i64> = items(&list).iter().filter_map(|item| milli(&item["value"])).collect();
        if values.is_empty() {
            return Err(failed("no metrics returned from external metrics API".to_owned()));
        }
        Ok(values.iter().fold(0, |sum: i64, value| sum.saturating_add(*value)))
    }

    /// The version that the group's server prefers.
    async fn version(&self, group: &str) -> Result<String, String> {
        let group = self.get(&format!("/apis/{group}"), &[]).await?;
        let version = group["preferredVersion"]["version"].as_str();
        version.map(str::to_owned).ok_or_else(|| "no version is served".to_owned())
    }

    /// # Errors
    /// The server's message.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, String> {
        let mut uri = path.to_owned();
        for (index, (key, value)) in query.iter().filter(|(_, value)| !value.is_empty()).enumerate() {
            uri.push(if index == 0 { '?' } else { '&' });
            uri.push_str(key);
            uri.push('=');
            encode(value, &mut uri);
        }
        let request = http::Request::get(uri).body(Vec::new()).map_err(|error| error.to_string())?;
        self.client.request::<Value>(request).await.map_err(|error| text(&error))
    }
}

/// A metric's name, and its selector as a query has it.
pub struct Metric<'a> {
    pub name: &'a str,
    pub selector: String,
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn milli(quantity: &Value) -> Option<i64> {
    Some(quantity.as_str()?.parse::<Quantity>().ok()?.to_milli())
}

fn measured(item: &Value, window: &str, milli: i64) -> Measured {
    let at = item["timestamp"].as_str().and_then(|text| text.parse().ok());
    let window = match &item[window] {
        Value::Number(seconds) => seconds.as_u64().map(Duration::from_secs),
        Value::String(text) => text.strip_suffix('s').and_then(|seconds| seconds.parse().ok()).and_then(seconds),
        _ => None,
    };
    // As upstream assumes, where nothing is said.
    let window = window.unwrap_or(Duration::from_secs(60));
    Measured { milli, at: at.unwrap_or_else(Timestamp::now), window }
}

fn seconds(number: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(number).ok()
}

/// Percent encoding of a query's value.
fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
}
