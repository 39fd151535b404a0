//! Real pods on the real kernel: needs root and /bin/busybox (a static one), and is skipped without.
//!
//! This program is at once the tests and the shim that the tests start. `cargo test -p mussel-runtime --test pods`
//! runs all of them, one after the other; words after `--` select by name.

mod cases;
mod lab;
mod streams;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.peek().is_some_and(|word| word == "shim") {
        args.next();
        return ExitCode::from(mussel_runtime::shim::main(args) as u8);
    }
    let words: Vec<String> =
        args.filter_map(|word| word.into_string().ok()).filter(|word| !word.starts_with('-')).collect();
    if let Some(missing) = lab::missing() {
        println!("skipped: {missing}");
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    for (name, case) in cases::ALL {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let start = std::time::Instant::now();
        let passed = lab::run(case);
        println!("test {name} ... {} ({} ms)", if passed { "ok" } else { "FAILED" }, start.elapsed().as_millis());
        if !passed {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {failed:?}");
    ExitCode::FAILURE
}
