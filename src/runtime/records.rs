//! What the runtime remembers of sandboxes and containers over its own restarts: one JSON file each.
//!
//! A record is replaced by rename and not synced: after a power cut everything it could tell of is dead anyway. One
//! that does not parse is dropped with its directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use mussel_cri::v1::{ContainerConfig, PodSandboxConfig};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A CRI message in a record, in its own encoding.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded<T>(pub T);

impl<T: prost::Message> Serialize for Encoded<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD_NO_PAD.encode(self.0.encode_to_vec()))
    }
}

impl<'de, T: prost::Message + Default> Deserialize<'de> for Encoded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD_NO_PAD.decode(text).map_err(D::Error::custom)?;
        T::decode(bytes.as_slice()).map(Encoded).map_err(D::Error::custom)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: String,
    /// The boot in which it ran; in any other it is dead.
    pub boot_id: String,
    /// Nanoseconds since the epoch, as all times here.
    pub created_at: i64,
    pub config: Encoded<PodSandboxConfig>,
    pub runtime_handler: String,
    pub ready: bool,
    pub ips: Vec<String>,
    /// `None` on the node's network.
    pub netns: Option<PathBuf>,
    /// The network has been told of this sandbox and not yet of its end.
    pub network_added: bool,
    pub shim_pid: i32,
    pub pause_pid: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Created,
    Running,
    Exited,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox: String,
    pub boot_id: String,
    pub state: State,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub config: Encoded<ContainerConfig>,
    pub image_id: String,
    pub image_ref: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub stop_signal: i32,
    pub cgroup: String,
    pub log_path: Option<PathBuf>,
    pub kill_leftovers: bool,
    pub pid: Option<i32>,
}

/// One kind of record below one directory.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
    file: &'static str,
}

impl Records {
    pub fn open(dir: PathBuf, file: &'static str) -> io::Result<Records> {
        fs::create_dir_all(&dir)?;
        Ok(Records { dir, file })
    }

    /// Where everything that belongs to one record may be kept.
    pub fn dir(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    pub fn save<T: Serialize>(&self, id: &str, record: &T) -> io::Result<()> {
        let dir = self.dir(id);
        fs::create_dir_all(&dir)?;
        let temporary = dir.join(format!("{}.new", self.file));
        fs::write(&temporary, serde_json::to_vec(record)?)?;
        fs::rename(temporary, dir.join(self.file))
    }

    /// Forgets a record and removes all that is in its directory. An absent one is removed.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        remove_dir_all(&self.dir(id))
    }

    /// All that can be read, and the ids of those that cannot.
    pub fn load<T: DeserializeOwned>(&self) -> io::Result<(Vec<T>, Vec<String>)> {
        let (mut records, mut broken) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let record = fs::read(entry.path().join(self.file)).map_err(drop);
            match record.and_then(|text| serde_json::from_slice(&text).map_err(drop)) {
                Ok(record) => records.push(record),
                Err(()) => broken.push(entry.file_name().to_string_lossy().into_owned()),
            }
        }
        Ok((records, broken))
    }
}

/// As the standard function, but an absent directory is fine.
pub fn remove_dir_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_broken_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().join("sandboxes"), "sandbox.json").unwrap();
        let config = PodSandboxConfig { hostname: "a".into(), ..Default::default() };
        records.save("one", &Encoded(config.clone())).unwrap();
        fs::create_dir(records.dir("two")).unwrap();
        fs::write(records.dir("two").join("sandbox.json"), "{").unwrap();
        let (read, broken) = records.load::<Encoded<PodSandboxConfig>>().unwrap();
        assert_eq!((read, broken), (vec![Encoded(config)], vec!["two".to_owned()]));
        records.remove("one").unwrap();
        records.remove("one").unwrap();
    }
}
