//! The shim: one small process per pod that owns its namespaces and containers while the server comes and goes.
//!
//! It is the mussel binary again (`mussel shim --dir <dir>`), with one thread, no async runtime, and one loop around
//! poll(2): [`server`]. It outlives the server, which finds it again by the socket in its directory.
//!
//! Invariants: every child is reaped; a container's exit is on disk before it is announced; nothing that a container
//! or a client does blocks the loop.

pub(crate) mod filter;
mod launch;
mod log;
pub mod protocol;
mod sandbox;
mod server;
mod streams;
mod trace;
pub mod wire;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};

use protocol::{CONFIG, ShimConfig};

/// The whole life of a shim. To be called first thing in `main`, while the process has one thread.
///
/// `args` are those after the word `shim`. It says `ok`, or why not, on stdout, and closes that.
pub fn main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let mut args = args.into_iter();
    let dir = match (args.next(), args.next(), args.next()) {
        (Some(flag), Some(dir), None) if flag == "--dir" => PathBuf::from(dir),
        _ => {
            eprintln!("usage: mussel shim --dir DIRECTORY");
            return 2;
        }
    };
    match run(&dir) {
        Ok(()) => 0,
        Err(error) => {
            report(&error);
            1
        }
    }
}

/// Answers the process that started us.
fn report(text: &str) {
    let mut stdout = io::stdout();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn run(dir: &Path) -> Result<(), String> {
    let text = std::fs::read(dir.join(CONFIG)).map_err(|error| format!("read {CONFIG}: {error}"))?;
    let config: ShimConfig = serde_json::from_slice(&text).map_err(|error| format!("read {CONFIG}: {error}"))?;
    let mask = prepare_signals().map_err(|error| format!("set up signals: {error}"))?;
    let pause = sandbox::enter(&config).map_err(|error| {
        format!("{error}: {}", std::error::Error::source(&error).map_or(String::new(), |e| e.to_string()))
    })?;
    let server =
        server::Server::new(dir, pause, &mask).map_err(|error| format!("listen in {}: {error}", dir.display()))?;
    std::fs::write(dir.join("pid"), std::process::id().to_string()).map_err(|error| format!("write pid: {error}"))?;
    report("ok");
    // Whoever started us waits for the end of stdout.
    let null = std::fs::File::options().write(true).open("/dev/null").map_err(|error| error.to_string())?;
    nix::unistd::dup2_stdout(&null).map_err(|error| error.to_string())?;
    server.run();
    Ok(())
}

/// Only SIGKILL ends a shim from outside: whoever stops a service sends SIGTERM to everything in sight.
fn prepare_signals() -> nix::Result<SigSet> {
    for number in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        // SAFETY: ignoring runs no code of ours.
        #[allow(unsafe_code)]
        unsafe { signal(number, SigHandler::SigIgn) }?;
    }
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
    Ok(mask)
}

/// Tells a terminal how large its window is.
pub fn set_window_size(tty: &impl AsRawFd, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
