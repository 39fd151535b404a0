//! LIST: consistent, in pages when asked to, stitched from the stored bytes where no object has to be looked into.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use mussel_api::object;
use mussel_store::{Freshness, ReadError, Revision};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::call::Call;
use super::options::{ListOptions, Match};
use super::select::Selection;
use super::{convert, key, negotiate};
use crate::encryption::Snapshot;
use crate::handler::{Body, Response};
use crate::status::Status;
use crate::{Context, custom};

/// How long a read waits for a revision that this member has not seen yet; upstream's watch cache waits as long.
const REACH_TIMEOUT: Duration = Duration::from_secs(3);

const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can \
    start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder \
    of the results. Continuing with the provided token results in an inconsistent list - objects that were created, \
    modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// How long a list may be read page by page at its first page's revision; upstream's interval of compaction. A quiet
/// cluster could keep the revision for days, but clients are to meet the end of it here as they would elsewhere.
const PAGES_MAX: Duration = Duration::from_secs(300);

/// Where the next page starts. `rv` is -1 in a token that goes on with whatever is newest.
#[derive(Serialize, Deserialize)]
struct Continue {
    rv: i64,
    start: String,
    /// When the first page was read, in seconds since 1970.
    #[serde(default)]
    since: i64,
}

pub async fn list(call: &Call<'_>) -> Result<Response, Status> {
    let options = ListOptions::of(&call.request.query, false)?;
    let selection = Selection::new(&call.resource, &options)?;
    let prefix = key::prefix(&call.stored_as, &call.namespace);
    let (snapshot, start, since) = start(call, &options, &prefix).await?;

    // A field selector on a name in one namespace is a lookup.
    if let Some(name) = options.name.as_deref().filter(|_| !call.resource.namespaced || !call.namespace.is_empty()) {
        let mut page = Page::default();
        if let Some(versioned) = snapshot.get(&call.key(name)) {
            let stored = object::decode(&versioned.value()?, versioned.revision.0).map_err(Status::internal)?;
            drop(versioned);
            let served = match &call.resource.custom {
                Some(custom) => custom::convert::served(call.context, custom, vec![stored]).await?.remove(0),
                None => convert::from_storage(&call.resource, stored),
            };
            if selection.matches(&served) {
                page.objects.push(served);
            }
        }
        return render(call, &snapshot, page);
    }

    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    if call.asks() {
        return asking(call, &snapshot, &selection, &prefix, &start, limit, since).await;
    }
    let plain = call.form.is_plain() && all_as_stored(call, &snapshot, &prefix, &start)?;
    let mut page = Page::default();
    let mut taken = 0_usize;
    let mut body = Vec::new();
    let mut next = None;
    for (found, versioned) in snapshot.range(&prefix, &start) {
        if taken == limit {
            next = Some(found.clone());
            break;
        }
        if selection.is_everything() && plain {
            if taken > 0 {
                body.push(b',');
            }
            push_item_of(call, &mut body, &versioned.value()?, versioned.revision.0);
            taken += 1;
            continue;
        }
        if !selection.may_match(found, &versioned.value()?, call.resource.namespaced) {
            continue;
        }
        if plain && selection.is_decided_by_metadata() {
            if taken > 0 {
                body.push(b',');
            }
            push_item_of(call, &mut body, &versioned.value()?, versioned.revision.0);
            taken += 1;
            continue;
        }
        let object = call.current(&versioned)?;
        if selection.matches(&object) {
            taken += 1;
            page.objects.push(object);
        }
    }
    if let Some(next) = next {
        let rest = next.strip_prefix(&prefix[..]).unwrap_or_default();
        page.next = Some(encode_continue(snapshot.revision().0, rest, since)?);
        if options.selects_all() {
            page.remaining = Some(snapshot.range(&prefix, &next).count());
        }
    }
    if plain && (selection.is_everything() || selection.is_decided_by_metadata()) {
        return stitched(call, &snapshot, &page, &body);
    }
    render(call, &snapshot, page)
}

/// Whether every stored object is what is served. Only custom kinds, whose schema may have changed, have to look.
fn all_as_stored(call: &Call<'_>, snapshot: &Snapshot, prefix: &[u8], start: &[u8]) -> Result<bool, Status> {
    if call.resource.custom.is_none() {
        return Ok(convert::needed(&call.resource).is_none());
    }
    for (_, versioned) in snapshot.range(prefix, start) {
        if !call.serves_stored(&versioned.value()?, versioned.revision) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The list of a kind that has a conversion webhook: it is asked once, with all objects that may be wanted.
async fn asking(
    call: &Call<'_>,
    snapshot: &Snapshot,
    selection: &Selection,
    prefix: &[u8],
    start: &[u8],
    limit: usize,
    since: i64,
) -> Result<Response, Status> {
    let Some(custom) = &call.resource.custom else { return Err(Status::internal("only custom kinds have webhooks")) };
    let exact = selection.is_everything() || selection.is_decided_by_metadata();
    let mut next = None;
    let mut keys = Vec::new();
    let mut stored = Vec::new();
    for (found, versioned) in snapshot.range(prefix, start) {
        if exact && stored.len() == limit {
            next = Some(found.clone());
            break;
        }
        if selection.may_match(found, &versioned.value()?, call.resource.namespaced) {
            keys.push(found.clone());
            stored.push(object::decode(&versioned.value()?, versioned.revision.0).map_err(Status::internal)?);
        }
    }
    let mut page = Page::default();
    let served = custom::convert::served(call.context, custom, stored).await?;
    for (key, object) in keys.into_iter().zip(served) {
        if !exact && !selection.matches(&object) {
            continue;
        }
        if page.objects.len() == limit {
            next = Some(key);
            break;
        }
        page.objects.push(object);
    }
    if let Some(next) = next {
        let rest = next.strip_prefix(prefix).unwrap_or_default();
        page.next = Some(encode_continue(snapshot.revision().0, rest, since)?);
        if selection.is_everything() {
            page.remaining = Some(snapshot.range(prefix, &next).count());
        }
    }
    render(call, snapshot, page)
}

#[derive(Default)]
struct Page {
    objects: Vec<Value>,
    next: Option<String>,
    remaining: Option<usize>,
}

impl Page {
    fn metadata(&self, snapshot: &Snapshot) -> Map<String, Value> {
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".to_owned(), snapshot.revision().0.to_string().into());
        if let Some(next) = &self.next {
            metadata.insert("continue".to_owned(), next.as_str().into());
        }
        if let Some(remaining) = self.remaining {
            metadata.insert("remainingItemCount".to_owned(), remaining.into());
        }
        metadata
    }
}

fn render(call: &Call<'_>, snapshot: &Snapshot, page: Page) -> Result<Response, Status> {
    let metadata = page.metadata(snapshot);
    let list = negotiate::shape_list(&call.resource, call.form, metadata, page.objects);
    negotiate::respond(StatusCode::OK, call.form, &list)
}

fn stitched(call: &Call<'_>, snapshot: &Snapshot, page: &Page, items: &[u8]) -> Result<Response, Status> {
    let metadata = serde_json::to_string(&page.metadata(snapshot)).map_err(Status::internal)?;
    let mut body = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        call.resource.list_kind(),
        call.resource.api_version()
    )
    .into_bytes();
    body.extend_from_slice(items);
    body.extend_from_slice(b"]}");
    Ok(negotiate::response(StatusCode::OK, "application/json", Body::from(body)))
}

/// Items of a list carry no `apiVersion` and `kind`: the list's own says it.
fn push_item_of(call: &Call<'_>, out: &mut Vec<u8>, stored: &[u8], revision: u64) {
    if call.resource.custom.is_some() {
        // Custom objects keep theirs, as upstream's untyped ones do.
        out.extend_from_slice(&object::with_resource_version(stored, revision));
    } else {
        push_item(out, stored, revision);
    }
}

fn push_item(out: &mut Vec<u8>, stored: &[u8], revision: u64) {
    const MARK: &[u8] = b",\"metadata\":{";
    let item = object::with_resource_version(stored, revision);
    match item.windows(MARK.len()).position(|window| window == MARK) {
        Some(at) => {
            out.push(b'{');
            out.extend_from_slice(&item[at + 1..]);
        }
        None => out.extend_from_slice(&item),
    }
}

/// The snapshot to read from, the key to start at, and when the first page was read.
type Start = (Snapshot, Vec<u8>, i64);

async fn start(call: &Call<'_>, options: &ListOptions, prefix: &[u8]) -> Result<Start, Status> {
    let store = &call.context.store;
    if let Some(token) = &options.continue_token {
        let token = decode_continue(token)?;
        let start = [prefix, token.start.as_bytes()].concat();
        let Ok(revision) = u64::try_from(token.rv) else {
            return Ok((store.snapshot(Freshness::Linearizable).await?, start, now_seconds()));
        };
        if token.is_expired(now_seconds()) {
            return Err(continue_expired(token)?);
        }
        return match store.snapshot_at(Revision(revision)) {
            Ok(snapshot) => Ok((snapshot, start, token.since)),
            Err(ReadError::Compacted { .. }) => Err(continue_expired(token)?),
            Err(error) => Err(error.into()),
        };
    }
    let start = prefix.to_vec();
    let snapshot = match (options.resource_version, options.matching) {
        (None, _) => store.snapshot(Freshness::Linearizable).await?,
        (Some(0), _) => store.snapshot(Freshness::Local).await?,
        (Some(revision), Some(Match::Exact)) => exactly(call.context, revision)?,
        // Upstream's legacy rule: a limit makes the match exact.
        (Some(revision), None) if options.limit > 0 => exactly(call.context, revision)?,
        (Some(revision), _) => {
            reach(call.context, Revision(revision)).await?;
            store.snapshot(Freshness::Local).await?
        }
    };
    Ok((snapshot, start, now_seconds()))
}

fn exactly(context: &Context, revision: u64) -> Result<Snapshot, Status> {
    context.store.snapshot_at(Revision(revision)).map_err(|error| match error {
        ReadError::Compacted { .. } => Status::expired("The resourceVersion for the provided list is too old."),
        error => error.into(),
    })
}

/// Waits until this member has `revision`.
pub async fn reach(context: &Context, revision: Revision) -> Result<(), Status> {
    if context.store.revision() >= revision {
        return Ok(());
    }
    match tokio::time::timeout(REACH_TIMEOUT, context.store.wait_for(revision)).await {
        Ok(reached) => Ok(reached?),
        Err(_) => Err(Status::too_large_resource_version(revision.0, context.store.revision().0)),
    }
}

impl Continue {
    fn is_expired(&self, now: i64) -> bool {
        now.saturating_sub(self.since).unsigned_abs() > PAGES_MAX.as_secs()
    }
}

fn now_seconds() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn encode_continue(revision: u64, start: &[u8], since: i64) -> Result<String, Status> {
    let rv = i64::try_from(revision).map_err(Status::internal)?;
    let token = Continue { rv, start: String::from_utf8_lossy(start).into_owned(), since };
    Ok(URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).map_err(Status::internal)?))
}

fn decode_continue(token: &str) -> Result<Continue, Status> {
    let bytes = URL_SAFE_NO_PAD
        .decode(token.trim_end_matches('='))
        .map_err(|error| Status::bad_request(format!("continue key is not valid: {error}")))?;
    let token: Continue = serde_json::from_slice(&bytes)
        .map_err(|error| Status::bad_request(format!("continue key is not valid: {error}")))?;
    if token.start.split('/').any(|part| part == "..") {
        return Err(Status::bad_request(format!("continue key is not valid: {}", token.start)));
    }
    Ok(token)
}

/// 410 with a token that goes on, inconsistently, from where the old one was.
fn continue_expired(token: Continue) -> Result<Status, Status> {
    let token = Continue { rv: -1, ..token };
    let token = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).map_err(Status::internal)?);
    Ok(Status::expired(CONTINUE_EXPIRED).with_continue(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_served_for_a_while_and_then_go_on_inconsistently() {
        let text = encode_continue(7, b"default/a", 1000).unwrap();
        let token = decode_continue(&text).unwrap();
        assert_eq!((token.rv, token.start.as_str()), (7, "default/a"));
        assert!(!token.is_expired(1300) && token.is_expired(1301));
        let status = continue_expired(token).unwrap();
        assert_eq!((status.code, &*status.reason), (410, "Expired"));
        let next = status.to_value()["metadata"]["continue"].as_str().unwrap().to_owned();
        let next = decode_continue(&next).unwrap();
        assert_eq!((next.rv, next.start.as_str()), (-1, "default/a"));
        assert!(decode_continue("bm90IGpzb24").is_err());
    }
}
