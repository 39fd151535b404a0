//! The command line: which personality the binary takes, and with what.

mod admin;
mod agent;
mod args;
mod certificate;
mod check_config;
mod components;
mod config_file;
mod ctr;
mod host_user;
mod killall;
mod log;
mod node;
mod node_address;
mod node_config;
mod notify;
mod parts;
mod pod_network;
mod preflight;
mod process;
mod reset;
mod secrets_encrypt;
mod server;
mod snapshots;
mod store;
mod token;
mod tools;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

/// Usage errors, as most Unix tools and clap have it.
const USAGE: u8 = 2;

pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    // Before all else: a shim has neither threads nor memory to spare for what follows.
    if args.get(1).is_some_and(|arg| arg == "shim") {
        return exit_code(mussel_runtime::shim::main(args[2..].iter().map(std::ffi::OsString::from)));
    }
    if let Some((tool, arguments)) = tools::called(&args) {
        return fail(&tools::become_tool(tool, arguments));
    }
    let (args, skipped) = match config_file::expand(args) {
        Ok(expanded) => expanded,
        Err(error) => return fail(&error.into()),
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no failure.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(cli, &skipped) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn run(cli: Cli, skipped: &[String]) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Server(args) => {
            log::start(args.node.local.debug);
            for key in skipped {
                tracing::warn!(key, "config file: no such flag; ignored");
            }
            server::main(*args)?;
        }
        Command::Agent(args) => {
            log::start(args.node.local.debug);
            for key in skipped {
                tracing::warn!(key, "config file: no such flag; ignored");
            }
            agent::main(*args)?;
        }
        Command::Certificate(args) => certificate::main(args)?,
        Command::Token(args) => token::main(args)?,
        Command::Ctr(args) => ctr::main(&args)?,
        Command::Snapshot(args) => snapshots::command::main(&args)?,
        Command::SecretsEncrypt(args) => secrets_encrypt::main(&args)?,
        Command::Store(args) => store::main(&args)?,
        Command::Killall(args) => {
            log::start(args.debug);
            killall::main(&args)?;
        }
        Command::CheckConfig(args) => return Ok(check_config::main(&args)),
        Command::Shim { .. } | Command::Kubectl { .. } | Command::Crictl { .. } => {
            unreachable!("handled before parsing")
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One line that names cause and remedy.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("mussel: {error:#}");
    ExitCode::FAILURE
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
