//! Many worlds, each in a process of its own.

use std::panic;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::raft::SimulatedRuntime;
use crate::sim::chance;
use crate::sim::fault::{FAULT, Fault};
use crate::sim::world::{SEED, live};

/// Runs one world in this process, which must not have run another.
fn run(seed: u64) {
    chance::fix();
    let world = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(SimulatedRuntime::scope(seed, live(seed)));
    });
    if let Err(failed) = world.join() {
        panic::resume_unwind(failed);
    }
}

/// A process that runs one world and tells what happens in it.
fn replay(seed: u64, fault: Option<Fault>) -> Output {
    let this = std::env::current_exe().unwrap();
    let test = "sim::worlds::no_world_breaks_a_promise";
    let mut world = Command::new(this);
    world.args([test, "--exact", "--nocapture"]).env(SEED, seed.to_string());
    if let Some(fault) = fault {
        world.env(FAULT, fault.name());
    }
    world.output().unwrap()
}

const WORLDS: u64 = 1000;

/// `MUSSEL_SIM_SEED` replays one world, and tells what happens in it; `MUSSEL_SIM_WORLDS` sets how many there are,
/// `MUSSEL_SIM_FIRST` the first seed.
#[test]
fn no_world_breaks_a_promise() {
    let number = |name: &str| std::env::var(name).ok().map(|number| number.parse::<u64>().unwrap());
    if let Some(seed) = number(SEED) {
        return run(seed);
    }
    let first = number("MUSSEL_SIM_FIRST").unwrap_or(1);
    let worlds = number("MUSSEL_SIM_WORLDS").unwrap_or(WORLDS);
    let next = AtomicU64::new(first);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).min(8) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + worlds {
                        return;
                    }
                    let told = replay(seed, None);
                    if !told.status.success() {
                        let (out, error) =
                            (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
                        let lines: Vec<_> = out.lines().collect();
                        println!(
                            "{}\n{error}\nworld {seed} breaks a promise; again: {SEED}={seed} cargo test -p mussel-store --lib no_world -- --nocapture",
                            lines[lines.len().saturating_sub(60)..].join("\n")
                        );
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "worlds {failed:?} break a promise");
}

/// What the worlds are for: a store that says of something that it is durable, and it is not, does not get through them.
#[test]
fn a_store_that_lies_is_found_out() {
    for fault in [Fault::UnsyncedLog, Fault::UnsyncedState] {
        let found = (1..=300).find(|seed| {
            let told = replay(*seed, Some(fault));
            // By what it lost, and not by something that went wrong before.
            let said = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
            !told.status.success() && said.contains("loses power")
        });
        println!("{fault:?} breaks a promise in world {found:?}");
        assert!(found.is_some(), "{fault:?} breaks no promise");
    }
}

#[test]
fn a_world_replays_exactly() {
    for seed in [39, 40] {
        let told = |output: &Output| {
            let out = String::from_utf8_lossy(&output.stdout);
            out.lines().filter(|line| line.starts_with(' ')).map(str::to_string).collect::<Vec<_>>()
        };
        let (once, again) = (told(&replay(seed, None)), told(&replay(seed, None)));
        assert!(once.len() > 10, "{once:?}");
        assert_eq!(once, again, "world {seed}");
    }
}
