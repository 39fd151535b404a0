//! Which devices a container may use, where cgroups are of version 2: a small program that the kernel runs whenever a
//! process of the cgroup opens or makes a device node. (Version 1 has a list in a file, which libcontainer writes.)

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::devices::Rule;

/// The program's file in a container's bundle.
pub const FILE: &str = "devices.bpf";

/// The kernel's limit for those who may do everything is far higher; this is some 2,000 rules.
const INSTRUCTIONS_MAX: usize = 16 * 1024;

/// The kernel's `struct bpf_insn`.
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The context, of `struct bpf_cgroup_dev_ctx`: what is done to what kind of device, its major and its minor number.
const ACCESS_AND_TYPE: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const SET: u8 = 0xb7;
const COPY: u8 = 0xbf;
const IF_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Registers: the answer, the context; then type, access, major, minor and one to calculate with.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR_NUMBER: u8 = 4;
const MINOR_NUMBER: u8 = 5;
const SPARE: u8 = 6;

/// The program for these rules, of which the first is that everything is forbidden and the others allow something.
pub fn compile(rules: &[Rule]) -> Vec<u8> {
    let mut code: Vec<Instruction> = Vec::new();
    let put = |code: &mut Vec<Instruction>, op, destination: u8, source: u8, offset, immediate| {
        code.push(Instruction { code: op, registers: destination | source << 4, offset, immediate });
    };
    put(&mut code, LOAD_WORD, TYPE, CONTEXT, ACCESS_AND_TYPE, 0);
    put(&mut code, COPY, ACCESS, TYPE, 0, 0);
    put(&mut code, AND, TYPE, 0, 0, 0xffff);
    put(&mut code, SHIFT_RIGHT, ACCESS, 0, 0, 16);
    put(&mut code, LOAD_WORD, MAJOR_NUMBER, CONTEXT, MAJOR, 0);
    put(&mut code, LOAD_WORD, MINOR_NUMBER, CONTEXT, MINOR, 0);
    for rule in rules.iter().filter(|rule| rule.allow) {
        let mut tests = Vec::new();
        let mut number = |register, wanted: Option<u64>| {
            if let Some(wanted) = wanted.and_then(|number| u32::try_from(number).ok()) {
                put(&mut tests, IF_NOT_EQUAL, register, 0, 0, wanted.cast_signed());
            }
        };
        number(TYPE, rule.block.map(|block| if block { BLOCK as u64 } else { CHARACTER as u64 }));
        number(MAJOR_NUMBER, rule.major);
        number(MINOR_NUMBER, rule.minor);
        // What is asked beyond what the rule grants must be nothing.
        put(&mut tests, COPY, SPARE, ACCESS, 0, 0);
        put(&mut tests, AND, SPARE, 0, 0, !access(&rule.access));
        put(&mut tests, IF_NOT_EQUAL, SPARE, 0, 0, 0);
        put(&mut tests, SET, ANSWER, 0, 0, 1);
        put(&mut tests, EXIT, 0, 0, 0, 0);
        // Where a test fails, the next rule begins.
        let len = tests.len();
        for (at, test) in tests.iter_mut().enumerate().filter(|(_, test)| test.code == IF_NOT_EQUAL) {
            test.offset = i16::try_from(len - at - 1).unwrap_or(i16::MAX);
        }
        code.extend(tests);
    }
    put(&mut code, SET, ANSWER, 0, 0, 0);
    put(&mut code, EXIT, 0, 0, 0, 0);
    let bytes = code.iter().flat_map(|one| {
        let mut bytes = [0; 8];
        bytes[0] = one.code;
        bytes[1] = one.registers;
        bytes[2..4].copy_from_slice(&one.offset.to_ne_bytes());
        bytes[4..].copy_from_slice(&one.immediate.to_ne_bytes());
        bytes
    });
    bytes.collect()
}

fn access(letters: &str) -> i32 {
    letters.chars().fold(0, |bits, letter| {
        bits | match letter {
            'm' => 1,
            'r' => 2,
            'w' => 4,
            _ => 0,
        }
    })
}

/// Whether the kernel takes such programs.
pub fn is_supported() -> bool {
    load(&compile(&[])).is_ok()
}

/// Puts a program on a cgroup, for as long as the cgroup exists.
///
/// # Errors
/// The kernel's: it has no such programs, or we may not load them.
pub fn attach(program: &[u8], cgroup: &Path) -> io::Result<()> {
    let dir = File::open(cgroup)?;
    let program = load(program)?;
    let attach = Attach {
        target_fd: dir.as_raw_fd().cast_unsigned(),
        program_fd: program.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the kernel reads `Attach` by its size and keeps no pointer; both descriptors are open.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// All programs of a cgroup and of those above it must agree.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The beginning of the kernel's `union bpf_attr` for loading; what is not given counts as zero.
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

/// The same for attaching.
#[repr(C)]
struct Attach {
    target_fd: u32,
    program_fd: u32,
    kind: u32,
    flags: u32,
}

fn load(program: &[u8]) -> io::Result<OwnedFd> {
    let count = program.len() / size_of::<u64>();
    if !program.len().is_multiple_of(size_of::<u64>()) || count > INSTRUCTIONS_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // It calls none of the kernel's functions, so that it needs no particular licence.
    let license = c"Apache-2.0";
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: count as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    // SAFETY: program and licence live until the call returns, and the kernel reads as much of each as it is told (or
    // to the licence's end). The result is a descriptor of our own, or negative.
    #[allow(unsafe_code)]
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>());
        match libc::c_int::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices;
    use std::process::Command;

    /// A new cgroup of version 2, which hybrid machines have too.
    struct Cgroup(std::path::PathBuf);

    impl Cgroup {
        fn new() -> Self {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            let at = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[2] == "cgroup2");
            let dir = Path::new(at.expect("a cgroup2 mount")[1]).join(format!("mussel-test-{}", std::process::id()));
            std::fs::create_dir(&dir).unwrap();
            Self(dir)
        }

        fn run(&self, script: &str) -> bool {
            let script = format!("echo $$ >{}/cgroup.procs; {script}", self.0.display());
            Command::new("sh").args(["-c", &script]).status().unwrap().success()
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn the_kernel_keeps_to_the_rules() {
        assert!(is_supported(), "this test needs root, and a kernel with CONFIG_CGROUP_BPF");
        let cgroup = Cgroup::new();
        let kmsg = "head -c 0 /dev/kmsg";
        assert!(cgroup.run(kmsg));
        let zero =
            devices::Rule { allow: true, block: Some(false), major: Some(1), minor: Some(5), access: "r".into() };
        let null = devices::Rule { minor: Some(3), access: "rwm".into(), ..zero.clone() };
        attach(&compile(&[zero, null]), &cgroup.0).unwrap();
        assert!(cgroup.run("head -c 1 /dev/zero >/dev/null"));
        assert!(!cgroup.run("echo x >/dev/zero"), "only reading is allowed");
        assert!(!cgroup.run(kmsg), "there is no rule for it");
        // A second program can only take away.
        attach(&compile(&devices::rules(&[], false)), &cgroup.0).unwrap();
        assert!(cgroup.run("head -c 1 /dev/zero >/dev/null"));
        assert!(!cgroup.run("head -c 1 /dev/random >/dev/null"));
    }
}
