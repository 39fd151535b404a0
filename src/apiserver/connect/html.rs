//! Makes links of a proxied page lead back through the proxy. Only attributes that hold URLs are touched, and of those
//! only absolute paths.

const URL_ATTRIBUTES: [&str; 15] = [
    "action",
    "background",
    "cite",
    "classid",
    "codebase",
    "data",
    "formaction",
    "href",
    "icon",
    "longdesc",
    "manifest",
    "poster",
    "profile",
    "src",
    "usemap",
];

/// Where `url` leads through the proxy at `prefix`; `None` when it is to stay. `host` is the proxied server.
pub fn rewrite_url(url: &str, prefix: &str, host: &str) -> Option<String> {
    let path = match url.split_once("://") {
        Some(("http" | "https", rest)) => rest.strip_prefix(host)?,
        Some(_) => return None,
        None => url,
    };
    let is_absolute_path = path.starts_with('/') && !path.starts_with("//");
    (is_absolute_path && !path.starts_with(prefix)).then(|| format!("{prefix}{path}"))
}

pub fn rewrite(page: &[u8], prefix: &str, host: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(page.len() + page.len() / 8);
    let mut rest = page;
    while let Some(open) = rest.iter().position(|byte| *byte == b'<') {
        let (before, tag) = rest.split_at(open);
        out.extend_from_slice(before);
        let comment = tag.starts_with(b"<!--");
        let end = if comment { find(tag, b"-->").map(|at| at + 3) } else { tag_end(tag) };
        let (tag, after) = tag.split_at(end.unwrap_or(tag.len()));
        if comment {
            out.extend_from_slice(tag)
        } else {
            rewrite_tag(tag, prefix, host, &mut out)
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out
}

fn find(text: &[u8], mark: &[u8]) -> Option<usize> {
    text.windows(mark.len()).position(|window| window == mark)
}

/// The length of the tag that `text` begins with: up to the first `>` outside quotes.
fn tag_end(text: &[u8]) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in text.iter().enumerate() {
        match (quote, byte) {
            (Some(open), byte) if open == *byte => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(*byte),
            (None, b'>') => return Some(at + 1),
            (None, _) => {}
        }
    }
    None
}

fn rewrite_tag(tag: &[u8], prefix: &str, host: &str, out: &mut Vec<u8>) {
    let mut at = 0;
    let mut written = 0;
    while let Some(equals) = tag[at..].iter().position(|byte| *byte == b'=').map(|offset| at + offset) {
        let name_end = tag[..equals].iter().rposition(|byte| !byte.is_ascii_whitespace()).map_or(0, |i| i + 1);
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
        let name_start = tag[..name_end].iter().rposition(|byte| !is_name(byte)).map_or(0, |i| i + 1);
        let name = String::from_utf8_lossy(&tag[name_start..name_end]).to_ascii_lowercase();
        let value = equals + 1 + tag[equals + 1..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let (start, end, next) = match tag.get(value) {
            Some(quote @ (b'"' | b'\'')) => {
                let length = tag[value + 1..].iter().position(|byte| byte == quote);
                let end = length.map_or(tag.len(), |length| value + 1 + length);
                (value + 1, end, end + 1)
            }
            _ => {
                let length = tag[value..].iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'>');
                let end = length.map_or(tag.len(), |length| value + length);
                (value, end, end)
            }
        };
        if URL_ATTRIBUTES.contains(&name.as_str())
            && let Ok(url) = std::str::from_utf8(&tag[start..end])
            && let Some(moved) = rewrite_url(url, prefix, host)
        {
            out.extend_from_slice(&tag[written..start]);
            out.extend_from_slice(moved.as_bytes());
            written = end;
        }
        at = next.min(tag.len());
    }
    out.extend_from_slice(&tag[written..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_links_lead_back_through_the_proxy() {
        let table = [
            ("<a href=\"/rewriteme\">test</a>", "<a href=\"/p/proxy/rewriteme\">test</a>"),
            ("<A HREF='/x' src=/y>", "<A HREF='/p/proxy/x' src=/p/proxy/y>"),
            ("<a href=\"x/y\">", "<a href=\"x/y\">"),
            ("<a href=\"//cdn/x\">", "<a href=\"//cdn/x\">"),
            ("<a href=\"/p/proxy/x\">", "<a href=\"/p/proxy/x\">"),
            ("<a href=\"http://1.2.3.4:80/x\">", "<a href=\"/p/proxy/x\">"),
            ("<a href=\"http://else/x\">", "<a href=\"http://else/x\">"),
            ("<p title=\"href=/x\">/y</p>", "<p title=\"href=/x\">/y</p>"),
            ("<!-- <a href=\"/x\"> --><img src=\"/y", "<!-- <a href=\"/x\"> --><img src=\"/p/proxy/y"),
            ("a < b = /c", "a < b = /c"),
        ];
        for (page, expected) in table {
            let seen = rewrite(page.as_bytes(), "/p/proxy", "1.2.3.4:80");
            assert_eq!(String::from_utf8(seen).unwrap(), expected);
        }
    }
}
