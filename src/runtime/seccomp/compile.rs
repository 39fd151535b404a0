//! From a profile to the program that the kernel runs at every system call.
//!
//! For each machine, neighbouring numbers with the same verdict form a range, and the program finds the range of a call
//! by halving: some seven comparisons instead of one for each name.

use std::collections::BTreeMap;

use super::{Action, Arch, Compare, Condition, Profile, SeccompError};

/// The kernel's limit (`BPF_MAXINSNS`).
pub const INSTRUCTIONS_MAX: usize = 4096;

/// Where the kernel shows number, machine and arguments (`struct seccomp_data`).
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Numbers from here on are x86_64's x32 calls, which share everything else with the usual ones.
const X32: u32 = 0x4000_0000;

/// A filter program, ready for seccomp(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub flags: u32,
    pub instructions: Vec<Instruction>,
}

/// The kernel's `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const GO: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const IF_GREATER_OR_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

/// What happens to a call: the conditions are tried in order, and without one that holds it is `last`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    tried: Vec<(Vec<Condition>, Action)>,
    last: Action,
}

pub fn compile(profile: &Profile) -> Result<Program, SeccompError> {
    let mut code = Code::default();
    code.put(LOAD, MACHINE);
    for arch in &profile.architectures {
        let next = code.label();
        code.unless(IF_EQUAL, machine(*arch), next);
        code.put(LOAD, NUMBER);
        code.ranges(&ranges(profile, *arch));
        code.here(next);
    }
    // As libseccomp: a machine that the profile does not speak of has no business here.
    code.put(RETURN, value(Action::KillProcess));
    let instructions = code.finish();
    match instructions.len() {
        0..=INSTRUCTIONS_MAX => Ok(Program { flags: profile.flags, instructions }),
        many => Err(SeccompError::Long(many)),
    }
}

impl Program {
    /// As the kernel reads it, with the flags in front.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.flags.to_ne_bytes().to_vec();
        for one in &self.instructions {
            bytes.extend(one.code.to_ne_bytes());
            bytes.extend([one.jt, one.jf]);
            bytes.extend(one.k.to_ne_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Program> {
        let (flags, rest) = bytes.split_first_chunk::<4>()?;
        let (instructions, rest) = rest.as_chunks::<8>();
        if !rest.is_empty() || instructions.is_empty() || instructions.len() > INSTRUCTIONS_MAX {
            return None;
        }
        let instructions = instructions.iter().map(|[a, b, jt, jf, k @ ..]| Instruction {
            code: u16::from_ne_bytes([*a, *b]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes(*k),
        });
        Some(Program { flags: u32::from_ne_bytes(*flags), instructions: instructions.collect() })
    }
}

/// The kernel's name for a machine (`AUDIT_ARCH_*`).
fn machine(arch: Arch) -> u32 {
    match arch {
        Arch::X86_64 => 0xc000_003e,
        Arch::X86 => 0x4000_0003,
        Arch::Aarch64 => 0xc000_00b7,
        Arch::Arm => 0x4000_0028,
    }
}

fn value(action: Action) -> u32 {
    match action {
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Errno(number) => libc::SECCOMP_RET_ERRNO | u32::from(number),
        Action::Log => libc::SECCOMP_RET_LOG,
        Action::Trap => libc::SECCOMP_RET_TRAP,
        Action::Trace(number) => libc::SECCOMP_RET_TRACE | u32::from(number),
        Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

/// The verdicts of all numbers: each from its number up to the next one's. The first begins at zero.
fn ranges(profile: &Profile, arch: Arch) -> Vec<(u32, Verdict)> {
    let default = Verdict { tried: Vec::new(), last: profile.default };
    // A call with a rule that has no conditions is decided; later rules do not reach it.
    let mut calls: BTreeMap<u32, (Verdict, bool)> = BTreeMap::new();
    for rule in &profile.rules {
        for number in rule.names.iter().filter_map(|name| arch.number(name)) {
            let (verdict, decided) = calls.entry(number).or_insert_with(|| (default.clone(), false));
            if *decided {
                continue;
            }
            if rule.conditions.is_empty() {
                (verdict.last, *decided) = (rule.action, true);
            } else {
                verdict.tried.push((rule.conditions.clone(), rule.action));
            }
        }
    }
    let mut ranges = vec![(0, default.clone())];
    let mut add = |from: u32, verdict: Verdict| match ranges.last_mut() {
        Some((_, last)) if *last == verdict => {}
        Some((start, last)) if *start == from => *last = verdict,
        _ => ranges.push((from, verdict)),
    };
    let mut next = 0;
    for (number, (verdict, _)) in calls {
        if number > next {
            add(next, default.clone());
        }
        add(number, verdict);
        next = number.saturating_add(1);
    }
    add(next, default);
    if arch == Arch::X86_64 {
        // Else a list of forbidden calls could be passed by their x32 twins.
        add(X32, Verdict { tried: Vec::new(), last: Action::Errno(libc::ENOSYS as u16) });
    }
    ranges
}

/// A place in the program that is not known yet.
#[derive(Clone, Copy)]
struct Label(usize);

/// A program being written. Jumps over more than 255 instructions need the unconditional one, so it is used for all.
#[derive(Default)]
struct Code {
    instructions: Vec<Instruction>,
    /// Where the labels are; `usize::MAX` until then.
    labels: Vec<usize>,
    /// Unconditional jumps and where they go.
    jumps: Vec<(usize, Label)>,
}

impl Code {
    fn put(&mut self, code: u16, k: u32) {
        self.instructions.push(Instruction { code, jt: 0, jf: 0, k });
    }

    fn label(&mut self) -> Label {
        self.labels.push(usize::MAX);
        Label(self.labels.len() - 1)
    }

    fn here(&mut self, label: Label) {
        self.labels[label.0] = self.instructions.len();
    }

    fn go(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.put(GO, 0);
    }

    /// Goes on behind this if the comparison holds, else at the label.
    fn unless(&mut self, code: u16, k: u32, label: Label) {
        self.instructions.push(Instruction { code, jt: 1, jf: 0, k });
        self.go(label);
    }

    /// Goes to the label if the comparison holds.
    fn when(&mut self, code: u16, k: u32, label: Label) {
        self.instructions.push(Instruction { code, jt: 0, jf: 1, k });
        self.go(label);
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            // Labels are placed behind their jumps, always.
            self.instructions[at].k = (self.labels[label.0] - at - 1) as u32;
        }
        self.instructions
    }

    /// Finds the range of the loaded number.
    fn ranges(&mut self, ranges: &[(u32, Verdict)]) {
        match ranges {
            [] => {}
            [(_, verdict)] => self.verdict(verdict),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let above = self.label();
                self.when(IF_GREATER_OR_EQUAL, high[0].0, above);
                self.ranges(low);
                self.here(above);
                self.ranges(high);
            }
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        for (conditions, action) in &verdict.tried {
            let otherwise = self.label();
            for condition in conditions {
                self.condition(condition, otherwise);
            }
            self.put(RETURN, value(*action));
            self.here(otherwise);
        }
        self.put(RETURN, value(verdict.last));
    }

    /// Goes on if the condition holds, else to the label. Arguments have 64 bits and the machine 32.
    fn condition(&mut self, condition: &Condition, otherwise: Label) {
        let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
        let at = ARGUMENTS + 8 * condition.argument;
        let (high_at, low_at) = if cfg!(target_endian = "little") { (at + 4, at) } else { (at, at + 4) };
        match condition.compare {
            Compare::Equal => {
                self.put(LOAD, high_at);
                self.unless(IF_EQUAL, high, otherwise);
                self.put(LOAD, low_at);
                self.unless(IF_EQUAL, low, otherwise);
            }
            Compare::Masked(mask) => {
                self.put(LOAD, high_at);
                self.put(AND, (mask >> 32) as u32);
                self.unless(IF_EQUAL, high, otherwise);
                self.put(LOAD, low_at);
                self.put(AND, mask as u32);
                self.unless(IF_EQUAL, low, otherwise);
            }
            Compare::NotEqual => {
                let holds = self.label();
                self.put(LOAD, high_at);
                self.unless(IF_EQUAL, high, holds);
                self.put(LOAD, low_at);
                self.when(IF_EQUAL, low, otherwise);
                self.here(holds);
            }
            Compare::Greater => self.greater(IF_GREATER, high, low, (high_at, low_at), otherwise, true),
            Compare::GreaterOrEqual => {
                self.greater(IF_GREATER_OR_EQUAL, high, low, (high_at, low_at), otherwise, true);
            }
            Compare::LessOrEqual => self.greater(IF_GREATER, high, low, (high_at, low_at), otherwise, false),
            Compare::Less => self.greater(IF_GREATER_OR_EQUAL, high, low, (high_at, low_at), otherwise, false),
        }
    }

    /// Goes on if "greater" (by `compare` for the low half) is as `wanted`, else to the label.
    fn greater(&mut self, compare: u16, high: u32, low: u32, at: (u32, u32), otherwise: Label, wanted: bool) {
        let holds = self.label();
        let (if_greater, if_not) = if wanted { (holds, otherwise) } else { (otherwise, holds) };
        self.put(LOAD, at.0);
        self.when(IF_GREATER, high, if_greater);
        self.unless(IF_EQUAL, high, if_not);
        self.put(LOAD, at.1);
        self.when(compare, low, if_greater);
        self.go(if_not);
        self.here(holds);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Rule, runtime_default};
    use super::*;

    /// What the kernel's machine would answer.
    fn run(program: &Program, machine: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(machine.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        arguments.iter().for_each(|argument| data.extend(argument.to_ne_bytes()));
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let one = program.instructions[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { one.jt } else { one.jf });
            match one.code {
                LOAD => a = u32::from_ne_bytes(data[one.k as usize..][..4].try_into().unwrap()),
                AND => a &= one.k,
                RETURN => return one.k,
                GO => at += one.k as usize,
                IF_EQUAL => at += jump(a == one.k),
                IF_GREATER => at += jump(a > one.k),
                IF_GREATER_OR_EQUAL => at += jump(a >= one.k),
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    fn expected(profile: &Profile, arch: Arch, number: u32, arguments: [u64; 6]) -> u32 {
        let holds = |condition: &Condition| {
            let (argument, value) = (arguments[condition.argument as usize], condition.value);
            match condition.compare {
                Compare::Equal => argument == value,
                Compare::NotEqual => argument != value,
                Compare::Less => argument < value,
                Compare::LessOrEqual => argument <= value,
                Compare::Greater => argument > value,
                Compare::GreaterOrEqual => argument >= value,
                Compare::Masked(mask) => argument & mask == value,
            }
        };
        if arch == Arch::X86_64 && number >= X32 {
            return value(Action::Errno(libc::ENOSYS as u16));
        }
        let fits = |rule: &&Rule| {
            rule.names.iter().any(|name| arch.number(name) == Some(number)) && rule.conditions.iter().all(holds)
        };
        value(profile.rules.iter().find(fits).map_or(profile.default, |rule| rule.action))
    }

    #[test]
    fn the_program_says_what_the_profile_says() {
        for capabilities in [vec![], vec!["SYS_ADMIN".to_owned()], vec!["SYS_TIME".to_owned(), "BPF".to_owned()]] {
            let profile = runtime_default(&capabilities);
            let program = compile(&profile).unwrap();
            assert_eq!(Program::from_bytes(&program.to_bytes()).as_ref(), Some(&program));
            for arch in &profile.architectures {
                for number in (0..600).chain([X32 - 1, X32, X32 + 1, 0x0f_0005, u32::MAX]) {
                    for first in [0, 8, 11, 40, 0x2000_0000, 0x0002_0000, 0x0100_0000] {
                        let arguments = [first, 0, 0, 0, 0, 0];
                        assert_eq!(
                            run(&program, machine(*arch), number, arguments),
                            expected(&profile, *arch, number, arguments),
                            "{arch:?} {number} {first:#x}"
                        );
                    }
                }
            }
            assert_eq!(run(&program, 0x1234, 0, [0; 6]), value(Action::KillProcess));
        }
    }

    #[test]
    fn comparisons_have_64_bits() {
        let edges = [0, 1, 5, 0xffff_ffff, 1 << 32, (1 << 32) | 5, (1 << 32) | 6, 7 << 32, u64::MAX];
        let kinds = [
            Compare::Equal,
            Compare::NotEqual,
            Compare::Less,
            Compare::LessOrEqual,
            Compare::Greater,
            Compare::GreaterOrEqual,
            Compare::Masked(0xff_0000_000f),
        ];
        for compare in kinds {
            for constant in edges {
                let conditions = vec![Condition { argument: 2, compare, value: constant }];
                let rules = vec![Rule { names: vec!["read".into()], conditions, action: Action::Allow }];
                let default = Action::Errno(7);
                let profile = Profile { default, architectures: vec![Arch::NATIVE], rules, flags: 0 };
                let program = compile(&profile).unwrap();
                let number = Arch::NATIVE.number("read").unwrap();
                for argument in edges {
                    let arguments = [9, 9, argument, 9, 9, 9];
                    assert_eq!(
                        run(&program, machine(Arch::NATIVE), number, arguments),
                        expected(&profile, Arch::NATIVE, number, arguments),
                        "{compare:?} {argument:#x} {constant:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_ordinary_programs_need_is_allowed() {
        let program = compile(&runtime_default(&["CHOWN".to_owned()])).unwrap();
        let ask = |name: &str, first: u64| {
            let number = Arch::NATIVE.number(name).unwrap();
            run(&program, machine(Arch::NATIVE), number, [first, 0, 0, 0, 0, 0])
        };
        let denied = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for name in ["execve", "read", "openat", "futex", "prctl", "socket", "ptrace", "rseq"] {
            assert_eq!(ask(name, 1), libc::SECCOMP_RET_ALLOW, "{name}");
        }
        for name in ["mount", "keyctl", "bpf", "unshare", "setns", "reboot", "kexec_load", "io_uring_setup"] {
            assert_eq!(ask(name, 1), denied, "{name}");
        }
        assert_eq!(ask("clone", 0x1200_0000), denied);
        assert_eq!(ask("clone", 0x0100_0011), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ask("clone3", 0), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        assert!(program.instructions.len() < 1000, "{}", program.instructions.len());
    }
}
