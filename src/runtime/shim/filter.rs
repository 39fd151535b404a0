//! Loads the container's seccomp program into each of its processes, as the last thing before the process runs.
//!
//! libcontainer has dropped the process' capabilities by then, except that it keeps `CAP_SYS_ADMIN`, which the kernel
//! asks for, where the runtime put it beside the container's own (`spec::process`). The kernel takes it away with the
//! execve that follows, since the bounding set has not got it.

use std::fs;
use std::io;
use std::path::Path;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::default::get_executor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

use crate::seccomp::Program;

/// The program's file in the bundle.
pub const FILE: &str = "seccomp.bpf";

/// What runs the workload: as libcontainer does, after the filter is loaded.
#[derive(Clone)]
pub struct Filtered(Option<Program>);

impl Filtered {
    /// The program of a bundle. A bundle without one is unconfined.
    pub fn of(bundle: &Path) -> Result<Self, String> {
        match fs::read(bundle.join(FILE)) {
            Ok(bytes) => Program::from_bytes(&bytes).map(Some).map(Self).ok_or_else(|| format!("{FILE} is damaged")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self(None)),
            Err(error) => Err(format!("read {FILE}: {error}")),
        }
    }
}

impl Executor for Filtered {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if let Some(program) = &self.0 {
            load(program).map_err(|error| ExecutorError::Other(format!("load seccomp filter: {error}")))?;
        }
        get_executor().exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        get_executor().validate(spec)
    }
}

fn load(program: &Program) -> io::Result<()> {
    let len = u16::try_from(program.instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = libc::sock_fprog { len, filter: program.instructions.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads `len` instructions, which have the layout of `sock_filter`, and keeps no reference.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            program.flags as libc::c_ulong,
            &raw const filter,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
