//! What a kubelet's `/metrics/resource` says, and what two such answers say together.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// A container that has run for less says nothing yet.
const AGE_MIN: f64 = 1.0;

/// What is used: CPU on average over a time, memory at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub nano_cores: u64,
    pub memory_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Figures {
    cpu_seconds: Option<f64>,
    memory_bytes: Option<f64>,
    /// Seconds since the epoch.
    started: f64,
}

/// One answer of one kubelet.
#[derive(Clone, Debug)]
pub struct Sample {
    taken: Instant,
    time: Timestamp,
    node: Figures,
    /// By namespace and pod, then by container.
    pods: HashMap<(String, String), HashMap<String, Figures>>,
}

impl Sample {
    /// Reads the text form of Prometheus; lines that are about something else are skipped.
    pub fn read(text: &str, taken: Instant, time: Timestamp) -> Self {
        let mut sample = Self { taken, time, node: Figures::default(), pods: HashMap::new() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, labels, value)) = split(line) else { continue };
            let figures = match name {
                "node_cpu_usage_seconds_total" | "node_memory_working_set_bytes" => &mut sample.node,
                "container_cpu_usage_seconds_total"
                | "container_memory_working_set_bytes"
                | "container_start_time_seconds" => {
                    let label =
                        |name: &str| labels.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
                    let (Some(namespace), Some(pod), Some(container)) =
                        (label("namespace"), label("pod"), label("container"))
                    else {
                        continue;
                    };
                    sample.pods.entry((namespace, pod)).or_default().entry(container).or_default()
                }
                _ => continue,
            };
            match name.rsplit('_').next() {
                Some("total") => figures.cpu_seconds = Some(value),
                Some("bytes") => figures.memory_bytes = Some(value),
                _ => figures.started = value,
            }
        }
        sample
    }

    pub fn age(&self) -> Duration {
        self.taken.elapsed()
    }
}

/// `name{key="value",…} number [time]`
fn split(line: &str) -> Option<(&str, Vec<(&str, String)>, f64)> {
    let (name, mut rest) = match line.find(['{', ' ']) {
        Some(at) => line.split_at(at),
        None => return None,
    };
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut letters = after.char_indices();
            let end = loop {
                match letters.next()? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match letters.next()?.1 {
                        'n' => '\n',
                        other => other,
                    }),
                    (_, letter) => value.push(letter),
                }
            };
            labels.push((key, value));
            rest = &after[end + 1..];
        }
    }
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some((name, labels, value))
}

/// Two samples of one kubelet, the earlier one first.
#[derive(Clone, Debug)]
pub struct Interval {
    pub before: Sample,
    pub last: Sample,
}

impl Interval {
    pub fn window(&self) -> Duration {
        self.last.taken - self.before.taken
    }

    /// In RFC 3339, to the second.
    pub fn timestamp(&self) -> String {
        self.last.time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    pub fn node(&self) -> Option<Usage> {
        self.usage(Some(&self.before.node), &self.last.node)
    }

    /// Of a pod; `None` when one of its containers is too young to be told of.
    pub fn containers(&self, namespace: &str, pod: &str) -> Option<Vec<(&str, Usage)>> {
        let key = (namespace.to_owned(), pod.to_owned());
        let before = self.before.pods.get(&key);
        let of = |(name, last): (&'_ String, &Figures)| {
            let before = before.and_then(|containers| containers.get(name));
            Some((name.clone(), self.usage(before, last)?))
        };
        let last = self.last.pods.get(&key)?;
        let mut found: Vec<(String, Usage)> = last.iter().map(of).collect::<Option<_>>()?;
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let named = |(name, usage): (String, Usage)| Some((last.get_key_value(&name)?.0.as_str(), usage));
        found.into_iter().map(named).collect()
    }

    fn usage(&self, before: Option<&Figures>, last: &Figures) -> Option<Usage> {
        let (cpu, memory) = (last.cpu_seconds?, last.memory_bytes?);
        let now = self.last.time.as_millisecond() as f64 / 1000.0;
        let same = before.filter(|before| before.started == last.started);
        let (used, seconds) = match same.and_then(|before| before.cpu_seconds) {
            Some(before) if before <= cpu => (cpu - before, self.window().as_secs_f64()),
            // Started in between: all that it used was since then.
            _ if last.started > 0.0 && now - last.started >= AGE_MIN => (cpu, now - last.started),
            _ => return None,
        };
        if seconds <= 0.0 {
            return None;
        }
        // Casts of floats saturate.
        Some(Usage { nano_cores: (used / seconds * 1e9) as u64, memory_bytes: memory as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str, at: Instant, seconds: i64) -> Sample {
        Sample::read(text, at, Timestamp::from_second(1_000_000 + seconds).unwrap())
    }

    const BEFORE: &str = "\
# HELP x y
node_cpu_usage_seconds_total 100
node_memory_working_set_bytes 4096
container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 10 123456
container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 2048
container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 999900
scrape_error 0
";

    #[tokio::test(start_paused = true)]
    async fn cpu_is_the_difference_of_two_samples() {
        let start = Instant::now();
        let before = sample(BEFORE, start, 0);
        let last = sample(
            &BEFORE
                .replace("total 100", "total 104")
                .replace("} 10 ", "} 15 ")
                .replace("2048", "1e6")
                // Another pod has started four seconds ago.
                .chars()
                .chain(
                    "container_cpu_usage_seconds_total{container=\"d\",namespace=\"n\",pod=\"q\"} 2\n\
                     container_memory_working_set_bytes{container=\"d\",namespace=\"n\",pod=\"q\"} 1\n\
                     container_start_time_seconds{container=\"d\",namespace=\"n\",pod=\"q\"} 1000006\n"
                        .chars(),
                )
                .collect::<String>(),
            start + Duration::from_secs(10),
            10,
        );
        let interval = Interval { before, last };
        assert_eq!(interval.node(), Some(Usage { nano_cores: 400_000_000, memory_bytes: 4096 }));
        let used = Usage { nano_cores: 500_000_000, memory_bytes: 1_000_000 };
        assert_eq!(interval.containers("n", "p"), Some(vec![("c", used)]));
        let used = Usage { nano_cores: 500_000_000, memory_bytes: 1 };
        assert_eq!(interval.containers("n", "q"), Some(vec![("d", used)]));
        assert_eq!(interval.containers("n", "r"), None);
        assert_eq!(interval.timestamp(), "1970-01-12T13:46:50Z");
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarted_container_counts_from_its_start() {
        let start = Instant::now();
        let last = BEFORE.replace("} 10 ", "} 1 ").replace("999900", "1000008");
        let interval =
            Interval { before: sample(BEFORE, start, 0), last: sample(&last, start + Duration::from_secs(10), 10) };
        let used = Usage { nano_cores: 500_000_000, memory_bytes: 2048 };
        assert_eq!(interval.containers("n", "p"), Some(vec![("c", used)]));
        let younger = BEFORE.replace("999900", "1000009.5");
        let interval =
            Interval { before: sample(BEFORE, start, 0), last: sample(&younger, start + Duration::from_secs(10), 10) };
        assert_eq!(interval.containers("n", "p"), None);
    }

    #[test]
    fn labels_are_unescaped() {
        let (name, labels, value) = split("m{a=\"x\\\"y\\\\z\", b=\"{}\"} 1.5").unwrap();
        assert_eq!((name, value), ("m", 1.5));
        assert_eq!(labels, [("a", "x\"y\\z".to_owned()), ("b", "{}".to_owned())]);
        for bad in ["m", "m{a=\"x} 1", "m NaN", "m{a} 1", "m{}"] {
            assert!(split(bad).is_none(), "{bad}");
        }
    }
}
