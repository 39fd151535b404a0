//! What extension servers say of themselves: discovery and OpenAPI. Asked when a client wants to know, and kept for a while;
//! nobody is asked when nobody wants to know.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;
use tokio::time::Instant;

use super::proxy::{ReachError, fetch};
use super::service::{ApiService, Remote};
use crate::Context;

/// An answer is believed for so long, as upstream does; an APIService that changes is asked anew at once.
const FRESH_TIME: Duration = Duration::from_secs(60);
/// After a failure the next question waits, so that not every client waits for a server that is not there.
const RETRY_TIME: Duration = Duration::from_secs(10);

/// For all endpoints together: a client waits for this.
const ASK_TIME: Duration = Duration::from_secs(5);

const RESOURCES: &str = "application/json, */*";
const V2: &str = "application/json";

/// A group version that an extension server serves.
#[derive(Clone, Debug)]
pub struct Extension {
    pub service: Arc<ApiService>,
    /// Of its `APIResourceList`, as last seen.
    pub resources: Arc<Vec<Value>>,
    /// Whether they were seen lately.
    pub current: bool,
}

/// What an extension server's OpenAPI is, for one group version.
#[derive(Clone, Debug)]
pub struct Spec {
    pub service: Arc<ApiService>,
    /// Where its v3 document is, on its own server, as its index says.
    pub v3_url: Option<String>,
    /// Its whole v2 document.
    pub v2: Option<Arc<Value>>,
}

#[derive(Default)]
pub struct Documents {
    /// By path on the server and name of the APIService.
    known: Mutex<HashMap<(&'static str, String), Known>>,
    /// Who finds nothing fresh asks while others wait, and then see what was found.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Known {
    /// Whom the document is of.
    remote: Remote,
    /// Of the APIService when it was asked.
    revision: u64,
    asked: Instant,
    failed: bool,
    document: Option<Arc<Value>>,
}

impl Documents {
    fn find(&self, what: &'static str, service: &ApiService) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(what, service.name.clone())).filter(|known| service.remote.as_ref() == Some(&known.remote)).cloned()
    }

    fn wants_asking(&self, what: &'static str, service: &ApiService) -> bool {
        service.available
            && self.find(what, service).is_none_or(|known| {
                let kept = if known.failed { RETRY_TIME } else { FRESH_TIME };
                known.revision != service.revision || known.asked.elapsed() > kept
            })
    }
}

/// The document of this kind of each extension server, and whether it was seen lately.
async fn documents(context: &Context, what: &'static str) -> Vec<(Arc<ApiService>, Option<Known>)> {
    let documents = &context.aggregator.documents;
    let table = context.aggregator.table();
    let services: Vec<&Arc<ApiService>> = table.values().filter(|service| service.is_elsewhere()).collect();
    if services.iter().any(|service| documents.wants_asking(what, service)) {
        let _asking = documents.asking.lock().await;
        let asked = services.iter().filter(|service| documents.wants_asking(what, service));
        let answers = asked.map(|service| async move {
            let answer = tokio::time::timeout(ASK_TIME, ask(context, what, service)).await;
            (*service, answer.unwrap_or_else(|_| Err(ReachError::Transport("no answer in time".to_owned()))))
        });
        let answers = join_all(answers).await;
        let mut known = documents.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, name), _| table.contains_key(name));
        for (service, answer) in answers {
            let Some(remote) = service.remote.clone() else { continue };
            let key = (what, service.name.clone());
            let before =
                known.get(&key).filter(|known| known.remote == remote).and_then(|known| known.document.clone());
            let failed = answer.is_err();
            let document = match answer {
                Ok(document) => document,
                Err(error) => {
                    tracing::debug!(apiservice = service.name, what, %error, "an extension server does not tell");
                    before
                }
            };
            known.insert(key, Known { remote, revision: service.revision, asked: Instant::now(), failed, document });
        }
    }
    services.into_iter().map(|service| (Arc::clone(service), documents.find(what, service))).collect()
}

/// `Ok(None)`: the server has no such document.
async fn ask(context: &Context, what: &'static str, service: &ApiService) -> Result<Option<Arc<Value>>, ReachError> {
    let Some(remote) = &service.remote else { return Ok(None) };
    let own = service.path();
    let (path, accept) = match what {
        "resources" => (own.as_str(), RESOURCES),
        path => (path, V2),
    };
    let body = match fetch(context, remote, path, accept).await {
        Err(ReachError::Refused { code: 404 | 406, .. }) if what != "resources" => return Ok(None),
        body => body?,
    };
    let document = serde_json::from_slice(&body);
    document.map(|document| Some(Arc::new(document))).map_err(|error| ReachError::Transport(error.to_string()))
}

/// All group versions that are served elsewhere, with their resources.
pub async fn discovery(context: &Context) -> Vec<Extension> {
    let found = documents(context, "resources").await;
    found
        .into_iter()
        .map(|(service, known)| {
            let current = service.available && known.as_ref().is_some_and(|known| !known.failed);
            let document = known.and_then(|known| known.document);
            let resources = document.as_ref().and_then(|document| document["resources"].as_array().cloned());
            Extension { service, resources: Arc::new(resources.unwrap_or_default()), current }
        })
        .collect()
}

/// Where the v3 documents of group versions that are served elsewhere are.
pub async fn v3_index(context: &Context) -> Vec<Spec> {
    let found = documents(context, "/openapi/v3").await;
    found
        .into_iter()
        .map(|(service, known)| {
            let path = service.path();
            let index = known.and_then(|known| known.document);
            let url = index.as_ref().and_then(|index| index["paths"][&path[1..]]["serverRelativeURL"].as_str());
            let v3_url = url.filter(|url| url.starts_with("/openapi/v3/")).map(str::to_owned);
            Spec { service, v3_url, v2: None }
        })
        .collect()
}

/// The v2 documents of extension servers.
pub async fn v2(context: &Context) -> Vec<Spec> {
    let found = documents(context, "/openapi/v2").await;
    let spec = |(service, known): (_, Option<Known>)| Spec {
        service,
        v3_url: None,
        v2: known.and_then(|known| known.document),
    };
    found.into_iter().map(spec).collect()
}
