//! Field paths and the errors that name them, worded as upstream's `field.Error`.

use std::fmt;

/// A field path as upstream prints it: `spec.containers[0].image`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(String);

impl Path {
    pub fn root() -> Self {
        Self::default()
    }

    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}.{name}", self.0)) }
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// The kinds of `field.Error`; each has its machine-readable `reason` in `Status.details.causes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl ErrorKind {
    /// `FieldValueRequired` and so on: the `CauseType` of `metav1.StatusCause`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: ErrorKind,
    pub path: Path,
    /// The offending value, printed where upstream prints it.
    pub value: serde_json::Value,
    pub detail: String,
}

/// All that is wrong with an object, in the order it was found.
pub type FieldErrors = Vec<FieldError>;

impl FieldError {
    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Required, path: path.clone(), value: "".into(), detail: detail.into() }
    }

    pub fn invalid(path: &Path, value: impl Into<serde_json::Value>, detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Invalid, path: path.clone(), value: value.into(), detail: detail.into() }
    }

    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Forbidden, path: path.clone(), value: "".into(), detail: detail.into() }
    }

    pub fn duplicate(path: &Path, value: impl Into<serde_json::Value>) -> Self {
        Self { kind: ErrorKind::Duplicate, path: path.clone(), value: value.into(), detail: String::new() }
    }

    pub fn not_found(path: &Path, value: impl Into<serde_json::Value>) -> Self {
        Self { kind: ErrorKind::NotFound, path: path.clone(), value: value.into(), detail: String::new() }
    }

    /// `supported` is listed as upstream does: quoted, sorted by the caller.
    pub fn not_supported(path: &Path, value: impl Into<serde_json::Value>, supported: &[&str]) -> Self {
        let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {list}") };
        Self { kind: ErrorKind::NotSupported, path: path.clone(), value: value.into(), detail }
    }

    pub fn too_long(path: &Path, bytes_max: usize) -> Self {
        let detail = format!("may not be more than {bytes_max} bytes");
        Self { kind: ErrorKind::TooLong, path: path.clone(), value: "".into(), detail }
    }

    /// The part after the path: what `Status.details.causes[].message` carries.
    pub fn body(&self) -> String {
        let title = self.kind.title();
        let value = match self.kind {
            ErrorKind::Required | ErrorKind::Forbidden | ErrorKind::TooLong | ErrorKind::Internal => None,
            _ => Some(match &self.value {
                serde_json::Value::String(text) => format!("{text:?}"),
                other => other.to_string(),
            }),
        };
        match (value, self.detail.is_empty()) {
            (Some(value), false) => format!("{title}: {value}: {}", self.detail),
            (Some(value), true) => format!("{title}: {value}"),
            (None, false) => format!("{title}: {}", self.detail),
            (None, true) => title.to_owned(),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstreams() {
        let image = Path::new("spec").child("containers").index(0).child("image");
        assert_eq!(FieldError::required(&image, "").to_string(), "spec.containers[0].image: Required value");
        let label = Path::new("metadata").child("labels").key("a b");
        assert_eq!(
            FieldError::invalid(&label, "x", "bad").to_string(),
            "metadata.labels[a b]: Invalid value: \"x\": bad"
        );
    }
}
