//! Values that do not compress, and file systems of a test's own, on loop devices. Those need root; a test that cannot have
//! one says that it was skipped.

use std::process::{Command, Stdio};

use bytes::Bytes;

/// `length` bytes, or eight if that is more, that begin with `n` and do not compress.
pub fn noise(n: u64, length: usize) -> Bytes {
    let mut bytes = n.to_le_bytes().to_vec();
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.push((state >> 32) as u8);
    }
    bytes.into()
}

pub fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Unmounts when dropped.
pub struct Mounted(String);

impl Mounted {
    pub fn new(args: &[&str], at: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        run("mount", &[args, &[at]].concat()).then(|| Self(at.to_string()))
    }

    /// An ext4 of `size` in the file `image`, of which root may use all.
    pub fn ext4(image: &str, size: &str, at: &str) -> Option<Self> {
        let made = run("truncate", &["-s", size, image]) && run("mkfs.ext4", &["-q", "-F", "-m", "0", image]);
        let mounted = made.then(|| Self::new(&["-o", "loop", image], at)).flatten();
        if mounted.is_none() {
            eprintln!("SKIPPED: needs root, mkfs.ext4 and a free loop device");
        }
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !run("umount", &[&self.0]) {
            run("umount", &["-l", &self.0]);
        }
    }
}
