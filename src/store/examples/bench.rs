//! Writes per second at 1, 16 and 64 clients: `cargo run --release -p mussel-store --example bench [dir]`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mussel_store::{Config, Freshness, Store, Txn};

const VALUE_BYTES: usize = 512;
const RUN: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).map_or_else(|| std::env::temp_dir().join("mussel-store-bench"), PathBuf::from);
    let start = Instant::now();
    let store = Store::open(Config::new(&dir)).await?;
    println!("open: {:?}, revision {}, {} keys", start.elapsed(), store.revision().0, {
        store.snapshot(Freshness::Local).await?.len()
    });
    println!("            {}", memory()?);
    for clients in [1u32, 16, 64] {
        let start = Instant::now();
        let tasks: Vec<_> = (0..clients).map(|client| tokio::spawn(write(store.clone(), client, start))).collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await?);
        }
        let elapsed = start.elapsed().as_secs_f64();
        times.sort_unstable();
        println!(
            "{clients:>3} clients: {:>8.0} writes/s, p50 {:?}, p99 {:?}",
            times.len() as f64 / elapsed,
            times[times.len() / 2],
            times[times.len() * 99 / 100],
        );
        println!("            {}", memory()?);
    }
    let before = cpu_ticks()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("idle: {} ticks of CPU in 2 s", cpu_ticks()? - before);
    store.shutdown().await;
    Ok(())
}

/// User and system time of this process, in clock ticks.
fn cpu_ticks() -> Result<u64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    Ok(stat.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum())
}

fn memory() -> std::io::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    Ok(status.lines().filter(|line| line.starts_with("RssAnon") || line.starts_with("RssFile")).collect())
}

async fn write(store: Store, client: u32, start: Instant) -> Vec<Duration> {
    let mut times = Vec::new();
    for n in 0u32.. {
        if start.elapsed() > RUN {
            break;
        }
        let value = Bytes::from(vec![n as u8; VALUE_BYTES]);
        let txn = Txn { puts: vec![(format!("/bench/{client}/{}", n % 100).into(), value)], ..Txn::default() };
        let began = Instant::now();
        if let Err(error) = store.commit(txn).await {
            eprintln!("client {client}: {error}");
            break;
        }
        times.push(began.elapsed());
    }
    times
}
