//! Lists and watches objects whose type does not matter yet, so that this is one piece of code for all kinds: for each of
//! some thirty kinds, kube's watcher and a third copy of its types' readers were 2 MB of the binary.

use std::borrow::Cow;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::api::ApiResource;
use kube::core::ObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(20);

/// An object as it was sent. In a watch event the type must come before the object, as in those of API servers: with it
/// after, serde would have to keep the object in a form that is not text any more.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    metadata: ObjectMeta,
    text: Box<RawValue>,
}

impl Raw {
    pub(super) fn text(&self) -> &str {
        self.text.get()
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Head {
            metadata: ObjectMeta,
        }
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let head: Head = serde_json::from_str(text.get()).map_err(de::Error::custom)?;
        Ok(Self { metadata: head.metadata, text })
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Takes what a watch tells.
pub(super) trait Receiver: Send {
    /// A full list begins.
    fn begin(&mut self);
    /// A part of that list.
    fn listed(&mut self, object: &Raw);
    /// The list is complete.
    fn complete(&mut self);
    fn applied(&mut self, object: &Raw);
    fn deleted(&mut self, object: &Raw);
}

/// Lists and watches until `stop`, whatever happens to servers.
pub(super) async fn follow(
    api: Api<Raw>,
    config: watcher::Config,
    kind: &str,
    stop: &CancellationToken,
    receiver: &mut dyn Receiver,
) {
    let mut events = pin!(watcher(api, config));
    // Only what a server answered ends the waiting: the watcher says that it begins before it asks anybody.
    let mut retry = Retry(RETRY_FIRST);
    loop {
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            None => return,
            Some(Err(error)) => {
                log(kind, &error);
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(retry.next()) => {}
                }
                continue;
            }
            Some(Ok(Event::Init)) => {
                receiver.begin();
                continue;
            }
            Some(Ok(Event::InitApply(object))) => {
                receiver.listed(&object);
                continue;
            }
            Some(Ok(Event::InitDone)) => receiver.complete(),
            Some(Ok(Event::Apply(object))) => receiver.applied(&object),
            Some(Ok(Event::Delete(object))) => receiver.deleted(&object),
        }
        retry = Retry(RETRY_FIRST);
    }
}

/// Doubles from [`RETRY_FIRST`] to [`RETRY_MAX`]: short at first, because a server that starts is soon there.
struct Retry(Duration);

impl Retry {
    fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(RETRY_MAX);
        wait
    }
}

fn log(kind: &str, error: &watcher::Error) {
    match error {
        // A watch that is too old, or cut by a restart of the server, mends itself.
        watcher::Error::WatchError(_) | watcher::Error::WatchFailed(_) => {
            tracing::debug!(kind, %error, "watch ended; starting again");
        }
        _ => tracing::warn!(kind, %error, "list or watch failed; trying again"),
    }
}

#[cfg(test)]
mod tests {
    use kube::api::{ObjectList, WatchEvent};

    use super::*;

    #[test]
    fn objects_stay_as_they_were_sent() {
        let object =
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","resourceVersion":"7"},"data":{"x":"1"}}"#;
        let list = format!(
            r#"{{"kind":"ConfigMapList","apiVersion":"v1","metadata":{{"resourceVersion":"9"}},"items":[{object}]}}"#
        );
        let list: ObjectList<Raw> = serde_json::from_str(&list).unwrap();
        assert_eq!((list.items[0].text(), list.items[0].meta().name.as_deref()), (object, Some("a")));
        let event = format!(r#"{{"type":"MODIFIED","object":{object}}}"#);
        let WatchEvent::Modified(seen) = serde_json::from_str(&event).unwrap() else { panic!("{event}") };
        let seen: Raw = seen;
        assert_eq!(seen.text(), object);
    }
}
