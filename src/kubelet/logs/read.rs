//! Reading a container's log for `kubectl logs`: from where, how much, and on as it grows.
//!
//! Following waits for the kernel to say that the directory changed (inotify), not for a timer.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncSeekExt as _, BufReader};
use tokio::sync::mpsc;

use super::parse;

/// A longer line is no line of a runtime.
const LINE_BYTES_MAX: usize = 1024 * 1024;
const BLOCK: u64 = 16 * 1024;

#[derive(Debug, Clone, Default)]
pub struct Options {
    pub follow: bool,
    pub timestamps: bool,
    pub since: Option<Timestamp>,
    pub tail: Option<u64>,
    pub limit_bytes: Option<u64>,
    /// `Stdout`, `Stderr` or all.
    pub stream: Option<&'static str>,
}

/// Sends the log in pieces until its end, or until nobody listens. `alive` says whether more may come; `change` ends
/// when that may have changed.
pub async fn stream<A, C, AF, CF>(
    path: PathBuf,
    options: Options,
    out: mpsc::Sender<std::io::Result<Bytes>>,
    alive: A,
    change: C,
) where
    A: Fn() -> AF,
    AF: Future<Output = bool>,
    C: Fn() -> CF,
    CF: Future<Output = ()>,
{
    if let Err(error) = send(&path, &options, &out, &alive, &change).await {
        let _ = out.send(Err(error)).await;
    }
}

async fn send<AF, CF>(
    path: &Path,
    options: &Options,
    out: &mpsc::Sender<std::io::Result<Bytes>>,
    alive: &impl Fn() -> AF,
    change: &impl Fn() -> CF,
) -> std::io::Result<()>
where
    AF: Future<Output = bool>,
    CF: Future<Output = ()>,
{
    // Before the first read, so that nothing falls between reading and waiting.
    let mut changes = if options.follow {
        let inotify = Inotify::init()?;
        let dir = path.parent().unwrap_or(path);
        inotify.watches().add(dir, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)?;
        Some(inotify.into_event_stream([0_u8; 4096])?)
    } else {
        None
    };
    let mut file = File::open(path).await?;
    let start = match options.tail {
        Some(lines) => tail_start(&mut file, lines).await?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start)).await?;
    let mut reader = BufReader::new(file);
    let mut left = options.limit_bytes.unwrap_or(u64::MAX);
    let mut line = Vec::new();
    // Whether the last piece was the beginning of a line: its rest gets no time of its own.
    let mut open = [false; 2];
    // Held over the rounds, so that no change is missed between them.
    let mut changed = std::pin::pin!(change());
    loop {
        let read =
            (&mut reader).take(u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX)).read_until(b'\n', &mut line).await?;
        if read == 0 || !line.ends_with(b"\n") {
            if line.len() >= LINE_BYTES_MAX {
                line.clear();
                continue;
            }
            let Some(changes) = &mut changes else {
                if !line.is_empty() {
                    emit(&line, options, &mut open, &mut left, out).await;
                }
                return Ok(());
            };
            // First the question, then one more look: what was written before the end is read.
            let more = alive().await;
            if read == 0 && reopened(path, &mut reader).await? {
                continue;
            }
            if read > 0 {
                // Half a line: its end is on the way.
                if !more {
                    emit(&line, options, &mut open, &mut left, out).await;
                    line.clear();
                    continue;
                }
            } else if !more {
                return Ok(());
            }
            tokio::select! {
                event = changes.next() => if event.is_none() { return Ok(()) },
                () = out.closed() => return Ok(()),
                // The end of a container writes nothing to its log.
                () = &mut changed => changed.set(change()),
            }
            continue;
        }
        if !emit(&line, options, &mut open, &mut left, out).await {
            return Ok(());
        }
        line.clear();
    }
}

/// Says whether more is wanted.
async fn emit(
    line: &[u8],
    options: &Options,
    open: &mut [bool; 2],
    left: &mut u64,
    out: &mpsc::Sender<std::io::Result<Bytes>>,
) -> bool {
    let Some(parsed) = parse(line.strip_suffix(b"\n").unwrap_or(line)) else { return true };
    if options.stream.is_some_and(|s| !s.eq_ignore_ascii_case(parsed.stream)) {
        return true;
    }
    if let Some(since) = options.since
        && parsed.time.parse::<Timestamp>().is_ok_and(|t| t < since)
    {
        return true;
    }
    let which = usize::from(parsed.stream == "stderr");
    let mut bytes = Vec::with_capacity(parsed.text.len() + 40);
    if options.timestamps && !open[which] {
        bytes.extend_from_slice(parsed.time.as_bytes());
        bytes.push(b' ');
    }
    bytes.extend_from_slice(parsed.text);
    if !parsed.partial {
        bytes.push(b'\n');
    }
    open[which] = parsed.partial;
    let fits = usize::try_from(*left).unwrap_or(usize::MAX);
    bytes.truncate(fits);
    *left -= u64::try_from(bytes.len()).unwrap_or(0);
    out.send(Ok(bytes.into())).await.is_ok() && *left > 0
}

/// After a rotation the path names another file. Goes on with that one.
async fn reopened(path: &Path, reader: &mut BufReader<File>) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(now) = tokio::fs::metadata(path).await else { return Ok(false) };
    let old = reader.get_ref().metadata().await?;
    if now.ino() == old.ino() && now.dev() == old.dev() {
        return Ok(false);
    }
    *reader = BufReader::new(File::open(path).await?);
    Ok(true)
}

/// The offset at which the last `lines` lines begin. A line that was written in parts counts once.
async fn tail_start(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let length = file.metadata().await?.len();
    if lines == 0 {
        return Ok(length);
    }
    let mut end = length;
    let mut found = 0;
    // The start of the physical line that is looked at, and what is known of it so far.
    let mut rest: Vec<u8> = Vec::new();
    let mut start_of_next = length;
    while end > 0 {
        let begin = end.saturating_sub(BLOCK);
        let size = usize::try_from(end - begin).unwrap_or(0);
        let mut block = vec![0; size];
        file.seek(SeekFrom::Start(begin)).await?;
        file.read_exact(&mut block).await?;
        block.extend_from_slice(&rest);
        let mut upper = block.len();
        while let Some(at) = block[..upper.saturating_sub(1)].iter().rposition(|b| *b == b'\n') {
            let line = &block[at + 1..upper];
            let offset = begin + u64::try_from(at).unwrap_or(0) + 1;
            // A full line that comes after a partial one belongs to it; counting ends of lines does it.
            if parse(line.strip_suffix(b"\n").unwrap_or(line)).is_none_or(|l| !l.partial) {
                found += 1;
                if found > lines {
                    return Ok(start_of_next);
                }
            }
            start_of_next = offset;
            upper = at + 1;
        }
        rest = block[..upper].to_vec();
        if rest.len() > LINE_BYTES_MAX {
            return Ok(start_of_next);
        }
        end = begin;
    }
    // What is left is the first line of the file.
    let first = rest.strip_suffix(b"\n").unwrap_or(&rest);
    if parse(first).is_none_or(|l| !l.partial) && found >= lines && !rest.is_empty() {
        return Ok(start_of_next);
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(text: &str, options: Options) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, text).unwrap();
        let (sender, mut receiver) = mpsc::channel(10);
        let task = tokio::spawn(stream(path, options, sender, async || false, std::future::pending));
        let mut out = String::new();
        while let Some(piece) = receiver.recv().await {
            out.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        }
        task.await.unwrap();
        out
    }

    const LOG: &str = "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stdout P tw\n\
        2026-01-01T00:00:03Z stdout F o\n2026-01-01T00:00:04Z stderr F three\n";

    #[tokio::test]
    async fn options_choose_what_is_read() {
        let tail = |n| Options { tail: Some(n), ..Default::default() };
        for (options, expected) in [
            (Options::default(), "one\ntwo\nthree\n"),
            (tail(0), ""),
            (tail(1), "three\n"),
            (tail(2), "two\nthree\n"),
            (tail(3), "one\ntwo\nthree\n"),
            (tail(9), "one\ntwo\nthree\n"),
            (Options { limit_bytes: Some(5), ..Default::default() }, "one\nt"),
            (Options { stream: Some("stderr"), ..Default::default() }, "three\n"),
            (Options { since: "2026-01-01T00:00:04Z".parse().ok(), ..Default::default() }, "three\n"),
            (Options { timestamps: true, tail: Some(1), ..Default::default() }, "2026-01-01T00:00:04Z three\n"),
        ] {
            assert_eq!(read(LOG, options.clone()).await, expected, "{options:?}");
        }
    }

    #[tokio::test]
    async fn a_long_log_is_read_from_its_end() {
        let mut text = String::new();
        for n in 0..2000 {
            text.push_str(&format!("2026-01-01T00:00:01Z stdout F line {n}\n"));
        }
        let out = read(&text, Options { tail: Some(1500), ..Default::default() }).await;
        assert_eq!(out.lines().count(), 1500);
        assert!(out.starts_with("line 500\n"), "{}", &out[..20]);
    }

    #[tokio::test]
    async fn following_sees_what_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "2026-01-01T00:00:01Z stdout F one\n").unwrap();
        let (sender, mut receiver) = mpsc::channel(10);
        let options = Options { follow: true, ..Default::default() };
        let task = tokio::spawn(stream(path.clone(), options, sender, async || true, std::future::pending));
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "one\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, b"2026-01-01T00:00:02Z stdout F two\n").unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "two\n");
        // A rotation: the same path, another file.
        std::fs::rename(&path, dir.path().join("0.log.old")).unwrap();
        std::fs::write(&path, "2026-01-01T00:00:03Z stdout F three\n").unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "three\n");
        drop(receiver);
        task.await.unwrap();
    }
}
