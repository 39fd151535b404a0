//! `mussel store status`: asks the server that runs on this machine.

use anyhow::Context;

use super::admin::{self, StoreStatus};
use super::args::{Output, StoreArgs, StoreCommand};

pub fn main(args: &StoreArgs) -> anyhow::Result<()> {
    let StoreCommand::Status { output } = &args.command;
    let status: StoreStatus = admin::ask(&args.local.run_dir, admin::STATUS, admin::NO_BODY)?;
    match output {
        Output::Table => {
            println!("Leader:    {}", if status.leader { "yes" } else { "no" });
            println!("Revision:  {}", status.revision);
            println!("Keys:      {}", status.keys);
            println!("Database:  {} bytes", status.db_bytes);
            println!("Watchers:  {}", status.watchers);
            println!("Writes:    {}", status.write_error.as_deref().unwrap_or("work"));
        }
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&status).context("write YAML")?),
    }
    Ok(())
}
