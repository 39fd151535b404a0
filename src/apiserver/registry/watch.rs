//! WATCH: the initial state when asked for, then every change, with bookmarks, until the client or its timeout ends it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use http::StatusCode;
use mussel_api::object;
use mussel_api::resource::Resource;
use mussel_store::{Commit, Event, Freshness, Revision, WatchError};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::call::Call;
use super::negotiate::{self, Form, Shape};
use super::options::ListOptions;
use super::select::Selection;
use super::shared::{Shared, SharedEvents};
use super::{convert, key};
use crate::encryption::{Snapshot, StorageWatchError, Watch};
use crate::handler::{Body, Response};
use crate::status::Status;
use crate::{Context, custom};

/// Clients may count on a bookmark about this often.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);

/// How long a watch without a timeout of its own lives, at least; at most twice as long, so that they do not all end at once.
const TIMEOUT_SECONDS_MIN: u64 = 1800;

/// Objects looked at between two writes while the initial state is sent.
const INITIAL_BATCH: usize = 256;

/// Bytes of events put together before they are written.
const CHUNK_BYTES: usize = 64 * 1024;

const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

pub async fn watch(call: &Call<'_>) -> Result<Response, Status> {
    let options = ListOptions::of(&call.request.query, true)?;
    let selection = Selection::new(&call.resource, &options)?;
    let prefix = match &options.name {
        // Also the prefix of longer names; the selection sorts those out.
        Some(name) if !call.resource.namespaced || !call.namespace.is_empty() => call.key(name),
        _ => key::prefix(&call.stored_as, &call.namespace),
    };
    let store = &call.context.store;
    let initial = match (options.send_initial_events, options.resource_version) {
        (Some(true), Some(revision)) if revision > 0 => {
            super::list::reach(call.context, Revision(revision)).await?;
            Some(store.snapshot(Freshness::Local).await?)
        }
        (Some(true) | None, Some(0)) => Some(store.snapshot(Freshness::Local).await?),
        (Some(true) | None, None) => Some(store.snapshot(Freshness::Linearizable).await?),
        _ => None,
    };
    let after = match (&initial, options.resource_version) {
        (Some(snapshot), _) => snapshot.revision(),
        (None, Some(revision)) if revision > 0 => Revision(revision),
        (None, _) => store.snapshot(Freshness::Linearizable).await?.revision(),
    };
    let watch = match store.watch(prefix.clone(), after) {
        Ok(watch) => watch,
        // Once a watch is accepted, its errors are events.
        Err(error @ WatchError::Compacted { .. }) => return Ok(error_stream(&error.into())),
        Err(error) => return Err(error.into()),
    };
    let seconds =
        options.timeout_seconds.unwrap_or_else(|| rand::random_range(TIMEOUT_SECONDS_MIN..2 * TIMEOUT_SECONDS_MIN));
    let now = Instant::now();
    let mut changes = call.context.catalog.changes();
    // The definition may have changed since the request came.
    changes.mark_changed();
    let watcher = Watcher {
        context: Arc::clone(call.context),
        events: Arc::clone(&call.registry.events),
        resource: Arc::clone(&call.resource),
        converts: convert::needed(&call.resource).is_some(),
        asks: call.asks(),
        changes,
        form: call.form,
        selection,
        watch,
        initial: initial.map(|snapshot| Initial { snapshot, cursor: prefix.to_vec(), prefix }),
        ends_initial_events: options.send_initial_events == Some(true) && options.bookmarks,
        bookmarks: options.bookmarks,
        last: after.0,
        bookmarked: after.0,
        columns_sent: false,
        pending: VecDeque::new(),
        deadline: now + Duration::from_secs(seconds),
        bookmark_at: now + BOOKMARK_PERIOD,
        ended: false,
    };
    Ok(negotiate::response(StatusCode::OK, "application/json", Body::from_stream(watcher.stream())))
}

struct Initial {
    snapshot: Snapshot,
    cursor: Vec<u8>,
    prefix: Bytes,
}

struct Watcher {
    context: Arc<Context>,
    events: Arc<SharedEvents>,
    resource: Arc<Resource>,
    converts: bool,
    /// What is stored may be shown only after a webhook was asked.
    asks: bool,
    /// Of the catalog: a custom kind whose definition changes ends its watches.
    changes: tokio::sync::watch::Receiver<u64>,
    form: Form,
    selection: Selection,
    watch: Watch,
    initial: Option<Initial>,
    ends_initial_events: bool,
    bookmarks: bool,
    /// The newest revision the client has seen an event of.
    last: u64,
    bookmarked: u64,
    columns_sent: bool,
    /// Encoded events that are not written yet.
    pending: VecDeque<Bytes>,
    deadline: Instant,
    bookmark_at: Instant,
    /// The client was told of an error: nothing follows.
    ended: bool,
}

enum Wake {
    Commit(Commit),
    Bookmark,
    /// What the client is told before the end.
    Error(Status),
    End,
}

impl Watcher {
    fn stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        futures::stream::unfold(self, |mut watcher| async move {
            let chunk = watcher.next_chunk().await?;
            Some((Ok(chunk), watcher))
        })
    }

    /// `None` ends the watch.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.take_pending() {
                return Some(chunk);
            }
            if self.ended {
                return None;
            }
            if self.initial.is_some() {
                if let Err(status) = self.initial_batch().await {
                    self.push_error(&status);
                }
                continue;
            }
            let wake = tokio::select! {
                biased;
                () = self.context.stop.cancelled() => Wake::End,
                // Cancel-safe by the store's contract.
                commit = self.watch.next() => match commit {
                    Ok(commit) => Wake::Commit(commit),
                    Err(StorageWatchError::Store(error)) => {
                        tracing::debug!(resource = %self.resource.plural, %error, "watch ended");
                        Wake::End
                    }
                    Err(StorageWatchError::Transform(error)) => Wake::Error(error.into()),
                },
                // Cancel-safe: a change that was not seen stays unseen.
                changed = self.changes.changed(), if self.resource.custom.is_some() => {
                    if changed.is_ok() && self.is_in_force() { continue } else { Wake::End }
                }
                () = tokio::time::sleep_until(self.deadline) => Wake::End,
                () = tokio::time::sleep_until(self.bookmark_at), if self.bookmarks => Wake::Bookmark,
            };
            match wake {
                Wake::Commit(commit) => {
                    if let Err(status) = self.commit(&commit).await {
                        self.push_error(&status);
                    }
                }
                Wake::Bookmark => {
                    self.bookmark_at = Instant::now() + BOOKMARK_PERIOD;
                    let revision = self.watch.progress().0.max(self.last);
                    if revision > self.bookmarked {
                        self.push_bookmark(revision, false);
                    }
                }
                Wake::Error(status) => {
                    self.push_error(&status);
                }
                Wake::End => return None,
            }
        }
    }

    /// One chunk of as many events as fit; a single event is passed on without a copy.
    fn take_pending(&mut self) -> Option<Bytes> {
        let first = self.pending.pop_front()?;
        let Some(second) = self.pending.front() else { return Some(first) };
        if first.len() + second.len() > CHUNK_BYTES {
            return Some(first);
        }
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES.min(first.len() * 4));
        chunk.put(first);
        while let Some(next) = self.pending.front().filter(|next| chunk.len() + next.len() <= CHUNK_BYTES) {
            chunk.put_slice(next);
            self.pending.pop_front();
        }
        Some(chunk.freeze())
    }

    /// Adds some of the initial state.
    ///
    /// # Errors
    /// When an object cannot be read; the watch ends with it.
    async fn initial_batch(&mut self) -> Result<(), Status> {
        let Some(mut initial) = self.initial.take() else { return Ok(()) };
        let mut next = None;
        let mut lines = Vec::new();
        for (seen, (found, versioned)) in initial.snapshot.range(&initial.prefix, &initial.cursor).enumerate() {
            if seen == INITIAL_BATCH {
                next = Some(found.to_vec());
                break;
            }
            let stored = versioned.value()?;
            if self.selection.may_match(found, &stored, self.resource.namespaced) {
                lines.push((stored, versioned.revision.0));
            }
        }
        let mut unconverted = Vec::new();
        for (stored, revision) in lines {
            let as_stored = self.serves_stored(&stored, revision);
            if self.form.is_plain() && as_stored && self.selection.is_decided_by_metadata() {
                self.pending.push_back(line("ADDED", &object::with_resource_version(&stored, revision)));
                continue;
            }
            let Ok(object) = object::decode(&stored, revision) else { continue };
            if self.asks && !as_stored {
                unconverted.push(object);
                continue;
            }
            let object = if as_stored { object } else { self.served(object) };
            if self.selection.matches(&object) {
                self.push_value("ADDED", object);
            }
        }
        if let Some(custom) = self.resource.custom.clone().filter(|_| !unconverted.is_empty()) {
            for object in custom::convert::served(&self.context, &custom, unconverted).await? {
                if self.selection.matches(&object) {
                    self.push_value("ADDED", object);
                }
            }
        }
        match next {
            Some(cursor) => {
                initial.cursor = cursor;
                self.initial = Some(initial);
            }
            None if self.ends_initial_events => self.push_bookmark(self.last, true),
            None => {}
        }
        Ok(())
    }

    fn push_error(&mut self, status: &Status) {
        self.ended = true;
        self.pending.push_back(line("ERROR", status.to_value().to_string().as_bytes()));
    }

    /// # Errors
    /// When a conversion webhook fails; the watch ends with it.
    async fn commit(&mut self, commit: &Commit) -> Result<(), Status> {
        for event in commit.events.iter() {
            self.last = commit.revision.0;
            if self.asks {
                self.event_asking(commit.revision.0, event).await?;
            } else {
                self.event(commit.revision.0, event);
            }
        }
        Ok(())
    }

    /// Whether the definition of a custom kind is still the one that the watch began with.
    fn is_in_force(&self) -> bool {
        let Some(custom) = &self.resource.custom else { return true };
        let customs = self.context.catalog.customs();
        let entry = customs.entries().get(&custom.definition.name);
        let now = entry.and_then(|entry| entry.definition.as_ref());
        now.is_some_and(|now| now.fingerprint == custom.definition.fingerprint)
    }

    fn serves_stored(&self, stored: &[u8], revision: u64) -> bool {
        match &self.resource.custom {
            Some(custom) => custom.is_current(stored, revision),
            None => !self.converts,
        }
    }

    /// A stored object as this watch shows it; for kinds that ask nobody.
    fn served(&self, object: Value) -> Value {
        match &self.resource.custom {
            Some(custom) => custom::convert::served_now(custom, object),
            None => convert::from_storage(&self.resource, object),
        }
    }

    /// As [`Self::event`], by way of the webhook.
    async fn event_asking(&mut self, revision: u64, event: &Event) -> Result<(), Status> {
        let Some(custom) = self.resource.custom.clone() else { return Ok(()) };
        let decode = |stored: &Bytes, revision: u64| object::decode(stored, revision).map_err(Status::internal);
        let mut shown = Vec::new();
        // What it was is shown at the revision of the event.
        for stored in [event.previous.as_ref().map(|previous| &previous.value), event.value.as_ref()] {
            let wanted = stored.filter(|stored| self.selection.may_match(&event.key, stored, self.resource.namespaced));
            let object = match wanted {
                Some(stored) => {
                    custom::convert::served(&self.context, &custom, vec![decode(stored, revision)?]).await?.pop()
                }
                None => None,
            };
            shown.push(object.filter(|object| self.selection.matches(object)));
        }
        let (now, before) = (shown.pop().flatten(), shown.pop().flatten());
        match (before, now) {
            (None, Some(now)) => self.push_value("ADDED", now),
            (Some(_), Some(now)) => self.push_value("MODIFIED", now),
            (Some(before), None) => self.push_value("DELETED", before),
            (None, None) => {}
        }
        Ok(())
    }

    fn event(&mut self, revision: u64, event: &Event) {
        let shared = self.events.of(revision, event);
        let now = self.selects(event, event.value.as_ref(), || shared.object());
        let before = self.selects(event, event.previous.as_ref().map(|p| &p.value), || shared.previous());
        let (kind, gone) = match (before, now) {
            (false, true) => ("ADDED", false),
            (true, true) => ("MODIFIED", false),
            // What it was, at the revision at which it went out of sight.
            (true, false) => ("DELETED", true),
            (false, false) => return,
        };
        let stored = if gone {
            event.previous.as_ref().map(|p| (&p.value, p.revision.0))
        } else {
            event.value.as_ref().map(|value| (value, revision))
        };
        let as_stored = stored.is_some_and(|(stored, revision)| self.serves_stored(stored, revision));
        if self.form.is_plain() && as_stored {
            if let Some(bytes) = shared.line(kind, gone) {
                self.pending.push_back(bytes);
            }
            return;
        }
        let object = if gone { shared.gone() } else { shared.object().cloned() };
        if let Some(object) = object {
            let object = if as_stored { object } else { self.served(object) };
            self.push_value(kind, object);
        }
    }

    fn selects<'v>(&self, event: &Event, stored: Option<&Bytes>, decoded: impl Fn() -> Option<&'v Value>) -> bool {
        let Some(stored) = stored else { return false };
        if self.selection.is_everything() {
            return true;
        }
        if !self.selection.may_match(&event.key, stored, self.resource.namespaced) {
            return false;
        }
        if self.selection.is_decided_by_metadata() {
            return true;
        }
        let Some(object) = decoded() else { return false };
        if self.converts || self.resource.custom.is_some() {
            return self.selection.matches(&self.served(object.clone()));
        }
        self.selection.matches(object)
    }

    fn push_value(&mut self, kind: &str, object: Value) {
        let object = match self.form.shape {
            Shape::Object => object,
            Shape::Metadata => negotiate::partial(&object),
            Shape::Table(include) => {
                let columns = !std::mem::replace(&mut self.columns_sent, true);
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                negotiate::table_of(&self.resource, metadata, std::slice::from_ref(&object), include, columns)
            }
        };
        if let Ok(bytes) = serde_json::to_vec(&object) {
            self.pending.push_back(line(kind, &bytes));
        }
    }

    fn push_bookmark(&mut self, revision: u64, ends_initial_events: bool) {
        self.bookmarked = revision;
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if ends_initial_events {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = match self.form.shape {
            Shape::Object => {
                json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata})
            }
            Shape::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Shape::Table(_) => {
                let object =
                    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision.to_string()},
                    "columnDefinitions": null, "rows": [{"cells": [], "object": object}]})
            }
        };
        self.pending.push_back(line("BOOKMARK", object.to_string().as_bytes()));
    }
}

/// One event as clients read it.
pub fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

fn error_stream(status: &Status) -> Response {
    let body = line("ERROR", status.to_value().to_string().as_bytes());
    negotiate::response(StatusCode::OK, "application/json", Body::from(body))
}

impl Shared {
    /// The event as a line, encoded at the first call.
    fn line(&self, kind: &'static str, gone: bool) -> Option<Bytes> {
        self.encoded(kind, |event, revision| {
            let stored = if gone { &event.previous.as_ref()?.value } else { event.value.as_ref()? };
            Some(line(kind, &object::with_resource_version(stored, revision)))
        })
    }
}
