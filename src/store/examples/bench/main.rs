//! Measures the store, and etcd by the same load, for `tests/bench/store.py`:
//!
//! ```text
//! bench writes TARGET            1, 16, 64 and 256 clients, values of 512 bytes
//! bench reads TARGET             the same number of readers
//! bench fill TARGET              100,000 keys with 2 KiB each
//! bench churn TARGET             1,000,000 writes over those
//! bench watch TARGET             1,000 watchers
//! bench idle TARGET              the lease of an idle node (only the store in this process)
//! bench failover TARGET PID      kills the leader
//! bench open TARGET              opens and reports
//! bench host TARGET              serves others until its standard input ends
//! ```
//! What a target is says `target.rs`. The store is called in this process, etcd over gRPC on the loopback, as their users
//! do. It says what it found in lines of JSON, and goes on after `{"what": "ready"}` when it is told to by a line.

mod etcd;
mod measure;
mod objects;
mod target;

use std::io::BufRead;
use std::time::{Duration, Instant};

use target::Target;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [what, name, rest @ ..] = args.as_slice() else {
        return Err("usage: bench writes|reads|fill|churn|watch|idle|failover|open|host TARGET [PID]".into());
    };
    let start = Instant::now();
    let target = Target::open(name).await?;
    let opened = start.elapsed().as_secs_f64();
    let cluster = match &target {
        Target::Mussel(store) => store.cluster_id().to_string(),
        Target::Etcd(_) => String::new(),
    };
    println!(r#"{{"what": "ready", "seconds": {opened:.3}, "cluster": "{cluster}"}}"#);
    wait_for_line().await?;
    match what.as_str() {
        "writes" => measure::writes(&target).await?,
        "reads" => measure::reads(&target).await?,
        "fill" => measure::fill(&target).await?,
        "churn" => measure::churn(&target).await?,
        "watch" => measure::watch(&target).await?,
        "idle" => measure::idle(&target).await?,
        "failover" => measure::failover(&target, rest.first().ok_or("whose process is the leader's?")?).await?,
        "open" | "host" => {}
        other => return Err(format!("no such measurement: {other}").into()),
    }
    // What is being written behind, checkpoints mostly, belongs to it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    println!(r#"{{"what": "done"}}"#);
    wait_for_line().await?;
    target.close().await;
    Ok(())
}

/// The end of the input counts, too.
async fn wait_for_line() -> Result<(), Failure> {
    tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new())).await??;
    Ok(())
}
