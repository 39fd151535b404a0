//! What every namespace gets: the ServiceAccount `default`, and the ConfigMap that Pods verify the API server with.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use mussel_client::{Change, Informer, WorkQueue};
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, follow_keys, queue_all};
use crate::error::{Outcome, is_already_exists};
use crate::pods::is_terminating;

const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const ROOT_CA_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                            endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                            guaranteed across distributions of Kubernetes clusters.";

struct Controller {
    client: Client,
    /// Publishes the CA.
    publisher: Client,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    maps: Informer<ConfigMap>,
    root_ca_pem: String,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let namespaces = context.informers.of::<Namespace>();
    let accounts = context.informers.of::<ServiceAccount>();
    let maps = context.informers.of_fields::<ConfigMap>(&format!("metadata.name={ROOT_CA}"));
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        publisher: context.client_as("root-ca-cert-publisher"),
        namespaces: namespaces.clone(),
        accounts: accounts.clone(),
        maps: maps.clone(),
        root_ca_pem: context.config.root_ca_pem.clone(),
    };
    let wake = |namespace: &Option<String>| queue.add((String::new(), namespace.clone().unwrap_or_default()));
    let on_account = |change: &Change<ServiceAccount>| {
        if let Change::Deleted(account) = change {
            wake(&account.metadata.namespace);
        }
    };
    let on_map = |change: &Change<ConfigMap>| {
        if let Change::Applied { old: Some(_), new: map } | Change::Deleted(map) = change {
            wake(&map.metadata.namespace);
        }
    };
    let resync = || queue_all(&namespaces, &queue);
    tokio::join!(
        follow_keys(namespaces.clone(), queue.clone(), stop.clone()),
        follow(accounts.clone(), stop.clone(), on_account, resync),
        follow(maps.clone(), stop.clone(), on_map, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(namespaces.synced(), accounts.synced(), maps.synced()); } => (),
            }
            control::work("serviceaccount", queue.clone(), 5, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

impl Controller {
    async fn reconcile(&self, (_, name): Key) -> Outcome {
        let Some(namespace) = self.namespaces.get("", &name) else { return Ok(None) };
        let terminating = namespace.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Terminating");
        if terminating || namespace.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        if self.accounts.get(&name, "default").is_none() {
            let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &name);
            let account = ServiceAccount { metadata: meta(&name, "default"), ..ServiceAccount::default() };
            match api.create(&PostParams::default(), &account).await {
                Err(error) if is_terminating(&error) => return Ok(None),
                Err(error) if !is_already_exists(&error) => return Err(error.into()),
                _ => {}
            }
        }
        let api: Api<ConfigMap> = Api::namespaced(self.publisher.clone(), &name);
        let data = Some([("ca.crt".to_owned(), self.root_ca_pem.clone())].into());
        match self.maps.get(&name, ROOT_CA) {
            Some(map) if map.data == data => {}
            Some(map) => {
                let updated = ConfigMap { data, ..(*map).clone() };
                api.replace(ROOT_CA, &PostParams::default(), &updated).await?;
            }
            None => {
                let mut metadata = meta(&name, ROOT_CA);
                metadata.annotations = Some([(DESCRIPTION.to_owned(), ROOT_CA_TEXT.to_owned())].into());
                let map = ConfigMap { metadata, data, ..ConfigMap::default() };
                match api.create(&PostParams::default(), &map).await {
                    Err(error) if !is_already_exists(&error) && !is_terminating(&error) => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(None)
    }
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some(namespace.to_owned()), name: Some(name.to_owned()), ..ObjectMeta::default() }
}
