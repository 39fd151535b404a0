//! `mussel check-config`: what a node needs of this machine, and what to do where it is missing.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use mussel_network::iptables::Iptables;

use super::args::LocalArgs;

struct Check {
    what: &'static str,
    /// `Err` says what to do.
    result: Result<String, String>,
    required: bool,
}

pub fn main(_: &LocalArgs) -> ExitCode {
    let checks = [
        Check { what: "overlayfs", result: overlay(), required: true },
        Check { what: "memory control group", result: controller("memory"), required: true },
        Check { what: "cpu control group", result: controller("cpu"), required: true },
        Check { what: "pids control group", result: controller("pids"), required: true },
        Check { what: "bridge netfilter", result: bridge_netfilter(), required: true },
        Check { what: "iptables", result: iptables(), required: true },
        Check { what: "swap", result: swap(), required: false },
        Check { what: "root", result: root(), required: false },
    ];
    let mut failed = 0;
    for check in &checks {
        match &check.result {
            Ok(found) => println!("ok       {}: {found}", check.what),
            Err(remedy) if check.required => {
                failed += 1;
                println!("missing  {}: {remedy}", check.what);
            }
            Err(remedy) => println!("note     {}: {remedy}", check.what),
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn overlay() -> Result<String, String> {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = filesystems.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay");
    if known {
        Ok("available".to_owned())
    } else {
        Err("load it (modprobe overlay), or boot a kernel with CONFIG_OVERLAY_FS".to_owned())
    }
}

fn controller(name: &str) -> Result<String, String> {
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if v2.split_whitespace().any(|controller| controller == name) {
        return Ok("version 2".to_owned());
    }
    let v1 = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let on = v1.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.first() == Some(&name) && fields.get(3) == Some(&"1")
    });
    if on {
        return Ok("version 1".to_owned());
    }
    match name {
        "memory" => Err("add 'cgroup_memory=1 cgroup_enable=memory' to the kernel's command line \
            (Raspberry Pi: /boot/firmware/cmdline.txt) and reboot"
            .to_owned()),
        _ => Err(format!("boot a kernel with the {name} controller")),
    }
}

fn bridge_netfilter() -> Result<String, String> {
    if Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        return Ok("available".to_owned());
    }
    Err("load it (modprobe br_netfilter), or boot a kernel with CONFIG_BRIDGE_NETFILTER".to_owned())
}

fn iptables() -> Result<String, String> {
    Iptables::find().map(|_| "installed".to_owned()).map_err(|error| error.to_string())
}

fn swap() -> Result<String, String> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() < 2 {
        Ok("off".to_owned())
    } else {
        Err("on; memory limits of pods do not cover swap".to_owned())
    }
}

fn root() -> Result<String, String> {
    if nix::unistd::geteuid().is_root() {
        Ok("yes".to_owned())
    } else {
        Err("no; a server has to run as root".to_owned())
    }
}
