//! `mussel snapshot`: asks the server that runs on this machine, but for a restore, for which none may run.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{DEFAULT_DIR, Snapshot};
use crate::cli::admin::{self, DeleteRequest, PruneRequest, SaveRequest};
use crate::cli::args::{LocalArgs, Output, SnapshotArgs, SnapshotCommand};
use crate::cli::{log, process, reset};

pub fn main(args: &SnapshotArgs) -> anyhow::Result<()> {
    let run_dir = &args.local.run_dir;
    match &args.command {
        None => save(run_dir, "on-demand"),
        Some(SnapshotCommand::Save { name }) => save(run_dir, name),
        Some(SnapshotCommand::Ls { output }) => {
            let snapshots: Vec<Snapshot> = admin::ask(run_dir, admin::SNAPSHOTS, admin::NO_BODY)?;
            print(&snapshots, *output)
        }
        Some(SnapshotCommand::Delete { names }) => {
            let request = DeleteRequest { names: names.clone() };
            deleted(&admin::ask::<Vec<_>>(run_dir, admin::DELETE, Some(&request))?)
        }
        Some(SnapshotCommand::Prune { name, snapshot_retention }) => {
            let request = PruneRequest { name: name.clone(), keep: *snapshot_retention };
            deleted(&admin::ask::<Vec<_>>(run_dir, admin::PRUNE, Some(&request))?)
        }
        Some(SnapshotCommand::Restore { snapshot, token }) => restore(&args.local, snapshot, token.as_deref()),
    }
}

fn save(run_dir: &Path, name: &str) -> anyhow::Result<()> {
    let request = SaveRequest { name: name.to_owned() };
    let saved: Snapshot = admin::ask(run_dir, admin::SNAPSHOTS, Some(&request))?;
    println!("Snapshot {} saved.", saved.name);
    Ok(())
}

/// Without a server, as it is the server's state that is replaced.
fn restore(local: &LocalArgs, snapshot: &Path, token: Option<&str>) -> anyhow::Result<()> {
    log::start(local.debug);
    ensure!(
        !admin::is_answered(&local.run_dir),
        "a server runs on this machine; stop it, and those of all other machines, before its state is replaced"
    );
    let server_dir = local.data_dir.join("server");
    let kept = server_dir.join(DEFAULT_DIR).join(snapshot);
    let is_name = snapshot.components().count() == 1 && !snapshot.exists() && kept.exists();
    let file = if is_name { kept } else { snapshot.to_owned() };
    process::block_on(reset::run(Some(file), &server_dir, token))
}

fn deleted(snapshots: &[Snapshot]) -> anyhow::Result<()> {
    for snapshot in snapshots {
        println!("Snapshot {} deleted.", snapshot.name);
    }
    Ok(())
}

fn print(snapshots: &[Snapshot], output: Output) -> anyhow::Result<()> {
    match output {
        Output::Table => {
            let rows: Vec<[String; 4]> = snapshots.iter().map(row).collect();
            let width =
                |column: usize, least: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(least);
            let (name, location, size) = (width(0, 4), width(1, 8), width(2, 4));
            println!("{:name$} {:location$} {:size$} Created", "Name", "Location", "Size");
            for [a, b, c, d] in &rows {
                println!("{a:name$} {b:location$} {c:size$} {d}");
            }
        }
        Output::Json => println!("{}", serde_json::to_string_pretty(&list(snapshots))?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&list(snapshots)).context("write YAML")?),
    }
    Ok(())
}

fn row(snapshot: &Snapshot) -> [String; 4] {
    [snapshot.name.clone(), snapshot.location.clone(), snapshot.size.to_string(), created(snapshot)]
}

fn created(snapshot: &Snapshot) -> String {
    jiff::Timestamp::from_second(snapshot.created).map_or_else(|_| String::new(), |time| time.to_string())
}

/// As k3s prints them, so that scripts go on working.
fn list(snapshots: &[Snapshot]) -> Value {
    let item = |snapshot: &Snapshot| {
        json!({
            "apiVersion": "k3s.cattle.io/v1",
            "kind": "ETCDSnapshotFile",
            "metadata": { "name": format!("local-{}", snapshot.name), "creationTimestamp": created(snapshot) },
            "spec": {
                "snapshotName": snapshot.name,
                "nodeName": snapshot.node,
                "location": snapshot.location,
            },
            "status": {
                "size": snapshot.size.to_string(),
                "creationTime": created(snapshot),
                "readyToUse": true,
            },
        })
    };
    json!({
        "apiVersion": "k3s.cattle.io/v1",
        "kind": "ETCDSnapshotFileList",
        "metadata": {},
        "items": snapshots.iter().map(item).collect::<Vec<_>>(),
    })
}
