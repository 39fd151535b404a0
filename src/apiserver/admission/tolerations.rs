//! Pods stay for a while on a node that is not ready or not reachable, unless they say otherwise.

use serde_json::{Value, json};

use super::{Attributes, Plugin};
use crate::config::Config;
use crate::status::Status;

pub struct DefaultTolerationSeconds {
    /// Which taints are tolerated for how long.
    taints: [(&'static str, i64); 2],
}

impl DefaultTolerationSeconds {
    pub fn new(config: &Config) -> Self {
        let (not_ready, unreachable) = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable");
        Self { taints: [(not_ready, config.not_ready_seconds), (unreachable, config.unreachable_seconds)] }
    }
}

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn mutate(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        if !attributes.creates("pods") || !object["spec"].is_object() {
            return Ok(());
        }
        let tolerations = object["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        let mut more = tolerations.clone();
        for (taint, seconds) in self.taints {
            let tolerated = tolerations.iter().any(|toleration| {
                let key = toleration["key"].as_str().unwrap_or_default();
                let effect = toleration["effect"].as_str().unwrap_or_default();
                (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
            });
            if !tolerated {
                more.push(
                    json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}),
                );
            }
        }
        if more.len() > tolerations.len() {
            object["spec"]["tolerations"] = more.into();
        }
        Ok(())
    }
}
