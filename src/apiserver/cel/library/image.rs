//! `image("registry.k8s.io/pause:3.10")`.

use mussel_cel::Type::{self, Bool, String as Text};
use mussel_cel::{Env, EvalError, Run, Value, global, member};

use super::{opaque, own, text};

const NAME: &str = "kubernetes.Image";

const DEFAULT_REGISTRY: &str = "index.docker.io";

/// A reference has a digest, or else a tag.
#[derive(Debug, PartialEq)]
struct Image {
    registry: String,
    repository: String,
    tag: String,
    digest: String,
}
opaque!(Image, NAME);

fn parse(given: &str) -> Result<Image, EvalError> {
    let bad = || EvalError::other(format!("could not parse reference: {given}"));
    let (rest, digest) = match given.split_once('@') {
        Some((rest, digest)) => (rest, digest),
        None => (given, ""),
    };
    let is_digest = |digest: &str| {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    if given.contains('@') && !is_digest(digest) {
        return Err(bad());
    }
    let (rest, tag) = match rest.rsplit_once(':') {
        Some((rest, tag)) if !tag.contains('/') => (rest, tag),
        _ => (rest, "latest"),
    };
    let is_tag = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.');
    if tag.is_empty() || tag.len() > 127 || !tag.bytes().all(is_tag) {
        return Err(bad());
    }
    let (registry, repository) = match rest.split_once('/') {
        Some((first, repository)) if first.contains(['.', ':']) || first == "localhost" => (first, repository),
        _ => ("", rest),
    };
    let is_part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'_' | b'-' | b'.'))
    };
    if repository.len() < 2 || repository.len() > 255 || !repository.split('/').all(is_part) {
        return Err(bad());
    }
    let registry = if matches!(registry, "" | "docker.io") { DEFAULT_REGISTRY } else { registry };
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    let tag = if digest.is_empty() { tag.to_owned() } else { String::new() };
    Ok(Image { registry: registry.to_owned(), repository, tag, digest: digest.to_owned() })
}

pub fn declare(env: &mut Env) {
    let ty = Type::opaque(NAME);
    env.function("image", vec![global([Text], ty.clone(), |args, _| Ok(Value::opaque(parse(text(&args[0])?)?)))]);
    env.function("isImage", vec![global([Text], Bool, |args, _| Ok(parse(text(&args[0])?).is_ok().into()))]);
    env.function(
        "containsDigest",
        vec![member([ty.clone()], Bool, |args, _| Ok((!own::<Image>(&args[0])?.digest.is_empty()).into()))],
    );
    let mut part = |name: &str, run: Run| env.function(name, vec![member([ty.clone()], Text, run)]);
    part("registry", |args, _| Ok(own::<Image>(&args[0])?.registry.as_str().into()));
    part("repository", |args, _| Ok(own::<Image>(&args[0])?.repository.as_str().into()));
    part("tag", |args, _| Ok(own::<Image>(&args[0])?.tag.as_str().into()));
    part("digest", |args, _| Ok(own::<Image>(&args[0])?.digest.as_str().into()));
    part("identifier", |args, _| {
        let image = own::<Image>(&args[0])?;
        Ok(if image.digest.is_empty() { image.tag.as_str() } else { image.digest.as_str() }.into())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_parts() {
        let parts = |given: &str| {
            parse(given)
                .map(|image| format!("{} {} {} {}", image.registry, image.repository, image.tag, image.digest))
                .ok()
        };
        let digest = format!("sha256:{}", "a".repeat(64));
        for (given, expected) in [
            ("nginx".to_owned(), Some("index.docker.io library/nginx latest ".to_owned())),
            ("docker.io/a/b:1".to_owned(), Some("index.docker.io a/b 1 ".to_owned())),
            ("localhost:5000/a:1".to_owned(), None),
            ("localhost:5000/ab:1".to_owned(), Some("localhost:5000 ab 1 ".to_owned())),
            (format!("r.io/ab:1@{digest}"), Some(format!("r.io ab  {digest}"))),
            ("r.io//ab".to_owned(), None),
            ("r.io/AB".to_owned(), None),
            ("r.io/ab@sha256:1".to_owned(), None),
        ] {
            assert_eq!(parts(&given), expected, "{given}");
        }
    }
}
