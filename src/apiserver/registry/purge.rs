//! Deletion of every object of a resource, for those whose definition goes. Nobody is asked: not
//! admission, and no conversion webhook, which may be gone already.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::HeaderMap;
use mussel_api::resource::Resource;
use mussel_store::{Freshness, Revision};

use super::call::Call;
use super::delete::remove;
use super::options::DeleteOptions;
use super::{Registry, key};
use crate::handler::{Query, Request, RequestInfo, UserInfo, Warnings};
use crate::status::Status;

/// Deletions under way at a time; the store writes them together.
const AT_ONCE: usize = 64;

/// Deletes what there is; finalizers are respected. Returns how many objects are left, and when that was.
///
/// # Errors
/// When an object can be neither removed nor marked.
pub async fn purge(registry: &Registry, row: &Arc<Resource>) -> Result<(usize, Revision), Status> {
    let request = Request {
        info: RequestInfo {
            verb: "deletecollection".to_owned(),
            is_resource: true,
            api_prefix: "apis".to_owned(),
            group: row.group.to_string(),
            version: row.version.to_string(),
            resource: row.plural.to_string(),
            ..RequestInfo::default()
        },
        user: UserInfo::new("system:apiserver", &["system:masters"]),
        query: Query::default(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        warnings: Warnings::default(),
    };
    let prefix = key::prefix(&row.qualified(), "");
    let snapshot = registry.context.store.snapshot(Freshness::Linearizable).await?;
    let doomed: Vec<(String, String)> = snapshot
        .range(&prefix, &prefix)
        .filter_map(|(key, _)| key::split(key, row.namespaced))
        .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
        .collect();
    let deletions = futures::stream::iter(doomed).map(|(namespace, name)| {
        let call = Call::new(registry, Arc::clone(row), &request);
        async move {
            let mut call = call?;
            call.namespace = namespace;
            call.raw = true;
            match remove(&call, &name, &DeleteOptions::default()).await {
                Err(status) if status.reason != "NotFound" => Err(status),
                _ => Ok(()),
            }
        }
    });
    let outcomes: Vec<Result<(), Status>> = deletions.buffer_unordered(AT_ONCE).collect().await;
    outcomes.into_iter().collect::<Result<(), Status>>()?;
    let snapshot = registry.context.store.snapshot(Freshness::Linearizable).await?;
    Ok((snapshot.range(&prefix, &prefix).count(), snapshot.revision()))
}
