//! `kube-system/extension-apiserver-authentication`: by what extension servers know clients, and us. The leader keeps it as its
//! configuration says.

use std::time::Duration;

use mussel_api::object::{self, ObjectExt};
use mussel_store::{CommitError, Freshness, Precondition, Revision, Txn};
use serde_json::{Value, json};

use crate::Context;
use crate::registry::{key, write::now};
use crate::status::Status;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";

/// Until what failed is tried again: the store had no leader, mostly.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps it while this server leads.
pub async fn lead(context: &Context) {
    let key = key::object("configmaps", NAMESPACE, NAME);
    loop {
        let failed = match settle(context).await {
            Ok(seen) => match context.store.watch(key.clone(), seen) {
                Ok(mut watch) => watch.next().await.is_err(),
                Err(_) => true,
            },
            Err(status) => {
                tracing::debug!(why = status.message, "{NAMESPACE}/{NAME} is not written yet");
                true
            }
        };
        if failed {
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Writes it, unless it is as it should be. Returns the revision at which it was looked at.
///
/// # Errors
/// When the store cannot be read or does not take it.
pub async fn settle(context: &Context) -> Result<Revision, Status> {
    let key = key::object("configmaps", NAMESPACE, NAME);
    let snapshot = context.store.snapshot(Freshness::Linearizable).await?;
    let data = data(context);
    let (condition, mut object) = match snapshot.get(&key) {
        Some(versioned) => {
            let object: Value = object::decode(&versioned.value()?, versioned.revision.0).map_err(Status::internal)?;
            (Precondition::At(key.clone(), versioned.revision), object)
        }
        None => {
            let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": NAME, "namespace": NAMESPACE}});
            let metadata = object.meta_mut();
            metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
            metadata.insert("creationTimestamp".to_owned(), now().into());
            (Precondition::Absent(key.clone()), object)
        }
    };
    if object["data"] == data {
        return Ok(snapshot.revision());
    }
    object["data"] = data;
    let txn = Txn { preconditions: vec![condition], puts: vec![(key, object::encode(&object))], deletes: Vec::new() };
    match context.store.commit(txn).await {
        // Somebody else's write wakes us.
        Ok(_) | Err(CommitError::Refused { .. }) => Ok(snapshot.revision()),
        Err(error) => Err(error.into()),
    }
}

fn data(context: &Context) -> Value {
    let config = &context.config;
    let pem = |pem: &[u8]| String::from_utf8_lossy(pem).into_owned();
    let mut data = json!({"client-ca-file": pem(&config.client_ca_pem)});
    if let Some(ca) = &config.request_header_ca_pem {
        data["requestheader-client-ca-file"] = pem(ca).into();
        data["requestheader-allowed-names"] = json!(config.request_header_allowed_names).to_string().into();
        for (kind, header) in [
            ("username-headers", "X-Remote-User"),
            ("uid-headers", "X-Remote-Uid"),
            ("group-headers", "X-Remote-Group"),
            ("extra-headers-prefix", "X-Remote-Extra-"),
        ] {
            data[format!("requestheader-{kind}")] = json!([header]).to_string().into();
        }
    }
    data
}
