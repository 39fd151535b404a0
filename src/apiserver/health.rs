//! `/livez`, `/readyz`, `/healthz`: named checks, in upstream's format.

use std::sync::Mutex;
use std::sync::PoisonError;

use http::{HeaderValue, StatusCode, header};
use mussel_store::{Freshness, Store};
use tokio_util::sync::CancellationToken;

use crate::handler::{Body, Response};
use crate::request::Query;

/// Which of the three endpoints is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    Livez,
    Readyz,
    Healthz,
}

impl Probe {
    fn name(self) -> &'static str {
        match self {
            Self::Livez => "livez",
            Self::Readyz => "readyz",
            Self::Healthz => "healthz",
        }
    }
}

/// The state behind the checks. Hooks are named before they run, so that none is forgotten.
pub struct Health {
    store: Store,
    stop: CancellationToken,
    hooks: Mutex<Vec<(String, bool)>>,
}

impl Health {
    pub fn new(store: Store, stop: CancellationToken, hooks: &[&str]) -> Self {
        let hooks = hooks.iter().map(|name| (format!("poststarthook/{name}"), false)).collect();
        Self { store, stop, hooks: Mutex::new(hooks) }
    }

    /// A post-start hook has ended well.
    pub fn done(&self, hook: &str) {
        let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, done) in hooks.iter_mut() {
            if name.strip_prefix("poststarthook/") == Some(hook) {
                *done = true;
            }
        }
    }

    async fn checks(&self, probe: Probe) -> Vec<(String, bool)> {
        let store = self.store.snapshot(Freshness::Linearizable).await.is_ok();
        let mut checks = vec![("ping".to_owned(), true), ("log".to_owned(), true), ("etcd".to_owned(), store)];
        if probe == Probe::Readyz {
            checks.push(("etcd-readiness".to_owned(), store));
        }
        checks.extend(self.hooks.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        if probe == Probe::Readyz {
            checks.push(("shutdown".to_owned(), !self.stop.is_cancelled()));
        }
        checks
    }

    /// Answers `/readyz`, `/readyz/<check>`; `None` for a check that does not exist.
    pub async fn answer(&self, probe: Probe, check: Option<&str>, query: &Query) -> Option<Response> {
        let checks = self.checks(probe).await;
        if let Some(check) = check {
            let (_, good) = checks.into_iter().find(|(name, _)| name == check)?;
            return Some(match good {
                true => text(StatusCode::OK, "ok".to_owned()),
                false => text(StatusCode::INTERNAL_SERVER_ERROR, "internal server error: not ready\n".to_owned()),
            });
        }
        let excluded: Vec<&str> = query.all("exclude").collect();
        let mut report = String::new();
        let mut failed = Vec::new();
        for (name, good) in &checks {
            if excluded.contains(&name.as_str()) {
                report.push_str(&format!("[+]{name} excluded: ok\n"));
            } else if *good {
                report.push_str(&format!("[+]{name} ok\n"));
            } else {
                report.push_str(&format!("[-]{name} failed: reason withheld\n"));
                failed.push(name.as_str());
            }
        }
        for name in excluded.iter().filter(|name| !checks.iter().any(|(check, _)| check == *name)) {
            report.push_str(&format!("warn: some health checks cannot be excluded: no matches for {name:?}\n"));
        }
        let probe = probe.name();
        if !failed.is_empty() {
            tracing::debug!(probe, checks = failed.join(","), "health check failed");
            report.push_str(&format!("{probe} check failed\n"));
            return Some(text(StatusCode::INTERNAL_SERVER_ERROR, report));
        }
        if !query.0.iter().any(|(key, _)| key == "verbose") {
            return Some(text(StatusCode::OK, "ok".to_owned()));
        }
        report.push_str(&format!("{probe} check passed\n"));
        Some(text(StatusCode::OK, report))
    }
}

fn text(code: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}
