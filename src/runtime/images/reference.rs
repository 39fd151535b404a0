//! Image names, as people write them and as they are kept.

use std::fmt;

/// A name in full: registry, repository, and a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an image name such as registry.example/app:1.0")]
pub struct ReferenceError(String);

impl Reference {
    /// Fills in what Docker's shorthand leaves out: `busybox` is `docker.io/library/busybox:latest`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let fail = || ReferenceError(text.to_owned());
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) if is_digest(digest) => (name, Some(digest.to_owned())),
            Some(_) => return Err(fail()),
            None => (text, None),
        };
        // A colon behind the last slash begins the tag; one before it, a port.
        let (name, tag) = match name.rfind(':') {
            Some(at) if !name[at..].contains('/') => (&name[..at], Some(name[at + 1..].to_owned())),
            _ => (name, None),
        };
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
                && part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        };
        let valid_tag = |tag: &String| {
            (1..=128).contains(&tag.len()) && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let valid_registry = registry.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-[]".contains(&b))
            && registry.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'[');
        if !valid_registry || !repository.split('/').all(part) || !tag.iter().all(valid_tag) || repository.len() > 255 {
            return Err(fail());
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// `docker.io/library/busybox`
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `docker.io/library/busybox:1.36`; `None` for a name by digest only.
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.name()))
    }

    /// `docker.io/library/busybox@sha256:…`
    pub fn with_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// `sha256:` and 64 hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1", "docker.io/library/busybox:1".to_owned()),
            ("me/app", "docker.io/me/app:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("reg.example:5000/a/b:v1", "reg.example:5000/a/b:v1".to_owned()),
            (&format!("x.example/a@{digest}"), format!("x.example/a@{digest}")),
            (&format!("x.example/a:1@{digest}"), format!("x.example/a:1@{digest}")),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), full);
        }
        for wrong in ["", "UPPER", "a b", "a:", "a@sha256:12", "a//b", "reg.example/", "../x", "a:-b c"] {
            assert!(Reference::parse(wrong).is_err(), "{wrong}");
        }
    }
}
