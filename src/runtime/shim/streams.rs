//! The streams of one container: its output goes to the log and to whoever is attached, attached input goes to it.
//!
//! Everything is non-blocking. A reader that does not keep up holds back its own container only, and only for a while.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::log::{Lines, Log, timestamp};

/// Read at a time from a container or an attached client.
const CHUNK_BYTES: usize = 32 * 1024;

/// What may wait for one slow reader, or for a container that does not read its input.
const BACKLOG_BYTES_MAX: usize = 64 * 1024;

/// An attached reader that takes nothing for so long is let go, so that it cannot stop the container for ever.
const STUCK_READER: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Stdout,
    Stderr,
}

struct Output {
    kind: Kind,
    file: Option<File>,
    lines: Lines,
}

struct Reader {
    kind: Kind,
    file: Option<File>,
    backlog: VecDeque<u8>,
    last_progress: Instant,
}

/// See the module.
pub struct Streams {
    log: Option<Log>,
    outputs: Vec<Output>,
    readers: Vec<Reader>,
    /// Where the container reads its input, until it is closed.
    stdin: Option<File>,
    stdin_backlog: VecDeque<u8>,
    stdin_once: bool,
    /// No more input will come; the container's end is closed when the backlog is written.
    stdin_ends: bool,
    writers: Vec<Option<File>>,
    tty: Option<File>,
}

/// What a descriptor of [`Streams::interests`] is.
#[derive(Clone, Copy)]
pub enum Slot {
    Output(usize),
    Reader(usize),
    Writer(usize),
    Stdin,
}

impl Streams {
    pub fn new(log: Option<Log>, stdin_once: bool) -> Streams {
        Streams {
            log,
            outputs: Vec::new(),
            readers: Vec::new(),
            stdin: None,
            stdin_backlog: VecDeque::new(),
            stdin_once,
            stdin_ends: false,
            writers: Vec::new(),
            tty: None,
        }
    }

    pub fn add_output(&mut self, kind: Kind, fd: OwnedFd) -> io::Result<()> {
        let name = if kind == Kind::Stdout { "stdout" } else { "stderr" };
        self.outputs.push(Output { kind, file: Some(non_blocking(fd)?), lines: Lines::new(name) });
        Ok(())
    }

    pub fn set_stdin(&mut self, fd: OwnedFd) -> io::Result<()> {
        self.stdin = Some(non_blocking(fd)?);
        Ok(())
    }

    /// A terminal is output and, if the container wants it, input.
    pub fn set_tty(&mut self, master: OwnedFd, stdin: bool) -> io::Result<()> {
        self.add_output(Kind::Stdout, master.try_clone()?)?;
        if stdin {
            self.set_stdin(master.try_clone()?)?;
        }
        self.tty = Some(File::from(master));
        Ok(())
    }

    pub fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        let tty = self.tty.as_ref().ok_or_else(|| io::Error::other("the container has no terminal"))?;
        super::set_window_size(tty, width, height)
    }

    /// Adds a reader of one output stream.
    pub fn attach_reader(&mut self, kind: Kind, fd: OwnedFd) -> io::Result<()> {
        self.readers.push(Reader {
            kind,
            file: Some(non_blocking(fd)?),
            backlog: VecDeque::new(),
            last_progress: Instant::now(),
        });
        Ok(())
    }

    /// Adds a source of input. Dropped at once when the container takes none.
    pub fn attach_writer(&mut self, fd: OwnedFd) -> io::Result<()> {
        if self.stdin.is_some() {
            self.writers.push(Some(non_blocking(fd)?));
        }
        Ok(())
    }

    pub fn reopen_log(&mut self) -> io::Result<()> {
        self.log.as_mut().map_or(Ok(()), Log::reopen)
    }

    /// What to wait for: slot, descriptor, readable, writable. Descriptors with neither are watched for their end.
    pub fn interests(&self, mut add: impl FnMut(Slot, BorrowedFd<'_>, bool, bool)) {
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(file) = &output.file
                && self.has_room(output.kind)
            {
                add(Slot::Output(index), file.as_fd(), true, false);
            }
        }
        for (index, reader) in self.readers.iter().enumerate() {
            if let Some(file) = &reader.file {
                add(Slot::Reader(index), file.as_fd(), false, !reader.backlog.is_empty());
            }
        }
        if let Some(stdin) = &self.stdin {
            let full = self.stdin_backlog.len() >= BACKLOG_BYTES_MAX;
            for (index, writer) in self.writers.iter().enumerate() {
                if let (Some(file), false) = (writer, full) {
                    add(Slot::Writer(index), file.as_fd(), true, false);
                }
            }
            if !self.stdin_backlog.is_empty() {
                add(Slot::Stdin, stdin.as_fd(), false, true);
            }
        }
    }

    fn has_room(&self, kind: Kind) -> bool {
        self.readers.iter().all(|reader| reader.kind != kind || reader.backlog.len() < BACKLOG_BYTES_MAX)
    }

    /// Something happened on a descriptor.
    pub fn ready(&mut self, slot: Slot, writable: bool) {
        match slot {
            Slot::Output(index) => self.pump(index),
            Slot::Reader(index) => self.feed_reader(index, writable),
            Slot::Writer(index) => self.take_input(index),
            Slot::Stdin => self.feed_stdin(),
        }
    }

    /// Ends what has waited too long or has ended. Returns when to look again.
    pub fn sweep(&mut self) -> Option<Duration> {
        self.readers.retain(|reader| reader.file.is_some());
        self.writers.retain(Option::is_some);
        self.outputs.retain(|output| output.file.is_some());
        let mut next = None;
        self.readers.retain(|reader| {
            let waited = reader.last_progress.elapsed();
            if reader.backlog.is_empty() {
                return true;
            }
            if waited >= STUCK_READER {
                return false;
            }
            let left = STUCK_READER - waited;
            next = Some(next.map_or(left, |next: Duration| next.min(left)));
            true
        });
        next
    }

    /// Reads one chunk of output.
    fn pump(&mut self, index: usize) {
        let mut chunk = [0; CHUNK_BYTES];
        let output = &mut self.outputs[index];
        let Some(file) = &mut output.file else { return };
        match file.read(&mut chunk) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // A terminal ends with EIO.
            Ok(0) | Err(_) => self.end_output(index),
            Ok(length) => {
                let kind = output.kind;
                if let Some(log) = &mut self.log {
                    output.lines.write(log, &timestamp(), &chunk[..length]);
                }
                for reader in self.readers.iter_mut().filter(|reader| reader.kind == kind) {
                    reader.send(&chunk[..length]);
                }
            }
        }
    }

    fn end_output(&mut self, index: usize) {
        let output = &mut self.outputs[index];
        if let Some(log) = &mut self.log {
            output.lines.finish(log, &timestamp());
        }
        output.file = None;
        let kind = output.kind;
        // Who has taken everything sees the end now; the others when their backlog is empty.
        for reader in self.readers.iter_mut().filter(|reader| reader.kind == kind && reader.backlog.is_empty()) {
            reader.file = None;
        }
    }

    fn feed_reader(&mut self, index: usize, writable: bool) {
        let reader = &mut self.readers[index];
        if !writable {
            // The client hung up.
            reader.file = None;
            return;
        }
        reader.flush();
        let ended = !self.outputs.iter().any(|output| output.kind == reader.kind && output.file.is_some());
        if ended && reader.backlog.is_empty() {
            reader.file = None;
        }
    }

    fn take_input(&mut self, index: usize) {
        let mut chunk = [0; CHUNK_BYTES];
        let Some(file) = &mut self.writers[index] else { return };
        match file.read(&mut chunk) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Ok(0) | Err(_) => {
                self.writers[index] = None;
                self.stdin_ends |= self.stdin_once && self.tty.is_none();
                self.feed_stdin();
            }
            Ok(length) => {
                self.stdin_backlog.extend(&chunk[..length]);
                self.feed_stdin();
            }
        }
    }

    fn feed_stdin(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        let closed = drain(&mut self.stdin_backlog, stdin).is_err();
        if closed || (self.stdin_ends && self.stdin_backlog.is_empty()) {
            self.stdin = None;
            self.stdin_backlog = VecDeque::new();
            self.writers.clear();
        }
    }

    /// The container has exited: takes what is left in its pipes, without waiting for processes that still hold them.
    pub fn finish(&mut self) {
        for index in 0..self.outputs.len() {
            // A pipe holds no more than this many chunks unless somebody still writes.
            for _ in 0..64 {
                let Some(file) = &self.outputs[index].file else { break };
                let mut poll = [nix::poll::PollFd::new(file.as_fd(), nix::poll::PollFlags::POLLIN)];
                match nix::poll::poll(&mut poll, 0u8) {
                    Ok(0) | Err(_) => break,
                    Ok(_) => self.pump(index),
                }
            }
            if self.outputs[index].file.is_some() {
                self.end_output(index);
            }
        }
        self.stdin = None;
        self.writers.clear();
        self.tty = None;
    }
}

impl Reader {
    fn send(&mut self, chunk: &[u8]) {
        if self.file.is_none() {
            return;
        }
        if self.backlog.is_empty() {
            self.last_progress = Instant::now();
        }
        self.backlog.extend(chunk);
        self.flush();
    }

    fn flush(&mut self) {
        let Some(file) = &mut self.file else { return };
        match drain(&mut self.backlog, file) {
            Ok(0) => {}
            Ok(_) => self.last_progress = Instant::now(),
            Err(_) => {
                self.file = None;
                self.backlog = VecDeque::new();
            }
        }
    }
}

/// Writes what the other side takes now.
fn drain(backlog: &mut VecDeque<u8>, file: &mut File) -> io::Result<usize> {
    let mut total = 0;
    while !backlog.is_empty() {
        match file.write(backlog.as_slices().0) {
            Ok(written) => {
                backlog.drain(..written);
                total += written;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(total),
            Err(error) => return Err(error),
        }
    }
    // An idle shim holds no buffers.
    *backlog = VecDeque::new();
    Ok(total)
}

fn non_blocking(fd: OwnedFd) -> io::Result<File> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::pipe;

    fn run(streams: &mut Streams) {
        let mut slots = Vec::new();
        streams.interests(|slot, _, readable, writable| {
            if readable || writable {
                slots.push((slot, writable));
            }
        });
        for (slot, writable) in slots {
            streams.ready(slot, writable);
        }
        streams.sweep();
    }

    #[test]
    fn output_reaches_log_and_readers_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut streams = Streams::new(Some(Log::open(&path).unwrap()), false);
        let (out_read, out_write) = pipe().unwrap();
        let (client_read, client_write) = pipe().unwrap();
        streams.add_output(Kind::Stdout, out_read).unwrap();
        streams.attach_reader(Kind::Stdout, client_write).unwrap();
        File::from(out_write).write_all(b"hello\n").unwrap();
        run(&mut streams);
        run(&mut streams);
        let mut text = String::new();
        File::from(client_read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello\n");
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("stdout F hello\n"));
    }

    #[test]
    fn a_slow_reader_holds_back_its_container_and_no_memory() {
        let mut streams = Streams::new(None, false);
        let (out_read, out_write) = pipe().unwrap();
        let (client_read, client_write) = pipe().unwrap();
        let mut out = non_blocking(out_write).unwrap();
        streams.add_output(Kind::Stdout, out_read).unwrap();
        streams.attach_reader(Kind::Stdout, client_write).unwrap();
        let mut taken = 0;
        for _ in 0..100 {
            while let Ok(written) = out.write(&[0; 4096]) {
                taken += written;
            }
            run(&mut streams);
        }
        assert!(taken < 512 * 1024, "{taken}");
        drop(client_read);
        run(&mut streams);
        assert!(streams.readers.is_empty());
        assert!(out.write(&[0; 4096]).is_err());
        run(&mut streams);
        assert!(out.write(&[0; 4096]).is_ok());
    }

    #[test]
    fn stdin_once_closes_after_the_last_byte() {
        let mut streams = Streams::new(None, true);
        let (in_read, in_write) = pipe().unwrap();
        let (client_read, client_write) = pipe().unwrap();
        streams.set_stdin(in_write).unwrap();
        streams.attach_writer(client_read).unwrap();
        File::from(client_write).write_all(b"data").unwrap();
        run(&mut streams);
        run(&mut streams);
        let mut text = String::new();
        File::from(in_read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "data");
    }
}
