//! A new token for the servers, from the one that is asked to all of them: by way of the Secret `kube-system/mussel-token`,
//! which exists once a token was changed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use mussel_client::Informer;
use tokio::sync::Notify;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::token::{self, Secrets};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "mussel-token";
const SECRET_TYPE: &str = "mussel.io/token";
const KEY: &str = "token";
const RETRY: Duration = Duration::from_secs(5);

/// The field selector of the Secret.
pub fn selector() -> String {
    format!("metadata.name={NAME}")
}

/// # Errors
/// When the API refuses.
pub async fn publish(client: &Client, new: &str) -> Result<(), kube::Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let mut secret = Secret { type_: Some(SECRET_TYPE.to_owned()), ..Secret::default() };
    secret.metadata.name = Some(NAME.to_owned());
    secret.data = Some(BTreeMap::from([(KEY.to_owned(), ByteString(new.as_bytes().to_vec()))]));
    api.patch(NAME, &PatchParams::apply("mussel").force(), &Patch::Apply(&secret)).await.map(drop)
}

/// Takes over what the Secret says, into the files and into use, and tells `taken_over`, until `stop`.
pub async fn follow(
    secrets: Informer<Secret>,
    used: Arc<ArcSwap<Secrets>>,
    server_dir: PathBuf,
    ca_pem: String,
    taken_over: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut changes = secrets.changes();
    loop {
        let new = secrets.get(NAMESPACE, NAME).and_then(|secret| {
            String::from_utf8(secret.data.as_ref()?.get(KEY)?.0.clone()).ok().filter(|text| !text.is_empty())
        });
        let now = used.load_full();
        let mut failed = false;
        if let Some(new) = new
            && new != now.server
        {
            // Agents with a token of their own keep it.
            let agent = if now.agent == now.server { new.clone() } else { now.agent.clone() };
            let new = Secrets { server: new, agent };
            match token::write(&server_dir, &ca_pem, &new) {
                Ok(()) => {
                    used.store(Arc::new(new));
                    taken_over.notify_one();
                    tracing::info!("the servers' token was changed");
                }
                Err(error) => {
                    tracing::error!(%error, "the new token is not kept");
                    failed = true;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.next() => if change.is_none() { return stop.cancelled().await },
            () = time::sleep(RETRY), if failed => {}
        }
    }
}
