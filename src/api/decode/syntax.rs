//! Syntax errors of JSON in the words of Go's decoder, which clients know.

use serde_json::error::Category;

/// The text for a parse error of `bytes`.
pub(super) fn json(bytes: &[u8], error: &serde_json::Error) -> String {
    match error.classify() {
        Category::Eof => "unexpected end of JSON input".to_owned(),
        Category::Io | Category::Data => error.to_string(),
        Category::Syntax => {
            let text = error.to_string();
            match place(&text) {
                Some(place) => format!("invalid character {} {place}", character(bytes, error)),
                None => text,
            }
        }
    }
}

fn place(text: &str) -> Option<&'static str> {
    const PLACES: &[(&str, &str)] = &[
        ("expected value", "looking for beginning of value"),
        ("key must be a string", "looking for beginning of object key string"),
        ("trailing comma", "looking for beginning of value"),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("trailing characters", "after top-level value"),
        ("expected ident", "in literal"),
        ("invalid escape", "in string escape code"),
        ("control character", "in string literal"),
        ("invalid number", "in numeric literal"),
    ];
    PLACES.iter().find(|(ours, _)| text.starts_with(ours)).map(|(_, upstream)| *upstream)
}

fn character(bytes: &[u8], error: &serde_json::Error) -> String {
    let line = bytes.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    match line.get(error.column().saturating_sub(1)) {
        Some(b'\'') => r"'\''".to_owned(),
        Some(b) => format!("'{}'", char::from(*b).escape_default()).replace("\\\"", "\""),
        None => r"'\n'".to_owned(),
    }
}
