//! The host's iptables, of whichever kind (nft or legacy).
//!
//! Rules are loaded as one text by `iptables-restore --noflush`, which is atomic for each table: either all of it is in
//! force, or nothing changed.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Where the tools are, also when PATH has no sbin (service managers, `su`).
const FOLDERS: [&str; 6] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin", "/usr/local/bin"];
/// Another program may hold the lock of the legacy variant for as long as it loads its rules.
const LOCK_SECONDS: &str = "30";

#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    #[error("iptables is not installed (looked for {name} in PATH and {}); install the package iptables", FOLDERS.join(", "))]
    Missing { name: &'static str },
    #[error("run {tool}")]
    Run { tool: String, source: io::Error },
    #[error("{tool} refused: {message}")]
    Refused { tool: String, message: String },
}

#[derive(Clone, Debug)]
pub struct Iptables {
    iptables: PathBuf,
    restore: PathBuf,
    save: PathBuf,
}

impl Iptables {
    pub fn find() -> Result<Self, IptablesError> {
        Ok(Self { iptables: tool("iptables")?, restore: tool("iptables-restore")?, save: tool("iptables-save")? })
    }

    /// Loads a text in iptables-save's format; chains that it does not name stay as they are.
    pub async fn restore(&self, text: &str) -> Result<(), IptablesError> {
        let mut command = Command::new(&self.restore);
        command.args(["--noflush", "-w", LOCK_SECONDS]).stdin(Stdio::piped());
        run(command, text.as_bytes()).await.map(drop)
    }

    /// The rules of a table, as iptables-save prints them.
    pub async fn save(&self, table: &str) -> Result<String, IptablesError> {
        let mut command = Command::new(&self.save);
        command.args(["-t", table]);
        run(command, b"").await
    }

    /// Makes sure that `chain` has the rule, in front of all others unless `last`.
    pub async fn ensure_rule(&self, table: &str, chain: &str, rule: &[&str], last: bool) -> Result<(), IptablesError> {
        if self.rule(table, "-C", chain, rule).await.is_ok() {
            return Ok(());
        }
        self.rule(table, if last { "-A" } else { "-I" }, chain, rule).await
    }

    /// Takes the rule out, as often as it is there.
    pub async fn remove_rule(&self, table: &str, chain: &str, rule: &[&str]) {
        // Bounded, because a rule that cannot be deleted would be found again for ever.
        for _ in 0..16 {
            if self.rule(table, "-D", chain, rule).await.is_err() {
                return;
            }
        }
    }

    /// Empties and deletes chains whose names begin with one of `prefixes`, and every rule that jumps to them.
    pub async fn remove_chains(&self, table: &str, prefixes: &[&str]) -> Result<(), IptablesError> {
        let text = removal(table, &self.save(table).await?, prefixes);
        match text {
            Some(text) => self.restore(&text).await,
            None => Ok(()),
        }
    }

    async fn rule(&self, table: &str, action: &str, chain: &str, rule: &[&str]) -> Result<(), IptablesError> {
        let mut command = Command::new(&self.iptables);
        command.args(["-w", LOCK_SECONDS, "-t", table, action, chain]).args(rule);
        run(command, b"").await.map(drop)
    }
}

/// A restore text that removes our chains and what points at them from what `saved` shows; `None` when there is nothing.
fn removal(table: &str, saved: &str, prefixes: &[&str]) -> Option<String> {
    let ours = |chain: &str| prefixes.iter().any(|prefix| chain.starts_with(prefix));
    let chains: Vec<&str> = saved
        .lines()
        .filter_map(|line| line.strip_prefix(':')?.split_whitespace().next())
        .filter(|chain| ours(chain))
        .collect();
    let jumps: Vec<&str> = saved
        .lines()
        .filter_map(|line| line.strip_prefix("-A "))
        .filter(|rule| {
            let mut words = rule.split_whitespace();
            let from_foreign = words.next().is_some_and(|chain| !ours(chain));
            let mut words = words.skip_while(|word| *word != "-j" && *word != "-g").skip(1);
            from_foreign && words.next().is_some_and(ours)
        })
        .collect();
    if chains.is_empty() && jumps.is_empty() {
        return None;
    }
    let mut text = format!("*{table}\n");
    for chain in &chains {
        text.push_str(&format!(":{chain} - [0:0]\n"));
    }
    for rule in jumps {
        text.push_str(&format!("-D {rule}\n"));
    }
    for chain in &chains {
        text.push_str(&format!("-X {chain}\n"));
    }
    text.push_str("COMMIT\n");
    Some(text)
}

fn tool(name: &'static str) -> Result<PathBuf, IptablesError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file()).ok_or(IptablesError::Missing { name })
}

async fn run(mut command: Command, input: &[u8]) -> Result<String, IptablesError> {
    let tool = command.as_std().get_program().to_string_lossy().into_owned();
    let failed = |source| IptablesError::Run { tool: tool.clone(), source };
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if input.is_empty() {
        command.stdin(Stdio::null());
    }
    let mut child = command.spawn().map_err(failed)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // When the tool stops reading, what it printed tells why.
            let _ = stdin.write_all(input).await;
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(IptablesError::Refused { tool, message: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_chains_are_removed() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SEP-A - [0:0]\n\
            -A PREROUTING -m comment --comment \"x y\" -j KUBE-SERVICES\n-A PREROUTING -j DOCKER\n\
            -A KUBE-SERVICES -j KUBE-SEP-A\nCOMMIT\n";
        let text = removal("nat", saved, &["KUBE-", "MUSSEL-"]).unwrap();
        assert_eq!(
            text,
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SEP-A - [0:0]\n\
            -D PREROUTING -m comment --comment \"x y\" -j KUBE-SERVICES\n-X KUBE-SERVICES\n-X KUBE-SEP-A\nCOMMIT\n"
        );
        assert_eq!(removal("nat", "*nat\n:DOCKER - [0:0]\nCOMMIT\n", &["KUBE-"]), None);
    }
}
