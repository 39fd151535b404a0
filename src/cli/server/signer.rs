//! The cluster's authorities, for the controller that signs by way of the API.

use std::sync::Arc;
use std::time::Duration;

use mussel_cluster::pki::Pki;
use mussel_controllers::Authority;

pub struct ApiSigner(pub Arc<Pki>);

impl std::fmt::Debug for ApiSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiSigner")
    }
}

impl mussel_controllers::Signer for ApiSigner {
    fn sign(
        &self,
        authority: Authority,
        request: &[u8],
        usages: &[String],
        lifetime: Duration,
    ) -> Result<String, String> {
        let authority = match authority {
            Authority::Client => &self.0.client_ca,
            Authority::Server => &self.0.server_ca,
        };
        authority.sign_request(request, usages, lifetime).map_err(|error| error.to_string())
    }
}
