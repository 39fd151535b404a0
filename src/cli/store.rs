//! `mussel store`: asks the server that runs on this machine.

use anyhow::Context;

use super::admin::{self, Member, RemoveRequest, StoreStatus};
use super::args::{Output, StoreArgs, StoreCommand};

pub fn main(args: &StoreArgs) -> anyhow::Result<()> {
    match &args.command {
        StoreCommand::Status { output } => status(args, output),
        StoreCommand::Remove { member } => {
            let request = RemoveRequest { member: member.clone() };
            let removed: Member = admin::ask(&args.local.run_dir, admin::REMOVE_MEMBER, Some(&request))?;
            println!("{} ({}) is no member any more", removed.id, removed.name);
            Ok(())
        }
    }
}

fn status(args: &StoreArgs, output: &Output) -> anyhow::Result<()> {
    let status: StoreStatus = admin::ask(&args.local.run_dir, admin::STATUS, admin::NO_BODY)?;
    match output {
        Output::Table => {
            println!("Cluster:   {}", status.cluster);
            println!(
                "Term:      {}, applied {} of {} committed",
                status.term, status.applied_index, status.committed_index
            );
            println!("Revision:  {} with {} keys, digest {}", status.revision, status.keys, status.digest);
            println!("Database:  {} bytes", status.db_bytes);
            println!("Writes:    {}", status.write_error.as_deref().unwrap_or("work"));
            println!();
            println!("{:16}  {:7}  {:6}  {:9}  {:6}  ADDRESS", "MEMBER", "ROLE", "LEADER", "REACHABLE", "LAG");
            for member in &status.members {
                let (own, text) = (member.id == status.member, |flag| if flag { "yes" } else { "no" });
                println!(
                    "{:16}  {:7}  {:6}  {:9}  {:6}  {} {}",
                    member.id,
                    member.role,
                    text(member.leader),
                    if own { "this one" } else { member.reachable.map_or("?", text) },
                    member.lag_entries.map_or("?".to_owned(), |lag| lag.to_string()),
                    member.address,
                    member.name,
                );
            }
        }
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&status).context("write YAML")?),
    }
    Ok(())
}
