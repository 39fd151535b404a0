//! Kernel settings of a sandbox: only those of its own namespaces, whoever asks.

/// Whether a setting can be made in a sandbox without reaching the machine.
pub fn is_own(name: &str, own_network: bool, own_ipc: bool) -> bool {
    // As it becomes a path: with slashes, or with dots for them.
    let parts: Vec<&str> = name.split(if name.contains('/') { '/' } else { '.' }).collect();
    if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        return false;
    }
    match parts.as_slice() {
        ["net", _, ..] => own_network,
        ["kernel", "sem"] | ["fs", "mqueue", _] => own_ipc,
        ["kernel", name] => own_ipc && (name.starts_with("shm") || name.starts_with("msg")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_settings_are_out_of_reach() {
        for own in [
            "net.core.somaxconn",
            "net/ipv4/conf/eth0.1/forwarding",
            "kernel.shmmax",
            "kernel.sem",
            "fs.mqueue.msg_max",
        ] {
            assert!(is_own(own, true, true), "{own}");
            assert!(!is_own(own, false, false), "{own}");
        }
        for other in [
            "kernel.core_pattern",
            "kernel/core_pattern",
            "net/../kernel/core_pattern",
            "net/ipv4/../../kernel/core_pattern",
            "/kernel/core_pattern",
            "vm.overcommit_memory",
            "net",
            "",
        ] {
            assert!(!is_own(other, true, true), "{other}");
        }
    }
}
