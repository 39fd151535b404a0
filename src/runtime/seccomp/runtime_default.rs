//! `RuntimeDefault`: all that Linux offers to ordinary programs, without what only serves to change the machine or to
//! break out of a container.
//!
//! A call that a capability guards in the kernel is open to containers that have this capability. Calls that are newer
//! than our table do not exist for the container (`ENOSYS`), so that libraries fall back to older ones.

use super::{Action, Arch, Compare, Condition, EPERM, Profile, Rule, SPEC_ALLOW};

/// Nobody in a container needs these.
const NEVER: &[&str] = &[
    // Keys are not divided by namespaces.
    "add_key",
    "keyctl",
    "request_key",
    // Too many holes in the past, and reachable without any right.
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "userfaultfd",
    // Another kernel, or what is below this one.
    "kexec_file_load",
    "kexec_load",
    "lsm_set_self_attr",
    "move_pages",
    "migrate_pages",
    "pivot_root",
    "swapoff",
    "swapon",
    // Long dead.
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "nfsservctl",
    "query_module",
    "sysfs",
    "uselib",
    "ustat",
    "vm86",
    "vm86old",
];

/// Open to who has the capability.
const GUARDED: &[(&str, &[&str])] = &[
    (
        "SYS_ADMIN",
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "listns",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "statmount",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("BPF", &["bpf"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("PERFMON", &["perf_event_open"]),
    ("SYSLOG", &["syslog"]),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev"]),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    ("SYS_TIME", &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
];

/// These capabilities are parts of `SYS_ADMIN`, which still stands for them.
const PARTS_OF_SYS_ADMIN: [&str; 3] = ["BPF", "PERFMON", "SYSLOG"];

/// clone(2) flags that make namespaces: mount, cgroup, UTS, IPC, user, PID, network.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// Linux, Linux with 32-bit addresses, both for uname(2) of version 2.6, and the question which one it is.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Sockets to the hypervisor, which no namespace holds back.
const AF_VSOCK: u64 = 40;

/// The profile for a container with these capabilities (without `CAP_`).
pub fn runtime_default(capabilities: &[String]) -> Profile {
    let has = |name: &str| capabilities.iter().any(|one| one == name);
    let admin = has("SYS_ADMIN");
    let mut denied: Vec<&str> = NEVER.to_vec();
    for (capability, calls) in GUARDED {
        if !has(capability) && !(admin && PARTS_OF_SYS_ADMIN.contains(capability)) {
            denied.extend(*calls);
        }
    }
    let rule = |names: &[&str], conditions: Vec<Condition>, action| Rule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        conditions,
        action,
    };
    let when = |argument, compare, value| vec![Condition { argument, compare, value }];
    let deny = Action::Errno(EPERM);
    let mut rules = vec![rule(&denied, Vec::new(), deny)];
    rules.push(rule(&["socket"], when(0, Compare::Equal, AF_VSOCK), deny));
    for value in PERSONALITIES {
        rules.push(rule(&["personality"], when(0, Compare::Equal, value), Action::Allow));
    }
    rules.push(rule(&["personality"], Vec::new(), deny));
    if !admin {
        rules.push(rule(&["clone"], when(0, Compare::Masked(NEW_NAMESPACES), 0), Action::Allow));
        rules.push(rule(&["clone"], Vec::new(), deny));
        // Its flags are in memory, where a filter cannot look. Libraries then use clone.
        rules.push(rule(&["clone3"], Vec::new(), Action::Errno(libc::ENOSYS as u16)));
    }
    let architectures = vec![Arch::NATIVE, Arch::COMPATIBLE];
    let mut known: Vec<&str> = architectures.iter().flat_map(|arch| arch.names()).collect();
    known.sort_unstable();
    known.dedup();
    rules.push(rule(&known, Vec::new(), Action::Allow));
    Profile { default: Action::Errno(libc::ENOSYS as u16), architectures, rules, flags: SPEC_ALLOW }
}
