//! Seccomp profiles: which system calls a container may make.
//!
//! A profile is `RuntimeDefault`, which is ours ([`runtime_default`]), or a file in the OCI runtime's format
//! (`Localhost`). It is compiled to the kernel's filter program when the container is created, and every process of the
//! container, the first one and each exec, loads that program as the last thing before it runs.

mod compile;
mod runtime_default;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use compile::{Program, compile};
pub use runtime_default::runtime_default;

/// The largest profile that makes sense names every system call a few times.
const PROFILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("read seccomp profile {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("seccomp profile {} is larger than {PROFILE_BYTES_MAX} bytes", path.display())]
    Large { path: PathBuf },
    #[error("seccomp profile {}", path.display())]
    Syntax { path: PathBuf, source: serde_json::Error },
    #[error("seccomp profile: {0} is not supported")]
    Unsupported(String),
    #[error("seccomp profile: its program has {0} instructions, and the kernel takes no more than {max}", max = compile::INSTRUCTIONS_MAX)]
    Long(usize),
}

/// Machines whose system calls a kernel of ours may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    X86_64,
    X86,
    Aarch64,
    Arm,
}

impl Arch {
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Arch = Arch::X86_64;
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Arch = Arch::Aarch64;

    /// The 32-bit machine that the same kernel serves.
    pub const COMPATIBLE: Arch = if cfg!(target_arch = "x86_64") { Arch::X86 } else { Arch::Arm };

    fn named(name: &str) -> Option<Arch> {
        match name {
            "SCMP_ARCH_X86_64" => Some(Arch::X86_64),
            "SCMP_ARCH_X86" => Some(Arch::X86),
            "SCMP_ARCH_AARCH64" => Some(Arch::Aarch64),
            "SCMP_ARCH_ARM" => Some(Arch::Arm),
            _ => None,
        }
    }

    /// The number of a system call on this machine.
    fn number(self, name: &str) -> Option<u32> {
        let id = match self {
            Arch::X86_64 => name.parse::<syscalls::x86_64::Sysno>().ok()?.id(),
            Arch::X86 => name.parse::<syscalls::x86::Sysno>().ok()?.id(),
            Arch::Aarch64 => name.parse::<syscalls::aarch64::Sysno>().ok()?.id(),
            Arch::Arm => name.parse::<syscalls::arm::Sysno>().ok()?.id(),
        };
        u32::try_from(id).ok()
    }

    /// Every system call of this machine by name.
    fn names(self) -> Vec<&'static str> {
        match self {
            Arch::X86_64 => syscalls::x86_64::Sysno::iter().map(|call| call.name()).collect(),
            Arch::X86 => syscalls::x86::Sysno::iter().map(|call| call.name()).collect(),
            Arch::Aarch64 => syscalls::aarch64::Sysno::iter().map(|call| call.name()).collect(),
            Arch::Arm => syscalls::arm::Sysno::iter().map(|call| call.name()).collect(),
        }
    }
}

/// What the kernel does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    /// The call fails with this error number.
    Errno(u16),
    Log,
    Trap,
    Trace(u16),
    KillThread,
    KillProcess,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The argument's bits under this mask are the value.
    Masked(u64),
}

/// A condition on one argument of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u32,
    pub compare: Compare,
    pub value: u64,
}

/// What to do with calls of these names whose arguments fulfil all conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub names: Vec<String>,
    pub conditions: Vec<Condition>,
    pub action: Action,
}

/// The first rule that fits a call decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub default: Action,
    pub architectures: Vec<Arch>,
    pub rules: Vec<Rule>,
    /// As seccomp(2) takes them.
    pub flags: u32,
}

/// Reads a profile in the OCI runtime's format. Names that this machine does not have are skipped, as elsewhere.
pub fn load(path: &Path) -> Result<Profile, SeccompError> {
    let error = |source| SeccompError::Read { path: path.to_owned(), source };
    let mut text = Vec::new();
    File::open(path).map_err(error)?.take(PROFILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(error)?;
    if text.len() as u64 > PROFILE_BYTES_MAX {
        return Err(SeccompError::Large { path: path.to_owned() });
    }
    let document: Document =
        serde_json::from_slice(&text).map_err(|source| SeccompError::Syntax { path: path.to_owned(), source })?;
    document.profile()
}

const EPERM: u16 = libc::EPERM as u16;
const SPEC_ALLOW: u32 = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Vec<String>,
    flags: Option<Vec<String>>,
    #[serde(default)]
    syscalls: Vec<Calls>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Calls {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

impl Document {
    fn profile(self) -> Result<Profile, SeccompError> {
        let mut architectures = vec![Arch::NATIVE];
        for arch in self.architectures.iter().filter_map(|name| Arch::named(name)) {
            if !architectures.contains(&arch) {
                architectures.push(arch);
            }
        }
        let flags = match self.flags {
            None => SPEC_ALLOW,
            Some(flags) => flags.iter().try_fold(0, |all, flag| match flag.as_str() {
                "SECCOMP_FILTER_FLAG_LOG" => Ok(all | libc::SECCOMP_FILTER_FLAG_LOG as u32),
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(all | SPEC_ALLOW),
                // One thread loads the filter, so that there are no others to tell.
                "SECCOMP_FILTER_FLAG_TSYNC" => Ok(all),
                other => Err(SeccompError::Unsupported(format!("flag {other}"))),
            })?,
        };
        let mut rules = Vec::new();
        for calls in self.syscalls {
            let action = action(&calls.action, calls.errno_ret)?;
            let conditions =
                calls.args.unwrap_or_default().into_iter().map(Arg::condition).collect::<Result<Vec<_>, _>>()?;
            // Several conditions on one argument are alternatives, as for libseccomp, which takes no two in a rule.
            let twice = conditions
                .iter()
                .enumerate()
                .any(|(at, one)| conditions[..at].iter().any(|other| other.argument == one.argument));
            let alternatives = match twice {
                true => conditions.into_iter().map(|one| vec![one]).collect(),
                false => vec![conditions],
            };
            for conditions in alternatives {
                rules.push(Rule { names: calls.names.clone(), conditions, action });
            }
        }
        let default = action(&self.default_action, self.default_errno_ret)?;
        Ok(Profile { default, architectures, rules, flags })
    }
}

impl Arg {
    fn condition(self) -> Result<Condition, SeccompError> {
        if self.index > 5 {
            return Err(SeccompError::Unsupported(format!("argument {}", self.index)));
        }
        let (compare, value) = match self.op.as_str() {
            "SCMP_CMP_EQ" => (Compare::Equal, self.value),
            "SCMP_CMP_NE" => (Compare::NotEqual, self.value),
            "SCMP_CMP_LT" => (Compare::Less, self.value),
            "SCMP_CMP_LE" => (Compare::LessOrEqual, self.value),
            "SCMP_CMP_GT" => (Compare::Greater, self.value),
            "SCMP_CMP_GE" => (Compare::GreaterOrEqual, self.value),
            "SCMP_CMP_MASKED_EQ" => (Compare::Masked(self.value), self.value_two),
            other => return Err(SeccompError::Unsupported(format!("operator {other}"))),
        };
        Ok(Condition { argument: self.index, compare, value })
    }
}

fn action(name: &str, number: Option<u16>) -> Result<Action, SeccompError> {
    let number = number.unwrap_or(EPERM);
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(number),
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_TRACE" => Action::Trace(number),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => return Err(SeccompError::Unsupported(format!("action {other}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Profile, SeccompError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        std::fs::write(&path, text).unwrap();
        load(&path)
    }

    #[test]
    fn profiles_in_the_oci_format() {
        let profile = parse(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", "SCMP_ARCH_S390X"],
                "syscalls": [{"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [
                        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]}]}"#,
        )
        .unwrap();
        assert_eq!((profile.default, profile.flags), (Action::Errno(38), SPEC_ALLOW));
        assert_eq!(profile.architectures.len(), 2);
        assert_eq!(profile.rules.len(), 3, "two conditions on one argument are two rules");
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        for (text, says) in [
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "action SCMP_ACT_NOTIFY is not supported"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}"#, "flag"),
            ("{", "seccomp profile"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(matches!(load(Path::new("/nonexistent")), Err(SeccompError::Read { .. })));
    }
}
