//! `/openapi/v2` and `/openapi/v3`: documents are built when first asked for, and kept compressed only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mussel_api::openapi;
use mussel_api::resource::Resource;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use crate::Context;
use crate::aggregator::documents::{self, Spec};
use crate::handler::{Body, Response};
use crate::request::Query;
use crate::resource_metrics;
use crate::routes::{json_response, with_type};
use crate::status::Status;

type Rows = Vec<Arc<Resource>>;

/// A document is named by its hash forever: as long as browsers and clients like to keep it.
const FOREVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// kubectl asks for the v2 document in this form only.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// Under which that form is kept.
const V2_PROTOBUF: &str = "v2 as protobuf";

/// The documents built so far.
#[derive(Default)]
pub struct OpenApi {
    /// By path and hash, so that a change of the catalog makes a new entry.
    built: Mutex<HashMap<String, (String, Bytes)>>,
    /// The v2 documents of all that is built in: what CRDs bring is put into a copy.
    v2: OnceCell<Bytes>,
    v2_protobuf: OnceCell<Bytes>,
    /// Names of the definitions in them.
    v2_names: Arc<OnceLock<HashSet<String>>>,
}

impl OpenApi {
    /// Answers what comes after `/openapi/`; `None` when it names nothing.
    ///
    /// # Errors
    /// 406 when the client takes no JSON.
    pub async fn answer(
        &self,
        context: &Context,
        rest: &str,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Option<Response>, Status> {
        let mut rows = context.catalog.all();
        // What is neither built in nor a CRD's has no schema.
        rows.retain(|row| {
            !resource_metrics::is_metrics(row) && context.aggregator.elsewhere(&row.group, &row.version).is_none()
        });
        if rest == "v3" {
            let mut index = index(&rows);
            for spec in documents::v3_index(context).await {
                if let Some(url) = spec.v3_url {
                    index["paths"][&spec.service.path()[1..]] = json!({"serverRelativeURL": url});
                }
            }
            return Ok(Some(json_response(&index)));
        }
        let protobuf = rest == "v2" && wants_protobuf(headers);
        if !protobuf && !takes_json(headers) {
            return Err(Status::not_acceptable(&["application/json"]));
        }
        let path = match rest {
            "v2" if protobuf => V2_PROTOBUF,
            "v2" => "v2",
            _ => match rest.strip_prefix("v3/") {
                Some(path) if rows.iter().any(|row| path_of(row) == path) => path,
                _ => return Ok(None),
            },
        };
        let extensions = if rest == "v2" { documents::v2(context).await } else { Vec::new() };
        let hash = if rest == "v2" {
            hash_with(&rows, &extensions)
        } else {
            hash(rows.iter().filter(|row| path_of(row) == path))
        };
        let asked = query.get("hash");
        if asked.is_some_and(|asked| asked != hash) {
            let location = format!("/openapi/v3/{path}?hash={hash}");
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            response
                .headers_mut()
                .insert(header::LOCATION, HeaderValue::from_str(&location).map_err(Status::internal)?);
            return Ok(Some(response));
        }
        let etag = format!("\"{hash}\"");
        let mut response = if headers.get(header::IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == etag.as_bytes()) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            self.document(path, &hash, &rows, extensions, headers).await?
        };
        let out = response.headers_mut();
        out.insert(header::ETAG, HeaderValue::from_str(&etag).map_err(Status::internal)?);
        out.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
        if asked.is_some() {
            out.insert(header::CACHE_CONTROL, FOREVER);
        }
        Ok(Some(response))
    }

    async fn document(
        &self,
        path: &str,
        hash: &str,
        rows: &Rows,
        extensions: Vec<Spec>,
        headers: &HeaderMap,
    ) -> Result<Response, Status> {
        let known = self.built.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        let packed = match known {
            Some((built_for, packed)) if built_for == hash => packed,
            _ => {
                let packed = self.build(path, rows, extensions).await?;
                let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
                // Documents of groups that are no longer served go.
                built.retain(|path, _| !path.starts_with("apis/") || rows.iter().any(|row| path_of(row) == *path));
                built.insert(path.to_owned(), (hash.to_owned(), packed.clone()));
                packed
            }
        };
        let kind = HeaderValue::from_static(if path == V2_PROTOBUF { PROTOBUF } else { "application/json" });
        let takes_gzip =
            headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("gzip"));
        if takes_gzip {
            let mut response = with_type(Body::from(packed), kind);
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            return Ok(response);
        }
        let plain = unpack(&packed).map_err(Status::internal)?;
        Ok(with_type(Body::from(plain), kind))
    }
}

impl OpenApi {
    /// The document at `path`, compressed.
    async fn build(&self, path: &str, rows: &Rows, extensions: Vec<Spec>) -> Result<Bytes, Status> {
        let customs: Rows = rows.iter().filter(|row| row.custom.is_some()).cloned().collect();
        if !matches!(path, "v2" | V2_PROTOBUF) {
            let of_path: Rows = customs.into_iter().filter(|row| path_of(row) == path).collect();
            let path = path.to_owned();
            return in_background(
                move || {
                    if of_path.is_empty() { builtin(&path) } else { with(&of_path, openapi::v3_custom) }
                },
            )
            .await;
        }
        let base = if path == "v2" { &self.v2 } else { &self.v2_protobuf };
        let is_json = path == "v2";
        let make = move || if is_json { openapi::v2() } else { openapi::v2_protobuf() };
        let base = base.get_or_try_init(|| in_background(make)).await?.clone();
        let extensions: Vec<Spec> = extensions.into_iter().filter(|spec| spec.v2.is_some()).collect();
        if customs.is_empty() && extensions.is_empty() {
            return Ok(base);
        }
        let names = Arc::clone(&self.v2_names);
        in_background(move || {
            let mut plain = unpack(&base).unwrap_or_default();
            if !customs.is_empty() {
                plain = if is_json {
                    with(&customs, |rows, custom| openapi::v2_with(&plain, rows, custom))
                } else {
                    with(&customs, |rows, custom| openapi::v2_protobuf_with(&plain, rows, custom))
                };
            }
            let names = names.get_or_init(openapi::v2_definition_names);
            for spec in &extensions {
                let Some(document) = &spec.v2 else { continue };
                let part = openapi::v2_part(document, &spec.service.path(), |name| names.contains(name));
                plain = if is_json {
                    openapi::v2_merged(&plain, &part)
                } else {
                    openapi::v2_protobuf_merged(&plain, &part)
                };
            }
            plain
        })
        .await
    }
}

/// Calls `make` with the rows and the schemas of their kinds.
fn with(rows: &Rows, make: impl FnOnce(&[&Resource], &BTreeMap<String, Value>) -> Vec<u8>) -> Vec<u8> {
    let schema = |row: &Arc<Resource>| {
        let custom = row.custom.as_ref()?;
        let mut definition = openapi::custom_definition(&custom.definition.schema(custom.index));
        let selectable = &custom.version().selectable;
        if !selectable.is_empty() {
            let fields = selectable.iter().map(|path| json!({"fieldPath": path.trim_start_matches('.')}));
            definition["x-kubernetes-selectable-fields"] = fields.collect();
        }
        Some((row.schema.to_string(), definition))
    };
    let custom: BTreeMap<String, Value> = rows.iter().filter_map(schema).collect();
    let rows: Vec<&Resource> = rows.iter().map(AsRef::as_ref).collect();
    make(&rows, &custom)
}

async fn in_background(make: impl FnOnce() -> Vec<u8> + Send + 'static) -> Result<Bytes, Status> {
    let work = tokio::task::spawn_blocking(move || pack(&make()));
    Ok(Bytes::from(work.await.map_err(Status::internal)?.map_err(Status::internal)?))
}

fn path_of(row: &Resource) -> String {
    openapi::v3_path(&row.group, &row.version)
}

fn index(rows: &Rows) -> Value {
    let mut by_path: BTreeMap<String, Vec<&Arc<Resource>>> = BTreeMap::new();
    for row in rows {
        by_path.entry(path_of(row)).or_default().push(row);
    }
    let url = |path: &str, rows: Vec<&Arc<Resource>>| format!("/openapi/v3/{path}?hash={}", hash(rows.into_iter()));
    let paths: Map<String, Value> = by_path
        .into_iter()
        .map(|(path, rows)| {
            let url = url(&path, rows);
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// What the documents are made of, hashed: it takes no document to name one.
fn hash<'a>(rows: impl Iterator<Item = &'a Arc<Resource>>) -> String {
    static BUILTIN: OnceLock<String> = OnceLock::new();
    let mut sum = Sha256::new();
    sum.update(BUILTIN.get_or_init(openapi::fingerprint));
    for row in rows {
        sum.update(format!("\n{} {} {} {:?}", row.api_version(), row.kind, row.plural, row.verbs));
        if let Some(custom) = &row.custom {
            sum.update(custom.definition.fingerprint.to_be_bytes());
        }
        for sub in row.subresources.iter() {
            sum.update(format!(" {} {:?} {:?}", sub.name, sub.kind, sub.verbs));
        }
    }
    sum.finalize().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The same for a document that has parts of extension servers.
fn hash_with(rows: &Rows, extensions: &[Spec]) -> String {
    let own = hash(rows.iter());
    if extensions.iter().all(|spec| spec.v2.is_none()) {
        return own;
    }
    let mut sum = Sha256::new();
    sum.update(own);
    for spec in extensions {
        sum.update(format!("\n{}", spec.service.name));
        if let Some(document) = &spec.v2 {
            sum.update(document.to_string());
        }
    }
    sum.finalize().iter().map(|byte| format!("{byte:02X}")).collect()
}

fn takes_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    values.peek().is_none()
        || values.flat_map(|list| list.split(',')).any(|media| {
            let kind = media.split(';').next().unwrap_or_default().trim();
            matches!(kind, "" | "application/json" | "application/*" | "*/*")
        })
}

/// Older clients write the version with an @, which is not quite a media type.
fn wants_protobuf(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.any(|list| list.contains("com.github.proto-openapi.spec.v2") && list.contains("protobuf"))
}

fn unpack(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::with_capacity(packed.len() * 8);
    GzDecoder::new(packed).read_to_end(&mut plain)?;
    Ok(plain)
}

fn pack(document: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(document.len() / 8), Compression::new(6));
    encoder.write_all(document)?;
    encoder.finish()
}

/// The document of a built-in group version.
fn builtin(path: &str) -> Vec<u8> {
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => openapi::v3("", version).unwrap_or_default(),
        ["apis", group, version] => openapi::v3(group, version).unwrap_or_default(),
        _ => Vec::new(),
    }
}
