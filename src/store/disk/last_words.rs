//! What is said when the engine meets damage, or a failing disk, with a panic and panics abort, as they do in a release:
//! nothing can be caught then, and a dump of the engine's insides helps nobody.

use std::panic::{self, PanicHookInfo};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use crate::OpenError;
use crate::disk::thread::DISK_THREAD;

/// sled's threads are named so, with a number.
const ENGINE_THREADS: &str = "sled-io-";

#[derive(Clone)]
enum Doing {
    /// Whoever panics then does so because of the file. sled panics on threads of its own, too.
    Opening(PathBuf),
    /// Opened; panics of the threads that write it are about it.
    Using(PathBuf),
}

static DOING: Mutex<Option<Doing>> = Mutex::new(None);

fn set(doing: Doing) {
    *DOING.lock().unwrap_or_else(PoisonError::into_inner) = Some(doing);
}

/// While this lives, a panic ends the process with one line about the file that is being opened; afterwards a panic of the
/// engine does.
pub(crate) struct Opening(PathBuf);

impl Opening {
    pub(crate) fn of(file: &Path) -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |what| speak(what, &before)));
        });
        set(Doing::Opening(file.to_path_buf()));
        Self(file.to_path_buf())
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        set(Doing::Using(std::mem::take(&mut self.0)));
    }
}

fn speak(what: &PanicHookInfo<'_>, before: &dyn Fn(&PanicHookInfo<'_>)) {
    // Not what the panic says: it may show what is stored.
    let place = what.location().map_or_else(String::new, |place| format!(" ({}:{})", place.file(), place.line()));
    let doing = DOING.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let thread = thread::current();
    let is_engine = thread.name().is_some_and(|name| name == DISK_THREAD || name.starts_with(ENGINE_THREADS));
    match doing {
        Some(Doing::Opening(file)) => {
            let detail = format!("the engine gave up reading it{place}");
            eprintln!("mussel: {}", OpenError::Corrupt { file, detail });
        }
        Some(Doing::Using(file)) if is_engine => {
            let file = file.display();
            eprintln!(
                "mussel: the engine gave up writing store file {file}{place}; look after its disk, and start again"
            );
        }
        _ => return before(what),
    }
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::disk::engine::{Engine, SEGMENT_BYTES, Space, Writes};
    use crate::disk::inspect;
    use crate::disk::lock::DirLock;
    use crate::disk::tail::{HEADER_BYTES, Header};
    use crate::sim::random::Random;

    const DIR: &str = "MUSSEL_STORE_TEST_DAMAGED_DIR";
    const WRITES: &str = "MUSSEL_STORE_TEST_PANICS";

    /// Not a test by itself: a process in which a panic ends as it does where panics abort, since the hook comes first.
    #[test]
    fn child() {
        let Some(dir) = std::env::var_os(DIR) else { return };
        let dir = Path::new(&dir);
        let opening = Opening::of(&dir.join("sled/db"));
        let (_engine, _) = Engine::open(dir, 1 << 20, DirLock::take(dir).unwrap()).unwrap();
        drop(opening);
        if std::env::var_os(WRITES).is_some() {
            let other = thread::spawn(|| panic!("nothing of the engine's")).join();
            assert!(other.is_err());
            let disk = thread::Builder::new().name(DISK_THREAD.to_string());
            let _ = disk.spawn(|| panic!("with secrets")).unwrap().join();
        }
    }

    fn last_words(dir: &Path, writes: bool) -> (Option<i32>, String) {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["disk::last_words::tests::child", "--exact", "--nocapture"]).env(DIR, dir);
        if writes {
            child.env(WRITES, "1");
        }
        let output = child.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    fn filled(dir: &Path) {
        let (engine, _) = Engine::open(dir, 1 << 20, DirLock::take(dir).unwrap()).unwrap();
        let random = Random::new(1);
        for n in 0..40u8 {
            let mut writes = Writes::default();
            writes.put(Space::State, &[n], (0..30_000).map(|_| random.next() as u8).collect());
            engine.write(&writes).unwrap();
        }
    }

    #[test]
    fn damage_that_the_engine_does_not_bear_ends_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let db = dir.path().join("sled/db");
        assert_eq!(last_words(dir.path(), false).0, Some(0), "it opens while it is whole");
        // A segment that is there twice: each of the two is valid by itself.
        let mut bytes = fs::read(&db).unwrap();
        bytes.resize(bytes.len().next_multiple_of(SEGMENT_BYTES), 0);
        let header =
            |bytes: &[u8]| Header::read(bytes.first_chunk::<HEADER_BYTES>().unwrap()).map(|header| header.begins);
        let newest = (0..bytes.len()).step_by(SEGMENT_BYTES).max_by_key(|from| header(&bytes[*from..])).unwrap();
        bytes.extend_from_within(newest..newest + SEGMENT_BYTES);
        fs::write(&db, &bytes).unwrap();
        inspect::inspect(&db, dir.path(), true).unwrap();
        let (code, said) = last_words(dir.path(), false);
        assert_eq!(code, Some(1), "{said}");
        let [line] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
        assert!(
            line.starts_with(&format!("mussel: store file {} is corrupt: the engine gave up", db.display())),
            "{line}"
        );
        assert!(line.contains("restore it from a backup"), "{line}");
        assert!(fs::read(&db).unwrap() == bytes, "the file was changed");
    }

    #[test]
    fn a_panic_of_the_engine_ends_in_one_line_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let (code, said) = last_words(dir.path(), true);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("nothing of the engine's"), "the usual words: {said}");
        let last = said.lines().last().unwrap();
        assert!(last.starts_with("mussel: the engine gave up writing store file"), "{said}");
        assert!(!said.contains("with secrets"), "{said}");
    }
}
