//! The Container Runtime Interface, v1: generated message types, clients and servers.
//!
//! It holds no behaviour. `v1.proto` is our own text of the published interface; [`v1`] is what comes out of it.
//! A client can be put straight onto a server of the same process (`RuntimeServiceClient::new(server)`), or onto a
//! [`connect`]ed unix socket.

use std::path::PathBuf;

use tonic::transport::{Channel, Endpoint, Uri};

/// The generated types of package `runtime.v1`.
#[allow(clippy::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// Largest message of either direction; a node with thousands of containers lists well below it.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A channel to the CRI socket at `path`. Nothing is dialled before the first call, and a broken connection is dialled
/// anew by the next one.
pub fn connect(path: impl Into<PathBuf>) -> Channel {
    let path = path.into();
    // The address is only a label: the connector below ignores it.
    Endpoint::from_static("http://cri.invalid").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    }))
}

/// Parses `--container-runtime-endpoint`: an absolute path, with or without `unix://`.
pub fn socket_path(endpoint: &str) -> Option<PathBuf> {
    let path = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    path.is_absolute().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_absolute_paths() {
        assert_eq!(socket_path("unix:///run/x.sock"), Some(PathBuf::from("/run/x.sock")));
        assert_eq!(socket_path("/run/x.sock"), Some(PathBuf::from("/run/x.sock")));
        assert_eq!(socket_path("tcp://x:1"), None);
    }

    #[test]
    fn field_numbers_are_the_published_ones() {
        use prost::Message as _;
        let request = v1::StopContainerRequest { container_id: "a".into(), timeout: 3 };
        assert_eq!(request.encode_to_vec(), [0x0a, 1, b'a', 0x10, 3]);
        let config = v1::ContainerConfig { stop_signal: v1::Signal::Sigrtmax.into(), ..Default::default() };
        assert_eq!(config.encode_to_vec(), [0x90, 1, 65]);
    }
}
