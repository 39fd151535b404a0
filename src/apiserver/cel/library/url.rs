//! `url("https://…")`.

use std::collections::BTreeMap;
use std::sync::Arc;

use mussel_cel::Type::{self, Bool, String as Text};
use mussel_cel::{Env, EvalError, Key, Run, Value, global, member};

use super::{opaque, own, text};

const NAME: &str = "kubernetes.URL";

#[derive(Debug, PartialEq)]
struct Url {
    scheme: String,
    /// With the port; an IPv6 address in brackets.
    host: String,
    path: String,
    query: String,
}
opaque!(Url, NAME);

impl Url {
    fn hostname(&self) -> &str {
        match self.host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => self.host.rsplit_once(':').map_or(&*self.host, |(name, _)| name),
        }
    }

    fn port(&self) -> &str {
        let after = self.host.rsplit_once(']').map_or(&*self.host, |(_, after)| after);
        after.rsplit_once(':').map_or("", |(_, port)| port)
    }
}

/// An absolute URI or an absolute path, as Go's `ParseRequestURI` takes them.
fn parse(given: &str) -> Result<Url, EvalError> {
    let bad =
        |why: &str| EvalError::other(format!("URL parse error during conversion from string: parse {given:?}: {why}"));
    if given.is_empty() {
        return Err(bad("empty url"));
    }
    if given.chars().any(|c| c.is_ascii_control()) {
        return Err(bad("net/url: invalid control character in URL"));
    }
    let (scheme, rest) = match given.split_once(':') {
        Some((scheme, rest)) if !given.starts_with('/') => {
            let mut chars = scheme.chars();
            let is_scheme = chars.next().is_some_and(|c| c.is_ascii_alphabetic())
                && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
            if !is_scheme {
                return Err(bad("first path segment in URL cannot contain colon"));
            }
            (scheme.to_ascii_lowercase(), rest)
        }
        _ => (String::new(), given),
    };
    if scheme.is_empty() && !rest.starts_with('/') {
        return Err(bad("invalid URI for request"));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = match rest.strip_prefix("//").filter(|_| !scheme.is_empty() || !rest.starts_with("///")) {
        Some(rest) => {
            let end = rest.find('/').unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            (authority.rsplit_once('@').map_or(authority, |(_, host)| host), path)
        }
        None => ("", rest),
    };
    if host.contains([' ', '<', '>', '"', '\\', '^', '`', '{', '|', '}']) {
        return Err(bad("invalid character in host name"));
    }
    let url = Url { scheme, host: host.to_owned(), path: path.to_owned(), query: query.to_owned() };
    if !url.port().bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad("invalid port after host"));
    }
    if !escapes_are_whole(path) {
        return Err(bad("invalid URL escape"));
    }
    Ok(url)
}

/// Whether `url` would take it.
pub fn is_url(text: &str) -> bool {
    parse(text).is_ok()
}

fn escapes_are_whole(text: &str) -> bool {
    text.split('%').skip(1).all(|after| {
        let mut bytes = after.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_hexdigit()) && bytes.next().is_some_and(|b| b.is_ascii_hexdigit())
    })
}

/// Percent-decodes; a plus is a blank in queries.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

fn query(url: &Url) -> Value {
    let mut found: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (decode(key), decode(value)) {
            found.entry(Key::String(key.into())).or_default().push(value.into());
        }
    }
    Value::Map(Arc::new(found.into_iter().map(|(key, values)| (key, Value::list(values))).collect()))
}

pub fn declare(env: &mut Env) {
    let ty = Type::opaque(NAME);
    env.function("url", vec![global([Text], ty.clone(), |args, _| Ok(Value::opaque(parse(text(&args[0])?)?)))]);
    env.function("isURL", vec![global([Text], Bool, |args, _| Ok(parse(text(&args[0])?).is_ok().into()))]);
    let mut part = |name: &str, result: Type, run: Run| env.function(name, vec![member([ty.clone()], result, run)]);
    part("getScheme", Text, |args, _| Ok(own::<Url>(&args[0])?.scheme.as_str().into()));
    part("getHost", Text, |args, _| Ok(own::<Url>(&args[0])?.host.as_str().into()));
    part("getHostname", Text, |args, _| Ok(own::<Url>(&args[0])?.hostname().into()));
    part("getPort", Text, |args, _| Ok(own::<Url>(&args[0])?.port().into()));
    part("getEscapedPath", Text, |args, _| Ok(own::<Url>(&args[0])?.path.replace(' ', "%20").into()));
    part("getQuery", Type::map(Text, Type::list(Text)), |args, _| Ok(query(own::<Url>(&args[0])?)));
}
