//! `mussel certificate`: how long certificates are good for, and new ones before their time.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mussel_cluster::pki::inspect::{self, Certificate, Status};
use mussel_cluster::{admin, files};

use super::args::{CertificateArgs, CertificateCommand, Service};
use super::{killall, process};

/// The folders below the data directory that hold certificates.
const FOLDERS: [&str; 2] = ["server/tls", "agent"];

pub fn main(args: CertificateArgs) -> anyhow::Result<()> {
    match args.command {
        CertificateCommand::Check { data_dir, output, service } => check(&data_dir, &output, &service),
        CertificateCommand::Rotate { local, service } => {
            if let Some(pid) = killall::running(&local) {
                bail!("mussel runs here as process {pid}; stop the service first");
            }
            rotate(&local.data_dir, &service)
        }
        CertificateCommand::RotateCa { path, server, token, data_dir, force } => {
            let token = match token {
                Some(token) => token,
                None => {
                    let file = data_dir.join("server/token");
                    std::fs::read_to_string(&file)
                        .with_context(|| format!("read {}; give the token with --token", file.display()))?
                }
            };
            process::block_on(async move {
                let files = admin::rotate_authorities(&server, &token, &path, force).await?;
                println!("Sent: {}", files.join(", "));
                println!("Restart all servers, one after the other, and then the agents.");
                Ok(())
            })
        }
    }
}

fn certificates(data_dir: &Path, services: &[Service]) -> Vec<Certificate> {
    let all = FOLDERS.iter().flat_map(|folder| inspect::certificates(&data_dir.join(folder)));
    all.filter(|certificate| services.is_empty() || services.iter().any(|s| s.has(&stem(&certificate.file)))).collect()
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn check(data_dir: &Path, output: &str, services: &[Service]) -> anyhow::Result<()> {
    let found = certificates(data_dir, services);
    if found.is_empty() {
        bail!("no certificates below {}", data_dir.display());
    }
    match output {
        "json" => println!("{}", serde_json::to_string_pretty(&found)?),
        "yaml" => print!("{}", serde_saphyr::to_string(&found)?),
        "table" => print!("{}", table(&found)),
        _ => {
            for certificate in &found {
                println!(
                    "{}: certificate {} is {} and expires at {} (in {})",
                    certificate.file.display(),
                    certificate.subject,
                    status(certificate.status),
                    certificate.expires,
                    days(certificate.residual_seconds)
                );
            }
        }
    }
    Ok(())
}

fn table(found: &[Certificate]) -> String {
    let mut rows = vec![["FILENAME", "SUBJECT", "USAGES", "EXPIRES", "RESIDUAL TIME", "STATUS"].map(str::to_owned)];
    rows.extend(found.iter().map(|certificate| {
        [
            certificate.file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            certificate.subject.clone(),
            certificate.usages.join(","),
            certificate.expires.clone(),
            days(certificate.residual_seconds),
            status(certificate.status).to_owned(),
        ]
    }));
    let widths: Vec<usize> = (0..6).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let line = |row: &[String; 6]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Ok => "OK",
        Status::ExpiresSoon => "WARNING",
        Status::Expired => "EXPIRED",
        Status::NotYetValid => "NOT YET VALID",
    }
}

fn days(seconds: i64) -> String {
    match seconds {
        ..0 => "0 days".to_owned(),
        0..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Takes leaf certificates away, after a copy of all; the next start makes new ones for the same keys.
fn rotate(data_dir: &Path, services: &[Service]) -> anyhow::Result<()> {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    for folder in FOLDERS {
        let dir = data_dir.join(folder);
        let leaves: Vec<PathBuf> = certificates(data_dir, services)
            .into_iter()
            .filter(|certificate| {
                certificate.file.starts_with(&dir) && !certificate.usages.contains(&"CertSign".to_owned())
            })
            .map(|certificate| certificate.file)
            .collect();
        if leaves.is_empty() {
            continue;
        }
        let name = if folder == "agent" { "agent" } else { "server" };
        let backup = data_dir.join(name).join(format!("tls-{time}"));
        for file in &leaves {
            let to = backup.join(file.strip_prefix(&dir).unwrap_or(file));
            let content = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
            files::write(&to, &content, 0o600)?;
            files::remove(file)?;
            println!("{} will be made anew at the next start", file.display());
        }
        println!("What was there is in {}", backup.display());
    }
    Ok(())
}
