//! Measures the store, and etcd by the same load, for `tests/bench/store.py`:
//!
//! ```text
//! bench writes mussel DIR | bench writes etcd ADDRESS    1, 16, 64 and 256 clients, values of 512 bytes
//! bench fill   mussel DIR | bench fill   etcd ADDRESS    100,000 keys with 2 KiB each
//! bench churn  mussel DIR | bench churn  etcd ADDRESS    1,000,000 writes over those
//! bench open   mussel DIR                                 opens and reports
//! bench watch  mussel DIR                                 1,000 watchers
//! ```
//! The store is called in this process, etcd over gRPC on the loopback, as their users do.

mod etcd;
mod target;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mussel_store::{Config, Freshness, Revision, Store, Txn};

use target::Target;

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

const SMALL_BYTES: usize = 512;
const RUN: Duration = Duration::from_secs(5);
const KEYS: u64 = 100_000;
const OBJECT_BYTES: usize = 2048;
const CHURN: u64 = 1_000_000;

#[tokio::main]
async fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [what, engine, at] = args.as_slice() else {
        return Err("usage: bench writes|fill|churn|open|watch mussel|etcd DIR|ADDRESS".into());
    };
    let start = Instant::now();
    let target = Target::open(engine, at).await?;
    println!("open: {:.3} s", start.elapsed().as_secs_f64());
    match what.as_str() {
        "writes" => {
            for clients in [1, 16, 64, 256] {
                writes(&target, clients).await?;
            }
        }
        "fill" => load(&target, KEYS, 256).await?,
        "churn" => load(&target, CHURN, 256).await?,
        "open" => {}
        "watch" => watch(&target).await?,
        other => return Err(format!("no such measurement: {other}").into()),
    }
    println!("memory: {} KiB resident", target.resident_kib()?);
    target.close().await;
    Ok(())
}

async fn writes(target: &Target, clients: u64) -> Outcome {
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let mut target = target.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                for n in 0u64.. {
                    if start.elapsed() > RUN {
                        break;
                    }
                    let began = Instant::now();
                    let key = format!("/bench/{client}/{}", n % 100);
                    target.put(key.into(), Bytes::from(vec![n as u8; SMALL_BYTES])).await?;
                    times.push(began.elapsed());
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let elapsed = start.elapsed().as_secs_f64();
    times.sort_unstable();
    println!(
        "{clients:>3} clients: {:>7.0} writes/s, p50 {:.2} ms, p99 {:.2} ms, {:.0} us of CPU per write here",
        times.len() as f64 / elapsed,
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[times.len() * 99 / 100].as_secs_f64() * 1e3,
        (cpu_seconds()? - cpu) / times.len() as f64 * 1e6,
    );
    Ok(())
}

/// `count` writes over all keys, in an order that is neither sorted nor repeated.
async fn load(target: &Target, count: u64, clients: u64) -> Outcome {
    let start = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (mut target, next) = (target.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return Ok::<_, Box<dyn std::error::Error + Send + Sync>>(());
                    }
                    let key = format!("/registry/pods/default/object-{:06}", n * 61_843 % KEYS);
                    target.put(key.into(), Bytes::from(vec![n as u8; OBJECT_BYTES])).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let elapsed = start.elapsed().as_secs_f64();
    println!("{count} writes: {elapsed:.1} s, {:.0} writes/s", count as f64 / elapsed);
    Ok(())
}

/// How long until all of 1,000 watchers have a commit, half of them on its prefix and half elsewhere.
async fn watch(target: &Target) -> Outcome {
    const WATCHERS: u64 = 1000;
    const COMMITS: u64 = 500;
    let Target::Mussel(store) = target else { return Err("only the store's watches are measured".into()) };
    let after = store.snapshot(Freshness::Linearizable).await?.revision();
    let tasks: Vec<_> = (0..WATCHERS)
        .map(|n| {
            let prefix = if n % 2 == 0 { "/watched/".to_string() } else { format!("/other/{n}/") };
            let mut watch = store.watch(prefix.into(), after)?;
            Ok(tokio::spawn(async move {
                if n % 2 == 0 {
                    for _ in 0..COMMITS {
                        watch.next().await?;
                    }
                }
                Ok::<_, mussel_store::WatchError>(Instant::now())
            }))
        })
        .collect::<Result<_, mussel_store::WatchError>>()?;
    let start = Instant::now();
    for n in 0..COMMITS {
        let puts = vec![(format!("/watched/{}", n % 50).into(), Bytes::from(vec![0; OBJECT_BYTES]))];
        store.commit(Txn { puts, ..Txn::default() }).await?;
    }
    let written = start.elapsed();
    let mut last = start;
    for task in tasks {
        last = last.max(task.await??);
    }
    let events = COMMITS * WATCHERS / 2;
    println!(
        "{COMMITS} commits to {} of {WATCHERS} watchers: written in {:.2} s, the last watcher {:.1} ms later, {:.0} events/s",
        WATCHERS / 2,
        written.as_secs_f64(),
        last.duration_since(start).saturating_sub(written).as_secs_f64() * 1e3,
        events as f64 / last.duration_since(start).as_secs_f64(),
    );
    Ok(())
}

fn cpu_seconds() -> Result<f64, std::io::Error> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let ticks: u64 = stat.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / 100.0)
}
