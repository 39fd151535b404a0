//! Container logs in CRI format: one line of `<time> <stream> <P|F> <text>` for each piece of output.

pub mod links;
mod read;
mod rotate;

pub use read::{Options, stream};
pub use rotate::{has_long, rotate};

/// One line of a log file, without its end.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Line<'a> {
    pub time: &'a str,
    pub stream: &'a str,
    /// The rest of the text follows in the next line.
    pub partial: bool,
    pub text: &'a [u8],
}

pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = parts.next()?;
    let text = parts.next().unwrap_or_default();
    if time.is_empty() || !matches!(stream, "stdout" | "stderr") {
        return None;
    }
    let partial = tags.split(|b| *b == b':').next() == Some(b"P");
    Some(Line { time, stream, partial, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cri_lines() {
        let line = parse(b"2026-01-02T03:04:05.6Z stdout F hello  world").unwrap();
        assert_eq!((line.stream, line.partial, line.text), ("stdout", false, &b"hello  world"[..]));
        assert!(parse(b"2026-01-02T03:04:05.6Z stderr P x").unwrap().partial);
        assert_eq!(parse(b"2026-01-02T03:04:05.6Z stdout F ").unwrap().text, b"");
        for bad in [&b"nonsense"[..], b"", b"t other F x"] {
            assert_eq!(parse(bad), None);
        }
    }
}
