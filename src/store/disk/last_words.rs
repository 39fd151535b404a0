//! What is said when the engine meets damage with a panic and panics abort, as they do in a release: nothing can be caught
//! then, and a dump of the engine's insides helps nobody.

use std::panic::{self, PanicHookInfo};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

use crate::OpenError;

/// The database that is being opened. sled panics on threads of its own, too.
static OPENING: Mutex<Option<PathBuf>> = Mutex::new(None);

/// While this lives, a panic ends the process with one line about the file that is being opened.
pub(crate) struct Opening;

impl Opening {
    pub(crate) fn of(file: &Path) -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |what| speak(what, &before)));
        });
        *OPENING.lock().unwrap_or_else(PoisonError::into_inner) = Some(file.to_path_buf());
        Self
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        *OPENING.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn speak(what: &PanicHookInfo<'_>, before: &dyn Fn(&PanicHookInfo<'_>)) {
    let opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(file) = opening else { return before(what) };
    let place = what.location().map_or_else(String::new, |place| format!(" ({}:{})", place.file(), place.line()));
    let detail = format!("the engine gave up reading it{place}");
    eprintln!("mussel: {}", OpenError::Corrupt { file, detail });
    std::process::exit(1);
}
