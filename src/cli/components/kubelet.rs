//! The kubelet's arguments, and its configuration files.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mussel_api::quantity::Quantity;
use mussel_kubelet::{Reserved, Threshold, Thresholds, Tuning};

use super::values::{amount, boolean, entries, number, time};
use super::{Argument, ArgumentError, Unused, kubelet_files};
use crate::cli::args::values::{Taint, label, taint};

const ORIGIN: &str = "--kubelet-arg";
/// What is so here, whatever is said.
const SO_ANYWAY: [(&str, &str); 12] = [
    ("anonymous-auth", "false"),
    ("authentication-token-webhook", "true"),
    ("authorization-mode", "Webhook"),
    ("cgroup-driver", "cgroupfs"),
    ("fail-swap-on", "false"),
    ("make-iptables-util-chains", "true"),
    ("read-only-port", "0"),
    ("register-node", "true"),
    ("rotate-certificates", "true"),
    ("rotate-server-certificates", "true"),
    ("seccomp-default", "false"),
    ("container-runtime", "remote"),
];
const REASONS: [(&str, &str); 9] = [
    ("eviction-soft*", "only hard thresholds send pods away"),
    ("eviction-minimum-reclaim", "what has to be freed follows from the thresholds"),
    ("protect-kernel-defaults", "kernel settings are raised where a node needs it, and never lowered"),
    ("feature-gates", "features are not switched"),
    ("node-ip", "use --node-ip"),
    ("hostname-override", "use --node-name"),
    ("container-runtime-endpoint", "use --container-runtime-endpoint"),
    ("read-only-port", "there is no port without authentication"),
    ("anonymous-auth", "the kubelet answers nobody whom the API does not know"),
];

/// What the kubelet's arguments say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KubeletArguments {
    pub tuning: Tuning,
    pub cluster_dns: Option<Vec<IpAddr>>,
    pub cluster_domain: Option<String>,
    pub resolv_conf: Option<PathBuf>,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub provider_id: Option<String>,
    /// Another program is to say what the machine is to the cloud, before pods may run there.
    pub cloud_provider_external: bool,
    system_reserved: Reserved,
    kube_reserved: Reserved,
}

impl KubeletArguments {
    /// `dropins` is the folder of configuration files; the command line wins over them.
    ///
    /// # Errors
    /// When a value cannot be, or a file cannot be read.
    pub fn read(texts: &[String], dropins: &Path, unused: &mut Unused) -> Result<Self, ArgumentError> {
        let given = Argument::list(ORIGIN, texts);
        let is_file = |argument: &Argument| matches!(argument.name.as_str(), "config" | "config-dir");
        let (files, given): (Vec<_>, Vec<_>) = given.into_iter().partition(is_file);
        let last = |name: &str| files.iter().rev().find(|file| file.name == name).map(|file| Path::new(&file.value));
        let mut all = kubelet_files::arguments(dropins, last("config"), last("config-dir"))?;
        all.extend(given);
        let mut settings = Self::default();
        for argument in &all {
            if !settings.take(argument)? {
                unused.note(argument, &SO_ANYWAY, &REASONS);
            }
        }
        let (system, kube) = (settings.system_reserved, settings.kube_reserved);
        settings.tuning.reserved = Reserved {
            milli_cpu: system.milli_cpu.saturating_add(kube.milli_cpu),
            memory_bytes: system.memory_bytes.saturating_add(kube.memory_bytes),
            ephemeral_storage_bytes: system.ephemeral_storage_bytes.saturating_add(kube.ephemeral_storage_bytes),
        };
        if settings.tuning.image_gc_low_percent >= settings.tuning.image_gc_high_percent {
            let reason = format!(
                "image-gc-low-threshold {} must be below image-gc-high-threshold {}",
                settings.tuning.image_gc_low_percent, settings.tuning.image_gc_high_percent
            );
            return Err(ArgumentError::File { origin: ORIGIN.to_owned(), reason });
        }
        Ok(settings)
    }

    /// Whether it has an effect.
    fn take(&mut self, argument: &Argument) -> Result<bool, ArgumentError> {
        let second = Duration::from_secs(1);
        let tuning = &mut self.tuning;
        match argument.name.as_str() {
            "max-pods" => tuning.pods_max = argument.read(number(1, 10_000))?,
            "pod-max-pids" => {
                let most: i64 = argument.read(number(-1, i64::from(u32::MAX)))?;
                tuning.pod_pids_max = u64::try_from(most).ok().filter(|most| *most > 0);
            }
            "eviction-hard" => tuning.eviction = argument.read(thresholds)?,
            "eviction-pressure-transition-period" => {
                tuning.pressure_transition = argument.read(time(Duration::ZERO))?;
            }
            "image-gc-high-threshold" => tuning.image_gc_high_percent = argument.read(number(1, 100))?,
            "image-gc-low-threshold" => tuning.image_gc_low_percent = argument.read(number(0, 100))?,
            "minimum-image-ttl-duration" => tuning.image_age_min = argument.read(time(Duration::ZERO))?,
            "serialize-image-pulls" => {
                if argument.read(boolean)? {
                    tuning.pulls_max = 1;
                }
            }
            "max-parallel-image-pulls" => tuning.pulls_max = argument.read(number(1, 1000))?,
            "container-log-max-size" => {
                let bytes = argument.read(amount)?;
                tuning.log_bytes_max = argument.read(|_| match bytes {
                    0 => Err("must be more than 0".to_owned()),
                    bytes => Ok(bytes),
                })?;
            }
            "allowed-unsafe-sysctls" => {
                tuning
                    .allowed_unsafe_sysctls
                    .extend(argument.read(|text| entries(text).map(sysctl).collect::<Result<Vec<_>, _>>())?);
            }
            "container-log-max-files" => tuning.log_files_max = argument.read(number(2, 1000))?,
            // Upstream takes the one for the other unless both are given.
            "node-status-update-frequency" | "node-status-report-frequency" => {
                tuning.status_period = argument.read(time(second))?;
            }
            "system-reserved" => self.system_reserved = argument.read(reserved)?,
            "kube-reserved" => self.kube_reserved = argument.read(reserved)?,
            "cluster-dns" => {
                let addresses = argument.read(|text| {
                    let parse = |entry: &str| entry.parse().map_err(|_| format!("{entry:?} is no address"));
                    entries(text).map(parse).collect::<Result<Vec<IpAddr>, _>>()
                })?;
                self.cluster_dns.get_or_insert_default().extend(addresses);
            }
            "cluster-domain" => self.cluster_domain = Some(argument.value.trim_matches('.').to_owned()),
            "resolv-conf" => self.resolv_conf = Some(PathBuf::from(&argument.value)),
            "node-labels" => {
                self.labels.extend(argument.read(|text| entries(text).map(label).collect::<Result<Vec<_>, _>>())?)
            }
            "register-with-taints" => {
                self.taints.extend(argument.read(|text| entries(text).map(taint).collect::<Result<Vec<_>, _>>())?);
            }
            "provider-id" => self.provider_id = Some(argument.value.clone()),
            "cloud-provider" => self.cloud_provider_external = argument.value == "external",
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn sysctl(pattern: &str) -> Result<String, String> {
    match mussel_kubelet::is_sysctl_pattern(pattern) {
        true => Ok(pattern.to_owned()),
        false => Err(format!("{pattern:?} is not a setting that a pod can have of its own")),
    }
}

/// `cpu=500m,memory=256Mi,ephemeral-storage=1Gi`
fn reserved(text: &str) -> Result<Reserved, String> {
    let mut reserved = Reserved::default();
    for entry in entries(text) {
        let (name, value) = entry.split_once('=').ok_or_else(|| format!("{entry:?} is not of the form name=amount"))?;
        let quantity = Quantity::parse(value.trim()).map_err(|error| format!("{entry:?}: {error}"))?;
        if quantity.is_negative() {
            return Err(format!("{entry:?} must not be negative"));
        }
        match name.trim() {
            "cpu" => reserved.milli_cpu = quantity.to_milli(),
            "memory" => reserved.memory_bytes = quantity.value(),
            "ephemeral-storage" => reserved.ephemeral_storage_bytes = quantity.value(),
            // Counted by upstream for its own cgroups only.
            "pid" => {}
            other => return Err(format!("{other:?} cannot be reserved; cpu, memory, ephemeral-storage and pid can")),
        }
    }
    Ok(reserved)
}

/// `memory.available<100Mi,nodefs.available<5%`. What is not named never sends a pod away.
fn thresholds(text: &str) -> Result<Thresholds, String> {
    let mut thresholds = Thresholds::NONE;
    for entry in entries(text) {
        let (signal, value) =
            entry.split_once('<').ok_or_else(|| format!("{entry:?} is not of the form signal<amount"))?;
        let threshold = threshold(value.trim()).map_err(|reason| format!("{entry:?}: {reason}"))?;
        let slot = match signal.trim() {
            "memory.available" => &mut thresholds.memory,
            // Images lie on the node's file system.
            "nodefs.available" | "imagefs.available" => &mut thresholds.disk,
            "nodefs.inodesFree" | "imagefs.inodesFree" => &mut thresholds.inodes,
            "pid.available" => &mut thresholds.pids,
            "containerfs.available" | "containerfs.inodesFree" | "allocatableMemory.available" => continue,
            other => return Err(format!("{other:?} is nothing that can be scarce")),
        };
        // Of two for one file system the stricter counts, as far as they can be compared.
        *slot = match (*slot, threshold) {
            (Some(Threshold::Share(a)), Some(Threshold::Share(b))) => Some(Threshold::Share(a.max(b))),
            (Some(Threshold::Amount(a)), Some(Threshold::Amount(b))) => Some(Threshold::Amount(a.max(b))),
            (known, new) => new.or(known),
        };
    }
    Ok(thresholds)
}

/// `None` for 0 and 0%: no threshold.
fn threshold(text: &str) -> Result<Option<Threshold>, String> {
    let Some(percent) = text.strip_suffix('%') else {
        return Ok(Some(amount(text)?).filter(|least| *least > 0).map(Threshold::Amount));
    };
    match percent.parse::<f64>() {
        Ok(percent) if (0.0..100.0).contains(&percent) => {
            Ok((percent > 0.0).then_some(Threshold::Share(percent / 100.0)))
        }
        _ => Err("must be an amount or less than 100%".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<KubeletArguments, String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let none = Path::new("/nonexistent");
        KubeletArguments::read(&texts, none, &mut Unused::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_with_a_meaning_take_effect() {
        let read = read(&[
            "max-pods=250",
            "eviction-hard=memory.available<200Mi,nodefs.available<10%,imagefs.available<15%",
            "system-reserved=cpu=250m,memory=256Mi",
            "kube-reserved=cpu=250m,memory=256Mi,ephemeral-storage=1Gi",
            "container-log-max-size=5Mi",
            "container-log-max-files=3",
            "node-status-update-frequency=10s",
            "image-gc-high-threshold=70",
            "image-gc-low-threshold=60",
            "serialize-image-pulls=true",
            "node-labels=a=b,c=d",
            "register-with-taints=x=y:NoSchedule",
            "cluster-dns=10.43.0.11",
            "pod-max-pids=300",
            "cloud-provider=external",
            "allowed-unsafe-sysctls=net.*,kernel.msgmax",
            "provider-id=cloud://1",
        ])
        .unwrap();
        let tuning = &read.tuning;
        assert_eq!((tuning.pods_max, tuning.pulls_max, tuning.pod_pids_max), (250, 1, Some(300)));
        assert_eq!(tuning.eviction.memory, Some(Threshold::Amount(200 << 20)));
        assert_eq!(tuning.eviction.disk, Some(Threshold::Share(0.15)), "the stricter of node and images");
        assert_eq!((tuning.eviction.inodes, tuning.eviction.pids), (None, None), "what is not named is off");
        let reserved = Reserved { milli_cpu: 500, memory_bytes: 512 << 20, ephemeral_storage_bytes: 1 << 30 };
        assert_eq!(tuning.reserved, reserved);
        assert_eq!((tuning.log_bytes_max, tuning.log_files_max), (5 << 20, 3));
        assert_eq!((tuning.image_gc_high_percent, tuning.image_gc_low_percent), (70, 60));
        assert_eq!(tuning.status_period, Duration::from_secs(10));
        assert_eq!(read.labels.len(), 2);
        assert_eq!(tuning.allowed_unsafe_sysctls, ["net.*", "kernel.msgmax"]);
        assert_eq!(read.taints[0].effect, "NoSchedule");
        assert_eq!(read.cluster_dns.unwrap(), ["10.43.0.11".parse::<IpAddr>().unwrap()]);
        assert!(read.cloud_provider_external && read.provider_id.as_deref() == Some("cloud://1"));
    }

    #[test]
    fn wrong_values_end_the_start() {
        for (text, says) in [
            ("max-pods=many", "must be a number from 1 to 10000"),
            ("eviction-hard=memory.available<lots", "memory.available<lots"),
            ("eviction-hard=memory.free<1Gi", "nothing that can be scarce"),
            ("eviction-hard=nodefs.available<100%", "less than 100%"),
            ("system-reserved=gpu=1", "cannot be reserved"),
            ("allowed-unsafe-sysctls=vm.*", "of its own"),
            ("container-log-max-files=1", "from 2"),
            ("image-gc-low-threshold=90", "must be below"),
            ("register-with-taints=x", "key=value:effect"),
        ] {
            let error = read(&[text]).unwrap_err();
            assert!(error.contains(says) && error.contains("--kubelet-arg"), "{text}: {error}");
        }
    }

    #[test]
    fn the_command_line_wins_over_files_and_files_follow_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own.yaml");
        std::fs::write(&own, "kind: KubeletConfiguration\nmaxPods: 50\nclusterDomain: own.example\n").unwrap();
        let dropins = dir.path().join("kubelet.conf.d");
        std::fs::create_dir(&dropins).unwrap();
        std::fs::write(dropins.join("05-a.conf"), "maxPods: 40\nevictionHard: {memory.available: 1%}\n").unwrap();
        std::fs::write(dropins.join("30-b.conf"), "maxPods: 60\nsystemReserved:\n  memory: 1Gi\n").unwrap();
        let mut unused = Unused::default();
        let arguments = [format!("config={}", own.display())];
        let read = KubeletArguments::read(&arguments, &dropins, &mut unused).unwrap();
        assert_eq!((read.tuning.pods_max, read.cluster_domain.as_deref()), (60, Some("own.example")));
        assert_eq!(read.tuning.eviction.memory, Some(Threshold::Share(0.01)));
        assert_eq!(read.tuning.reserved.memory_bytes, 1 << 30);
        let arguments = [arguments[0].clone(), "max-pods=70".to_owned()];
        assert_eq!(KubeletArguments::read(&arguments, &dropins, &mut unused).unwrap().tuning.pods_max, 70);
        assert!(unused.0.is_empty(), "{unused:?}");
        std::fs::write(dropins.join("31-c.conf"), "maxPods: [").unwrap();
        assert!(
            KubeletArguments::read(&arguments, &dropins, &mut unused).unwrap_err().to_string().contains("31-c.conf")
        );
    }
}
