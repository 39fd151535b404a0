//! Why one pass of a controller did not finish. Every pass can be repeated.

use std::time::Duration;

use kube::core::ParseExpressionError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("api request failed")]
    Api(#[from] kube::Error),
    #[error("selector is not usable")]
    Selector(#[from] ParseExpressionError),
    #[error("serialize for comparison")]
    Encode(#[from] serde_json::Error),
    #[error("{0}")]
    Unfinished(String),
}

/// What a pass wants next: nothing until a change, or another pass after a while.
pub type Outcome = Result<Option<Duration>, Error>;

impl Error {
    /// Somebody else was faster, or our copy of the world is a moment old: not worth a line in the log.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists())
    }
}

pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

/// The message of the server where there is one.
pub fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A deletion of something that is already gone is a success.
pub fn gone_is_fine<T>(result: kube::Result<T>) -> Result<(), Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
