//! An informer over a server in this process: list, watch, and a watch that breaks.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use mussel_client::{Change, Informers, in_process};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

fn object(name: &str, version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "a", "name": name, "uid": name,
        "resourceVersion": version.to_string(), "managedFields": [{"manager": "x"}]}})
}

/// As API servers write it, the type first.
fn event(kind: &str, object: &Value) -> String {
    format!(r#"{{"type":"{kind}","object":{object}}}"#)
}

/// Lists `x`; each watch streams what is sent through the next channel of `watches`.
fn client(watches: Vec<mpsc::Receiver<String>>) -> kube::Client {
    let watches = Arc::new(Mutex::new(watches));
    in_process(tower::service_fn(move |request: Request<Body>| {
        let watches = watches.clone();
        async move {
            assert_eq!(request.uri().path(), "/api/v1/configmaps");
            if !request.uri().query().unwrap_or_default().contains("watch=true") {
                let list = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "5"},
                    "items": [object("x", 5)]});
                let whole: UnsyncBoxBody<Bytes, Infallible> = Full::new(Bytes::from(list.to_string())).boxed_unsync();
                return Ok::<_, Infallible>(Response::new(whole));
            }
            let next = {
                let mut watches = watches.lock().unwrap();
                if watches.is_empty() { mpsc::channel(1).1 } else { watches.remove(0) }
            };
            let lines = futures::stream::unfold(next, |mut next| async {
                let event = next.recv().await?;
                let frame = http_body::Frame::data(Bytes::from(format!("{event}\n")));
                Some((Ok::<_, Infallible>(frame), next))
            });
            Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(lines.boxed()))))
        }
    }))
}

async fn told(changes: &mut mussel_client::Changes<ConfigMap>) -> String {
    match changes.next().await {
        Some(Change::Applied { old, new }) => {
            assert!(new.metadata.managed_fields.is_none());
            let sign = if old.is_some() { "~" } else { "+" };
            format!("{sign}{}", new.metadata.name.as_deref().unwrap())
        }
        Some(Change::Deleted(old)) => format!("-{}", old.metadata.name.as_deref().unwrap()),
        Some(Change::Resync) => "resync".to_owned(),
        None => "end".to_owned(),
    }
}

#[tokio::test]
async fn an_informer_lists_watches_and_goes_on_after_a_break() {
    let (first, first_events) = mpsc::channel(8);
    let (second, second_events) = mpsc::channel(8);
    let stop = CancellationToken::new();
    let informers = Informers::new(client(vec![first_events, second_events]), stop.clone());
    let informer = informers.of::<ConfigMap>();
    let mut changes = informer.changes();
    informer.synced().await;
    assert_eq!(told(&mut changes).await, "+x");
    first.send(event("ADDED", &object("y", 6))).await.unwrap();
    first.send(event("MODIFIED", &object("x", 7))).await.unwrap();
    assert_eq!(told(&mut changes).await, "+y");
    assert_eq!(told(&mut changes).await, "~x");
    drop(first);
    second.send(event("DELETED", &object("y", 8))).await.unwrap();
    assert_eq!(told(&mut changes).await, "-y");
    // Asking again gives the same copy, not another watch.
    assert_eq!(informers.of::<ConfigMap>().list_in("a").len(), 1);
    // Too old to go on: everything is listed again, and only differences are told.
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410});
    second.send(event("ERROR", &status)).await.unwrap();
    assert_eq!(told(&mut changes).await, "~x");
    stop.cancel();
    assert_eq!(told(&mut changes).await, "end");
}
