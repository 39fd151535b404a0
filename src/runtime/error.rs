//! Why a CRI call failed, and what the caller hears of it.

use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};

use crate::image::ResolveError;
use crate::network::PodNetworkError;
use crate::seccomp::SeccompError;
use crate::user::UserError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{kind} {id:?} not found")]
    NotFound { kind: &'static str, id: String },
    #[error("{0}")]
    Invalid(String),
    #[error("name {0:?} is reserved")]
    Reserved(String),
    #[error("{0}")]
    State(String),
    #[error("{step}")]
    Io { step: String, source: io::Error },
    #[error("{step}: {message}")]
    Shim { step: &'static str, message: String },
    #[error("the shim in {} has gone", .0.display())]
    ShimGone(PathBuf),
    #[error("{0}")]
    Deadline(String),
    #[error("set up the pod network")]
    Network(#[from] PodNetworkError),
    #[error("resolve image")]
    Image(#[from] ResolveError),
    #[error("resolve user")]
    User(#[from] UserError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error("{0}")]
    Unimplemented(&'static str),
}

pub type Result<T> = std::result::Result<T, Error>;

/// Names the step that an I/O error belongs to.
pub trait Step<T> {
    fn step(self, step: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Step<T> for std::result::Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io { step: step.into(), source: source.into() })
    }
}

impl Error {
    pub fn no_container(id: &str) -> Error {
        Error::NotFound { kind: "container", id: id.to_owned() }
    }

    pub fn no_sandbox(id: &str) -> Error {
        Error::NotFound { kind: "sandbox", id: id.to_owned() }
    }
}

/// An error with all its causes, as logs and CRI messages show it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let code = match &error {
            Error::NotFound { .. } | Error::Image(ResolveError::NotFound(_)) => Code::NotFound,
            Error::Invalid(_) => Code::InvalidArgument,
            Error::Reserved(_) => Code::AlreadyExists,
            Error::State(_) => Code::FailedPrecondition,
            Error::Deadline(_) => Code::DeadlineExceeded,
            Error::Unimplemented(_) => Code::Unimplemented,
            Error::ShimGone(_) => Code::Unavailable,
            _ => Code::Unknown,
        };
        Status::new(code, chain(&error))
    }
}
