//! `mussel secrets-encrypt`: asks the server that runs on this machine. What it prints is as k3s prints it.

use mussel_apiserver::encryption::EncryptionStatus;

use super::admin::{self, EncryptionRequest};
use super::args::{SecretsEncryptArgs, SecretsEncryptCommand};

pub fn main(args: &SecretsEncryptArgs) -> anyhow::Result<()> {
    let (request, done) = match &args.command {
        SecretsEncryptCommand::Status { output } => {
            let status: EncryptionStatus = admin::ask(&args.local.run_dir, admin::ENCRYPT_STATUS, admin::NO_BODY)?;
            match output.as_str() {
                "json" => println!("{}", serde_json::to_string_pretty(&status)?),
                _ => print!("{}", text(&status)),
            }
            return Ok(());
        }
        SecretsEncryptCommand::Enable => (EncryptionRequest::Enable, "secrets-encryption enabled"),
        SecretsEncryptCommand::Disable => (EncryptionRequest::Disable, "secrets-encryption disabled"),
        SecretsEncryptCommand::RotateKeys => (EncryptionRequest::RotateKeys, "keys rotated, reencryption started"),
        SecretsEncryptCommand::Prepare { force } => {
            (EncryptionRequest::Prepare { force: *force }, "prepare completed successfully")
        }
        SecretsEncryptCommand::Rotate { force } => {
            (EncryptionRequest::Rotate { force: *force }, "rotate completed successfully")
        }
        SecretsEncryptCommand::Reencrypt { force, skip } => {
            (EncryptionRequest::Reencrypt { force: *force, skip: *skip }, "reencryption started")
        }
    };
    let _: EncryptionStatus = admin::ask(&args.local.run_dir, admin::ENCRYPT_CONFIG, Some(&request))?;
    println!("{done}");
    Ok(())
}

fn text(status: &EncryptionStatus) -> String {
    if status.stage.is_empty() && status.enable.is_none() && status.hash_error.is_empty() {
        return "Encryption Status: Disabled, no configuration file found\n".to_owned();
    }
    let enabled = if status.enable == Some(true) { "Enabled" } else { "Disabled" };
    // All servers follow the one configuration in the store; whether this one can is what there is to know.
    let hashes = if status.hash_match { "All hashes match" } else { &status.hash_error };
    let mut out = format!(
        "Encryption Status: {enabled}\nCurrent Rotation Stage: {}\nServer Encryption Hashes: {hashes}\n\n",
        status.stage
    );
    out.push_str("Active  Key Type  Name\n------  --------  ----\n");
    if !status.active_key.is_empty() {
        out.push_str(&format!(" *      AES-GCM   {}\n", status.active_key));
    }
    for name in &status.inactive_keys {
        out.push_str(&format!("        AES-GCM   {name}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_printed_as_k3s_prints_it() {
        assert_eq!(text(&EncryptionStatus::default()), "Encryption Status: Disabled, no configuration file found\n");
        let status = EncryptionStatus {
            stage: "prepare".to_owned(),
            active_key: "a".to_owned(),
            enable: Some(true),
            hash_match: true,
            hash_error: String::new(),
            inactive_keys: vec!["b".to_owned()],
        };
        assert_eq!(
            text(&status),
            "Encryption Status: Enabled\nCurrent Rotation Stage: prepare\nServer Encryption Hashes: All hashes match\n\n\
             Active  Key Type  Name\n------  --------  ----\n *      AES-GCM   a\n        AES-GCM   b\n"
        );
    }
}
