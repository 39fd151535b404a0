//! Container log files in the CRI format: `<time> <stream> <P|F> <text>`, one line per line or part of one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A line longer than this is split; its parts but the last carry `P`.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// An open log file.
pub struct Log {
    path: PathBuf,
    file: File,
    /// Written at once per chunk of output, so that a line is never torn by a reader or a full disk.
    pending: Vec<u8>,
    /// A full disk is told once.
    failed: bool,
}

impl Log {
    pub fn open(path: &Path) -> io::Result<Log> {
        Ok(Log { path: path.to_owned(), file: open(path)?, pending: Vec::new(), failed: false })
    }

    /// Starts a new file after the old one was renamed. On an error the old file stays.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    fn line(&mut self, time: &str, stream: &str, complete: bool, text: &[u8]) {
        self.pending.extend_from_slice(time.as_bytes());
        self.pending.push(b' ');
        self.pending.extend_from_slice(stream.as_bytes());
        self.pending.extend_from_slice(if complete { b" F " } else { b" P " });
        self.pending.extend_from_slice(text);
        self.pending.push(b'\n');
    }

    /// Output that cannot be written is dropped: a full disk must not stop the container.
    fn flush(&mut self) {
        if let Err(error) = self.file.write_all(&self.pending)
            && !std::mem::replace(&mut self.failed, true)
        {
            eprintln!("write log {}: {error}", self.path.display());
        }
        self.pending.clear();
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Splits one output stream of a container into lines.
pub struct Lines {
    stream: &'static str,
    /// The start of a line whose end has not come yet.
    partial: Vec<u8>,
}

impl Lines {
    pub fn new(stream: &'static str) -> Lines {
        Lines { stream, partial: Vec::new() }
    }

    /// Writes what is complete in `partial + chunk`.
    pub fn write(&mut self, log: &mut Log, time: &str, mut chunk: &[u8]) {
        while let Some(end) = chunk.iter().position(|&byte| byte == b'\n') {
            self.push(log, time, &chunk[..end]);
            log.line(time, self.stream, true, &self.partial);
            self.partial.clear();
            chunk = &chunk[end + 1..];
        }
        self.push(log, time, chunk);
        log.flush();
    }

    fn push(&mut self, log: &mut Log, time: &str, mut text: &[u8]) {
        while self.partial.len() + text.len() > LINE_BYTES_MAX {
            let (head, tail) = text.split_at(LINE_BYTES_MAX - self.partial.len());
            self.partial.extend_from_slice(head);
            log.line(time, self.stream, false, &self.partial);
            self.partial.clear();
            text = tail;
        }
        self.partial.extend_from_slice(text);
    }

    /// The stream has ended; a last line without an end stays marked as partial.
    pub fn finish(&mut self, log: &mut Log, time: &str) {
        if !self.partial.is_empty() {
            log.line(time, self.stream, false, &self.partial);
            log.flush();
        }
        self.partial = Vec::new();
    }
}

/// Now, in the form that log readers expect: RFC 3339 with nine digits, UTC.
pub fn timestamp() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(chunks: &[&[u8]]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        let mut lines = Lines::new("stdout");
        for chunk in chunks {
            lines.write(&mut log, "T", chunk);
        }
        lines.finish(&mut log, "T");
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn lines_are_put_together_from_chunks() {
        assert_eq!(written(&[b"a\nb", b"c\n\n", b"end"]), "T stdout F a\nT stdout F bc\nT stdout F \nT stdout P end\n");
    }

    #[test]
    fn long_lines_are_split() {
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        let x = "x".repeat(LINE_BYTES_MAX);
        assert_eq!(written(&[&long, b"\n"]), format!("T stdout P {x}\nT stdout F x\n"));
        let exact = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(written(&[&exact, b"\n"]), format!("T stdout F {x}\n"));
    }

    #[test]
    fn a_renamed_log_is_left_alone_after_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        let mut lines = Lines::new("stderr");
        lines.write(&mut log, "T", b"a\n");
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        log.reopen().unwrap();
        lines.write(&mut log, "T", b"b\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "T stderr F b\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("old")).unwrap(), "T stderr F a\n");
    }

    #[test]
    fn timestamps_have_nine_digits() {
        assert_eq!(timestamp().len(), "2016-10-06T00:17:09.669794202Z".len());
    }
}
