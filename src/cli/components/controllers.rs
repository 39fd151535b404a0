//! The controller manager's arguments.

use std::time::Duration;

use super::values::{number, time};
use super::{Argument, ArgumentError, Unused};

const ORIGIN: &str = "--kube-controller-manager-arg";
const SO_ANYWAY: [(&str, &str); 6] = [
    ("profiling", "false"),
    ("bind-address", "127.0.0.1"),
    ("use-service-account-credentials", "true"),
    ("allocate-node-cidrs", "true"),
    ("configure-cloud-routes", "false"),
    ("leader-elect", "true"),
];
const REASONS: [(&str, &str); 6] = [
    ("node-monitor-period", "nodes are watched, not looked at in turns"),
    ("pod-eviction-timeout", "pods say themselves how long they stay: tolerationSeconds"),
    ("concurrent-*", "the number of workers is fixed"),
    ("cluster-signing-*", "the cluster's own authorities sign"),
    ("horizontal-pod-autoscaler-*", "autoscalers are looked at as upstream does by default"),
    ("cluster-cidr", "use --cluster-cidr"),
];

/// What the controller manager's arguments say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerArguments {
    pub node_monitor_grace_period: Duration,
    pub terminated_pods_max: usize,
    pub node_cidr_mask: Option<u8>,
    pub signing_duration: Duration,
}

impl ControllerArguments {
    /// # Errors
    /// When a value cannot be.
    pub fn read(texts: &[String], unused: &mut Unused) -> Result<Self, ArgumentError> {
        let mut settings = Self {
            node_monitor_grace_period: mussel_controllers::NODE_MONITOR_GRACE_PERIOD,
            terminated_pods_max: mussel_controllers::TERMINATED_PODS_MAX,
            node_cidr_mask: None,
            signing_duration: mussel_controllers::SIGNING_DURATION,
        };
        for argument in Argument::list(ORIGIN, texts) {
            match argument.name.as_str() {
                // A node's lease is renewed every ten seconds.
                "node-monitor-grace-period" => {
                    settings.node_monitor_grace_period = argument.read(time(Duration::from_secs(12)))?;
                }
                "terminated-pod-gc-threshold" => {
                    let most: i64 = argument.read(number(i64::MIN, i64::MAX))?;
                    // As upstream has it: nothing is removed with 0 or less.
                    settings.terminated_pods_max =
                        usize::try_from(most).ok().filter(|most| *most > 0).unwrap_or(usize::MAX);
                }
                "node-cidr-mask-size" | "node-cidr-mask-size-ipv4" => {
                    settings.node_cidr_mask = Some(argument.read(number(9, 30))?);
                }
                "cluster-signing-duration" => {
                    settings.signing_duration = argument.read(time(Duration::from_secs(600)))?;
                }
                _ => unused.note(&argument, &SO_ANYWAY, &REASONS),
            }
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_with_a_meaning_take_effect() {
        let read = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            ControllerArguments::read(&texts, &mut Unused::default())
        };
        let settings =
            read(&["node-monitor-grace-period=20s", "terminated-pod-gc-threshold=100", "node-cidr-mask-size=25"])
                .unwrap();
        assert_eq!(settings.node_monitor_grace_period, Duration::from_secs(20));
        assert_eq!((settings.terminated_pods_max, settings.node_cidr_mask), (100, Some(25)));
        assert_eq!(read(&["terminated-pod-gc-threshold=0"]).unwrap().terminated_pods_max, usize::MAX);
        assert!(read(&["node-monitor-grace-period=2s"]).unwrap_err().to_string().contains("12s"));
    }
}
