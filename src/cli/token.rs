//! `mussel token`: tokens that let machines join.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use mussel_cluster::bootstrap_tokens::{self, Spec};
use mussel_cluster::kubeconfig::{self, Access};
use mussel_cluster::{admin, token};

use super::args::{TokenArgs, TokenCommand};
use super::process;

pub fn main(args: TokenArgs) -> anyhow::Result<()> {
    if let TokenCommand::Generate = args.command {
        println!("{}", bootstrap_tokens::generate());
        return Ok(());
    }
    process::block_on(run(args))
}

async fn run(args: TokenArgs) -> anyhow::Result<()> {
    match args.command {
        TokenCommand::Generate => {}
        TokenCommand::Create { token, description, groups, usages, ttl, kubeconfig } => {
            let access = access(kubeconfig.as_deref())?;
            let token = token.unwrap_or_else(bootstrap_tokens::generate);
            let ttl = (!ttl.is_zero()).then_some(ttl);
            bootstrap_tokens::create(
                &access.client()?,
                &Spec { token: token.clone(), description, groups, usages, ttl },
            )
            .await?;
            println!("K10{}::{token}", token::ca_hash(&access.ca_pem));
        }
        TokenCommand::List { output, kubeconfig } => {
            let tokens = bootstrap_tokens::list(&access(kubeconfig.as_deref())?.client()?).await?;
            match output.as_str() {
                "json" => println!("{}", serde_json::to_string_pretty(&tokens)?),
                "yaml" => print!("{}", serde_saphyr::to_string(&tokens)?),
                _ => print!("{}", table(&tokens)),
            }
        }
        TokenCommand::Delete { tokens, kubeconfig } => {
            let client = access(kubeconfig.as_deref())?.client()?;
            for token in tokens {
                bootstrap_tokens::delete(&client, &token).await?;
                println!(
                    "bootstrap token {:?} deleted",
                    token.rsplit("::").next().and_then(|t| t.split('.').next()).unwrap_or(&token)
                );
            }
        }
        TokenCommand::Rotate { token, new_token, server, data_dir } => {
            let token = match token {
                Some(token) => token,
                None => {
                    let path = data_dir.join("server/token");
                    std::fs::read_to_string(&path)
                        .with_context(|| format!("read {}; give the current token with --token", path.display()))?
                }
            };
            let new = admin::rotate_token(&server, &token, new_token.as_deref()).await?;
            println!("The servers' token is now\n{new}");
            println!("Put it where servers get theirs from (flag, file, environment) before they restart.");
        }
    }
    Ok(())
}

/// The cluster of the kubeconfig: the one named, else the one a server here wrote.
fn access(given: Option<&Path>) -> anyhow::Result<Access> {
    let path = given.map_or_else(|| PathBuf::from("/etc/mussel/mussel.yaml"), Path::to_owned);
    let access = kubeconfig::read(&path)
        .with_context(|| format!("read {}; run this on a server as root, or give --kubeconfig", path.display()))?;
    match access {
        Some(access) => Ok(access),
        None => bail!("{} does not exist; run this on a server, or give --kubeconfig", path.display()),
    }
}

fn table(tokens: &[bootstrap_tokens::Listed]) -> String {
    let mut rows = vec![["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"].map(str::to_owned)];
    let now = jiff::Timestamp::now();
    for token in tokens {
        let ttl = token.expires.as_deref().map(|end| match end.parse::<jiff::Timestamp>() {
            Ok(end) if end > now => short(end.duration_since(now).unsigned_abs()),
            _ => "<expired>".to_owned(),
        });
        let none = |text: &str| if text.is_empty() { "<none>".to_owned() } else { text.to_owned() };
        rows.push([
            token.id.clone(),
            ttl.unwrap_or_else(|| "<forever>".to_owned()),
            token.expires.clone().unwrap_or_else(|| "<never>".to_owned()),
            none(&token.usages.join(",")),
            none(&token.description),
            none(&token.groups.join(",")),
        ]);
    }
    let widths: Vec<usize> = (0..6).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let line = |row: &[String; 6]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn short(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..7200 => format!("{}m", seconds / 60),
        seconds => format!("{}h", seconds / 3600),
    }
}
