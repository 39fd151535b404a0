//! What operators turn on a node: upstream's kubelet configuration, as far as it has a meaning here, with its defaults.

use std::time::Duration;

/// How much must stay free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// Bytes, or a number of inodes or process ids.
    Amount(u64),
    /// A part of the whole, between 0 and 1.
    Share(f64),
    /// The smaller of an amount and a share: what is little on a large machine may be much of a small one.
    Smaller(u64, f64),
}

impl Threshold {
    /// Whether less than that is free. What has no size cannot run out.
    pub fn is_passed(self, total: u64, free: u64) -> bool {
        total > 0
            && match self {
                Self::Amount(least) => free < least,
                Self::Share(_) | Self::Smaller(..) => free < self.of(total),
            }
    }

    /// As upstream writes it.
    pub fn show(self, total: u64) -> String {
        match self {
            Self::Amount(least) => least.to_string(),
            Self::Share(share) => format!("{}%", share * 100.0),
            Self::Smaller(..) => self.of(total).to_string(),
        }
    }

    /// The amount that stays free of `total`.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Amount(least) => least.min(total),
            Self::Share(least) => (total as f64 * least) as u64,
            Self::Smaller(amount, share) => amount.min((total as f64 * share) as u64),
        }
    }
}

/// `evictionHard`: what may become scarce, and from when on pods are sent away. `None` never does that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    pub memory: Option<Threshold>,
    pub disk: Option<Threshold>,
    pub inodes: Option<Threshold>,
    pub pids: Option<Threshold>,
}

impl Thresholds {
    pub const NONE: Self = Self { memory: None, disk: None, inodes: None, pids: None };
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            memory: Some(Threshold::Smaller(100 << 20, 0.05)),
            disk: Some(Threshold::Share(0.05)),
            inodes: Some(Threshold::Share(0.05)),
            pids: Some(Threshold::Share(0.05)),
        }
    }
}

/// `systemReserved` and `kubeReserved` together: what pods do not get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    pub milli_cpu: i64,
    pub memory_bytes: i64,
    pub ephemeral_storage_bytes: i64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    pub pods_max: u32,
    /// Process ids that one pod may have.
    pub pod_pids_max: Option<u64>,
    pub reserved: Reserved,
    pub eviction: Thresholds,
    /// A condition stays this long after the pressure ended, or it would flap.
    pub pressure_transition: Duration,
    /// Above this share of the disk unused images are removed, down to the lower one.
    pub image_gc_high_percent: u64,
    pub image_gc_low_percent: u64,
    /// Younger images stay.
    pub image_age_min: Duration,
    /// Pulls at the same time. More would only share the same wire and disk.
    pub pulls_max: usize,
    /// A container's log file is put aside when it is longer.
    pub log_bytes_max: u64,
    /// Files of one container's log, the current one included.
    pub log_files_max: usize,
    /// Kernel settings that pods may make although they can harm the node; a star at the end stands for any rest.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// An unchanged status of the node is said again this often.
    pub status_period: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            pods_max: 110,
            pod_pids_max: None,
            reserved: Reserved::default(),
            eviction: Thresholds::default(),
            pressure_transition: Duration::from_secs(300),
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            image_age_min: Duration::from_secs(120),
            pulls_max: 3,
            log_bytes_max: 10 << 20,
            log_files_max: 5,
            allowed_unsafe_sysctls: Vec::new(),
            status_period: Duration::from_secs(300),
        }
    }
}

impl Tuning {
    /// What of a file system's bytes is there for pods: not what is reserved, nor what has to stay free.
    pub fn storage_for_pods(&self, capacity: u64) -> u64 {
        let kept_free = self.eviction.disk.map_or(0, |least| least.of(capacity));
        let reserved = u64::try_from(self.reserved.ephemeral_storage_bytes).unwrap_or(0);
        capacity.saturating_sub(kept_free).saturating_sub(reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_amounts_or_shares() {
        assert!(Threshold::Amount(100).is_passed(1000, 99) && !Threshold::Amount(100).is_passed(1000, 100));
        assert!(Threshold::Share(0.1).is_passed(1000, 99) && !Threshold::Share(0.1).is_passed(1000, 100));
        assert!(!Threshold::Amount(100).is_passed(0, 0), "a file system that counts no inodes has none to run out of");
        assert_eq!((Threshold::Share(0.1).of(1000), Threshold::Amount(5000).of(1000)), (100, 1000));
        assert_eq!((Threshold::Smaller(100, 0.05).of(1000), Threshold::Smaller(100, 0.05).of(10_000)), (50, 100));
    }
}
