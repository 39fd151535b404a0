//! What Prometheus' client libraries tell of their own process.

use std::fmt::Write;
use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// Appends the metrics; those that the kernel does not tell are left out.
pub fn print(out: &mut String) {
    let mut add = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in parentheses, may hold anything; numbering after it starts with the third field (proc(5)).
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let system = |name: SysconfVar| sysconf(name).ok().flatten().map(|value| value as f64);
    let ticks = system(SysconfVar::CLK_TCK);
    let seconds = |value: Option<f64>| Some(value? / ticks?);
    let cpu = field(14).zip(field(15)).map(|(user, kernel)| user + kernel);
    add("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", seconds(cpu));
    let files = fs::read_dir("/proc/self/fd").map(|dir| dir.count() as f64).ok();
    add("process_open_fds", "gauge", "Number of open file descriptors.", files);
    let resident = field(24).zip(system(SysconfVar::PAGE_SIZE)).map(|(pages, size)| pages * size);
    add("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident);
    let boot = fs::read_to_string("/proc/stat").ok().and_then(|stat| {
        let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        line.trim().parse::<f64>().ok()
    });
    let started = boot.zip(seconds(field(22))).map(|(boot, after)| boot + after);
    add("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", started);
    add("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", field(23));
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_knows_itself() {
        let mut text = String::new();
        super::print(&mut text);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("{name} in {text}"))
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_start_time_seconds") > 1.6e9);
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }
}
