//! The last words of a container: its termination message file, or the end of its log.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::PoisonError;

use k8s_openapi::api::core::v1::Container;
use mussel_cri::v1::ContainerState;

use super::Worker;
use crate::labels;
use crate::logs;
use crate::observed::Seen;

const MESSAGE_BYTES_MAX: u64 = 4096;
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;

impl Worker {
    pub(super) fn last_words(&self, _: &Container, seen: &Seen) -> Option<String> {
        if seen.state() != ContainerState::ContainerExited {
            return None;
        }
        let mut known = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(message) = known.get(seen.id()) {
            return message.clone();
        }
        if known.len() > 256 {
            known.clear();
        }
        let message = read(seen).or_else(|| {
            // After a restart the file may be gone, but the API still has it.
            let id = seen.id();
            let all = self.status.container_statuses.iter().chain(self.status.init_container_statuses.iter());
            all.flatten()
                .flat_map(|s| [s.state.as_ref(), s.last_state.as_ref()])
                .flatten()
                .filter_map(|s| s.terminated.as_ref())
                .find(|t| t.container_id.as_deref().is_some_and(|c| c.ends_with(id)))
                .and_then(|t| t.message.clone())
        });
        known.insert(seen.id().to_owned(), message.clone());
        message
    }
}

fn read(seen: &Seen) -> Option<String> {
    let path = seen.status.annotations.get(labels::TERMINATION_PATH)?;
    let mount = seen.status.mounts.iter().find(|m| m.container_path == *path);
    let file = mount.and_then(|m| head(&m.host_path)).filter(|t| !t.is_empty());
    let fall_back =
        seen.status.annotations.get(labels::TERMINATION_POLICY).map(String::as_str) == Some("FallbackToLogsOnError");
    if file.is_none() && fall_back && seen.status.exit_code != 0 {
        return tail(&seen.status.log_path);
    }
    file
}

fn head(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn tail(path: &str) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // Each line carries a time and a stream name besides its text.
    let window = u64::try_from(LOG_BYTES_MAX + LOG_LINES_MAX * 64).ok()?;
    let start = length.saturating_sub(window);
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut bytes = Vec::new();
    file.take(window).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let skip = usize::from(start > 0);
    let lines: Vec<&str> = text.lines().skip(skip).collect();
    let from = lines.len().saturating_sub(LOG_LINES_MAX);
    let mut out = String::new();
    for line in &lines[from..] {
        if let Some(line) = logs::parse(line.as_bytes()) {
            out.push_str(&String::from_utf8_lossy(line.text));
            if !line.partial {
                out.push('\n');
            }
        }
    }
    let cut = out.len().saturating_sub(LOG_BYTES_MAX);
    let cut = (cut..=out.len()).find(|i| out.is_char_boundary(*i)).unwrap_or(0);
    Some(out.split_off(cut)).filter(|t| !t.is_empty())
}
