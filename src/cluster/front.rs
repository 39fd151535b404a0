//! What stands behind a server's one port: joining, the API, and the other servers.
//!
//! The port is open before the store is, since a group reaches a member that joins only there; the API is told to be not
//! ready until then.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderValue, header};
use mussel_apiserver::{Answer, ApiServer, Body, Response, Status};
use mussel_store::Store;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time;
use tokio_rustls::server::TlsStream;

use crate::supervisor::Supervisor;

/// A member's connection waits this long for the store to open; it comes again.
const STORE_WAIT: Duration = Duration::from_secs(10);
const RETRY_AFTER_SECONDS: u32 = 2;

#[derive(Clone)]
pub struct Front(Arc<Inner>);

struct Inner {
    supervisor: Supervisor,
    /// Whether this server answers the API at all.
    serves_api: bool,
    api: OnceLock<ApiServer>,
    store: watch::Sender<Option<Store>>,
}

impl Front {
    /// With `serves_api` false the API is left to other servers.
    pub fn new(supervisor: Supervisor, serves_api: bool) -> Self {
        let inner = Inner { supervisor, serves_api, api: OnceLock::new(), store: watch::Sender::new(None) };
        Self(Arc::new(inner))
    }

    /// From now on other servers are served.
    pub fn attach_store(&self, store: Store) {
        self.0.supervisor.attach_store(store.clone());
        self.0.store.send_replace(Some(store));
    }

    /// From now on the API is served. Must be called inside a tokio runtime.
    pub fn attach_api(&self, api: ApiServer) {
        self.0.supervisor.attach(&api);
        // A second call would bring the same.
        let _ = self.0.api.set(api);
    }
}

/// An answer in the API server's place. kubectl keeps answers on disk and believes them for minutes, unless told not to.
fn refusal(status: Status) -> Response {
    let mut response = status.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, private"));
    response
}

impl Answer for Front {
    fn request(&self, request: http::Request<Body>) -> BoxFuture<'static, Response> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            if Supervisor::serves(request.uri().path()) {
                return inner.supervisor.answer(request).await;
            }
            if !inner.serves_api {
                return refusal(Status::unavailable("this server does not serve the API (--disable-apiserver)"));
            }
            match inner.api.get() {
                Some(api) => api.handle(request).await,
                None => {
                    let status = Status::unavailable("the API server is starting");
                    refusal(status.with_retry_after(RETRY_AFTER_SECONDS))
                }
            }
        })
    }

    fn peer(&self, stream: TlsStream<TcpStream>) -> BoxFuture<'static, ()> {
        let mut store = self.0.store.subscribe();
        Box::pin(async move {
            let waited = time::timeout(STORE_WAIT, store.wait_for(Option::is_some)).await;
            let Ok(Ok(store)) = waited.map(|found| found.map(|store| store.clone())) else { return };
            if let Some(store) = store
                && let Err(error) = store.serve_peer(stream).await
            {
                tracing::debug!(%error, "a server's connection ended");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_keeps_the_answer_of_a_server_that_starts() {
        let response = refusal(Status::unavailable("the API server is starting"));
        assert_eq!(response.status(), 503);
        assert!(response.headers()[header::CACHE_CONTROL].to_str().unwrap().contains("no-store"));
    }
}
