//! The measurements. Each says what it found as one line of JSON.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::process::Command;

use crate::Failure;
use crate::objects::{OBJECT_BYTES, lease, pod, renewal};
use crate::target::Target;

const RUN: Duration = Duration::from_secs(5);
const KEYS: u64 = 100_000;
const CHURN: u64 = 1_000_000;
const LOADERS: u64 = 256;

const CLIENTS: [u64; 4] = [1, 16, 64, 256];

/// Time between two attempts to write while the group looks for a leader.
const PROBE: Duration = Duration::from_millis(10);

/// 1, 16, 64 and 256 clients, each of which writes one key after the other.
pub async fn writes(target: &Target) -> Result<(), Failure> {
    for clients in CLIENTS {
        concurrently("writes", target, clients).await?;
    }
    Ok(())
}

/// Linearizable reads of single keys.
pub async fn reads(target: &Target) -> Result<(), Failure> {
    let mut filler = target.clone();
    for n in 0..100 {
        filler.put(format!("/read/{n}").into(), lease(n)).await?;
    }
    for clients in CLIENTS {
        concurrently("reads", target, clients).await?;
    }
    Ok(())
}

async fn concurrently(what: &'static str, target: &Target, clients: u64) -> Result<(), Failure> {
    let start = Instant::now();
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
                    if what == "writes" {
                        let key = format!("/bench/{client}/{}", n % 100);
                        target.put(key.into(), lease(client << 32 | n)).await?;
                    } else {
                        target.get(format!("/read/{}", (client + n) % 100).into()).await?;
                    }
                    times.push(began.elapsed());
                    // A read that waits for nobody would never let others run.
                    tokio::task::consume_budget().await;
                }
                Ok::<_, Failure>(times)
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
        r#"{{"what": "{what}", "clients": {clients}, "per_second": {:.0}, "p50_ms": {:.3}, "p99_ms": {:.3}}}"#,
        times.len() as f64 / elapsed,
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[times.len() * 99 / 100].as_secs_f64() * 1e3,
    );
    Ok(())
}

/// 100,000 keys.
pub async fn fill(target: &Target) -> Result<(), Failure> {
    load("fill", target, KEYS).await
}

/// 1,000,000 writes over those.
pub async fn churn(target: &Target) -> Result<(), Failure> {
    load("churn", target, CHURN).await
}

/// `count` writes over all keys, in an order that is neither sorted nor repeated.
async fn load(what: &str, target: &Target, count: u64) -> Result<(), Failure> {
    let start = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..LOADERS)
        .map(|_| {
            let (mut target, next) = (target.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return Ok::<_, Failure>(());
                    }
                    let key = format!("/registry/pods/default/object-{:06}", n * 61_843 % KEYS);
                    target.put(key.into(), pod(n)).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        r#"{{"what": "{what}", "writes": {count}, "seconds": {seconds:.1}, "per_second": {:.0}, "value_bytes": {}}}"#,
        count as f64 / seconds,
        count * OBJECT_BYTES as u64
    );
    Ok(())
}

/// How long until all of 1,000 watchers have what concerns them: half of them watch what is written, half other things.
pub async fn watch(target: &Target) -> Result<(), Failure> {
    const STREAMS: u64 = 10;
    const PER_STREAM: u64 = 100;
    const COMMITS: u64 = 500;
    let mut waiting = Vec::new();
    for stream in 0..STREAMS {
        let prefix = |n: u64| match n % 2 {
            0 => Bytes::from_static(b"/watched/"),
            _ => format!("/other/{stream}/{n}/").into(),
        };
        let prefixes = (0..PER_STREAM).map(prefix).collect();
        waiting.push(tokio::spawn(target.clone().watch(prefixes, COMMITS * PER_STREAM / 2).await?));
    }
    let start = Instant::now();
    let mut writer = target.clone();
    for n in 0..COMMITS {
        writer.put(format!("/watched/{}", n % 50).into(), pod(n)).await?;
    }
    let written = start.elapsed().as_secs_f64();
    for task in waiting {
        task.await??;
    }
    let all = start.elapsed().as_secs_f64();
    println!(
        r#"{{"what": "watch", "watchers": {}, "commits": {COMMITS}, "write_ms": {:.3}, "last_ms_later": {:.1}, "events_per_second": {:.0}}}"#,
        STREAMS * PER_STREAM,
        written / COMMITS as f64 * 1e3,
        (all - written) * 1e3,
        (COMMITS * STREAMS * PER_STREAM / 2) as f64 / all,
    );
    Ok(())
}

/// What an idle node writes: the same lease, again and again. Bytes by the count of the kernel, which counts whole pages.
pub async fn idle(target: &Target) -> Result<(), Failure> {
    const WARM_UP: u64 = 100;
    const RENEWALS: u64 = 300;
    let mut writer = target.clone();
    let mut before = 0;
    for n in 0..WARM_UP + RENEWALS {
        if n == WARM_UP {
            before = written_bytes()?;
        }
        writer.put("/registry/leases/kube-node-lease/node-1".into(), renewal(n)).await?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let bytes = (written_bytes()? - before) / RENEWALS;
    // One every 10 s.
    println!(r#"{{"what": "idle", "bytes_per_commit": {bytes}, "mb_per_hour": {:.2}}}"#, bytes as f64 * 360.0 / 1e6);
    Ok(())
}

fn written_bytes() -> Result<u64, Failure> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).ok_or("no write_bytes")?;
    Ok(line.parse()?)
}

/// Kills the leader, another process, while writes go on here; how long until one is acknowledged that was begun later.
pub async fn failover(target: &Target, leader: &str) -> Result<(), Failure> {
    let mut writer = target.clone();
    for n in 0..200u64 {
        writer.put("/failover".into(), pod(n)).await?;
    }
    let start = Instant::now();
    if !Command::new("kill").args(["-9", leader]).status().await?.success() {
        return Err(format!("process {leader} is not killed").into());
    }
    let (acknowledged, mut first) = tokio::sync::mpsc::channel(1);
    // A request that went to the dead leader may never be answered: there is always a new one.
    let probing = tokio::spawn({
        let target = target.clone();
        async move {
            for n in 0u64.. {
                let (mut writer, acknowledged) = (target.clone(), acknowledged.clone());
                tokio::spawn(async move {
                    if writer.put(format!("/failover/{n}").into(), pod(n)).await.is_ok() {
                        let _ = acknowledged.try_send(Instant::now());
                    }
                });
                tokio::time::sleep(PROBE).await;
            }
        }
    });
    let until = tokio::time::timeout(Duration::from_secs(60), first.recv()).await?.ok_or("no answer")?;
    probing.abort();
    println!(r#"{{"what": "failover", "seconds": {:.3}}}"#, until.duration_since(start).as_secs_f64());
    Ok(())
}
