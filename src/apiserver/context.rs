//! What every part of a running API server shares.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::aggregator::Aggregator;
use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::encryption::Storage;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::tokens::Tokens;
use crate::webhook;

/// One per API server, shared by `Arc`.
pub struct Context {
    pub config: Config,
    /// Plain values go in and come out, whatever lies in the store.
    pub store: Storage,
    pub catalog: Catalog,
    /// Who else serves parts of the API.
    pub aggregator: Aggregator,
    /// Calls the conversion webhooks of custom kinds.
    pub conversions: webhook::Client,
    /// Signs and verifies service account tokens.
    pub tokens: Arc<Tokens>,
    /// Tells who asks; TokenReview goes through it too.
    pub authenticator: Authenticator,
    /// Tells what they may; the access reviews and the escalation checks go through it too.
    pub authorizer: Authorizer,
    pub health: Health,
    pub metrics: Metrics,
    /// Ends every task below.
    pub stop: CancellationToken,
    /// Background tasks; shutdown waits for them.
    pub tasks: TaskTracker,
}
