//! As much of etcd's API as a load needs.

use bytes::Bytes;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[derive(Clone)]
pub struct Etcd(Grpc<Channel>);

impl Etcd {
    pub async fn connect(address: &str) -> Result<Self, tonic::transport::Error> {
        Ok(Self(Grpc::new(Endpoint::from_shared(address.to_string())?.connect().await?)))
    }

    pub async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), tonic::Status> {
        self.0.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let request = tonic::Request::new(PutRequest { key, value });
        self.0.unary(request, path, ProstCodec::<PutRequest, PutResponse>::default()).await.map(drop)
    }
}
