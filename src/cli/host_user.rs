//! Users and groups of the machine, from their files: a static program has no libc that would ask anybody else.

use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::{Context, bail};

const GROUPS: &str = "/etc/group";

/// Gives a file to a group, by name or number. Its owner stays.
///
/// # Errors
/// When there is no such group.
pub fn give_to_group(path: &Path, group: &str) -> anyhow::Result<()> {
    let number = match group.parse() {
        Ok(number) => Some(number),
        Err(_) => find(&std::fs::read_to_string(GROUPS).with_context(|| format!("read {GROUPS}"))?, group),
    };
    let Some(number) = number else { bail!("--write-kubeconfig-group: there is no group {group:?} in {GROUPS}") };
    chown(path, None, Some(number)).with_context(|| format!("give {} to group {group}", path.display()))
}

/// `name:password:number:members`
fn find(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name() {
        let groups = "root:x:0:\nadm:x:4:syslog\nwheel:x:10\n";
        assert_eq!((find(groups, "adm"), find(groups, "wheel"), find(groups, "ad")), (Some(4), Some(10), None));
    }
}
