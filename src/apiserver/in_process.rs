//! A `kube::Client` for code in this process: no socket, no TLS, an identity by assertion, all checks as for any other.

use std::convert::Infallible;
use std::task::{Context as TaskContext, Poll};

use futures::future::BoxFuture;

use crate::ApiServer;
use crate::authn::InProcess;
use crate::handler::{Body, Response, UserInfo};

/// The API server as a `tower::Service`, for one user.
#[derive(Clone)]
pub struct AsUser {
    server: ApiServer,
    user: InProcess,
}

impl tower::Service<http::Request<kube::client::Body>> for AsUser {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<kube::client::Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(self.user.clone());
        let request = http::Request::from_parts(parts, Body::new(body));
        let server = self.server.clone();
        Box::pin(async move { Ok(server.handle(request).await) })
    }
}

impl ApiServer {
    /// A client that acts as this user. Must be called inside a tokio runtime.
    pub fn client(&self, user: &str, groups: &[&str]) -> kube::Client {
        self.client_as(UserInfo::new(user, groups))
    }

    /// A client that acts as a service account of `kube-system`, as each controller does: RBAC has a role for each.
    pub fn controller_client(&self, controller: &str) -> kube::Client {
        let user = format!("system:serviceaccount:kube-system:{controller}");
        self.client(&user, &["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"])
    }

    pub fn client_as(&self, user: UserInfo) -> kube::Client {
        kube::Client::new(self.service_as(user), "default")
    }

    /// The service behind [`ApiServer::client_as`].
    pub fn service_as(&self, user: UserInfo) -> AsUser {
        AsUser { server: self.clone(), user: InProcess(user) }
    }
}
