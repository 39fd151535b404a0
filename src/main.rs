//! One binary, several personalities: server, tools, and the shim that keeps a pod alive.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
