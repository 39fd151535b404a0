//! As much of etcd's API as a load needs.

use std::future::Future;
use std::io;

use bytes::Bytes;
use futures::Stream;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::Failure;

/// Connections to the server: one would be what is measured.
const CONNECTIONS: usize = 16;

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchCreateRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    range_end: Bytes,
    /// As the API server asks for it.
    #[prost(bool, tag = "6")]
    prev_kv: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct WatchResponse {
    #[prost(bool, tag = "3")]
    pub created: bool,
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    #[prost(message, repeated, tag = "11")]
    pub events: Vec<WatchEvent>,
}

#[derive(Clone, PartialEq, Message)]
pub struct WatchEvent {}

/// A clone uses the next of the connections.
pub struct Etcd {
    connections: Vec<Grpc<Channel>>,
    chosen: usize,
    clones: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl Clone for Etcd {
    fn clone(&self) -> Self {
        let chosen = self.clones.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % self.connections.len();
        Self { connections: self.connections.clone(), chosen, clones: self.clones.clone() }
    }
}

impl Etcd {
    pub async fn connect(address: &str) -> Result<Self, Failure> {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Grpc::new(Endpoint::from_shared(address.to_string())?.connect().await?));
        }
        Ok(Self { connections, chosen: 0, clones: Default::default() })
    }

    async fn ask<Q, A>(&mut self, path: &'static str, request: Q) -> Result<A, Failure>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let connection = &mut self.connections[self.chosen];
        connection.ready().await?;
        let path = http::uri::PathAndQuery::from_static(path);
        Ok(connection.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await?.into_inner())
    }

    pub async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        self.ask::<_, PutResponse>("/etcdserverpb.KV/Put", PutRequest { key, value }).await.map(drop)
    }

    /// Linearizable, as etcd's reads are unless asked otherwise. The value's length.
    pub async fn get(&mut self, key: Bytes) -> Result<usize, Failure> {
        let found: RangeResponse = self.ask("/etcdserverpb.KV/Range", RangeRequest { key }).await?;
        Ok(found.kvs.first().ok_or("no such key")?.value.len())
    }

    /// Watches all of `prefixes` on one stream; resolves once all are there.
    pub async fn watch(&mut self, prefixes: Vec<Bytes>) -> Result<Streaming<WatchResponse>, Failure> {
        let count = prefixes.len();
        let requests = prefixes.into_iter().map(|key| WatchRequest {
            create: Some(WatchCreateRequest { range_end: after(&key), key, prev_kv: true }),
        });
        // The stream of requests stays open: its end would end the watches.
        let requests = futures::StreamExt::chain(futures::stream::iter(requests), futures::stream::pending());
        let mut responses = self.stream(requests).await?;
        let mut created = 0;
        while created < count {
            let response = responses.message().await?.ok_or_else(ended)?;
            created += usize::from(response.created);
        }
        Ok(responses)
    }

    fn stream(
        &mut self,
        requests: impl Stream<Item = WatchRequest> + Send + 'static,
    ) -> impl Future<Output = Result<Streaming<WatchResponse>, Failure>> + '_ {
        let connection = &mut self.connections[self.chosen];
        async move {
            connection.ready().await?;
            let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            Ok(connection.streaming(tonic::Request::new(requests), path, codec).await?.into_inner())
        }
    }
}

pub fn ended() -> io::Error {
    io::Error::other("the watch ended")
}

/// The first key after all that begin with `prefix`.
fn after(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}
