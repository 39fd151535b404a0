//! Volumes of pods: made before the first container, kept current while the pod runs, removed after the last one.

mod atomic;
mod host;
pub mod local_path;
mod projected;
mod subpath;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::{Api, Client};
use mussel_api::quantity::Quantity;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::fields::NodeFacts;
use crate::objects::Objects;
use crate::tokens::Tokens;
use crate::{pod, resources};

pub use subpath::bind as bind_sub_path;

/// A volume that is ready to be mounted into containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    pub path: PathBuf,
    pub read_only: bool,
    /// An image volume: the runtime mounts it.
    pub image: Option<String>,
}

#[derive(Debug, Default, Clone)]
pub struct Ready {
    pub volumes: HashMap<String, Mounted>,
    /// When something in them must be renewed.
    pub renew_at: Option<Timestamp>,
}

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{0}")]
    Object(#[from] crate::objects::ObjectError),
    #[error("{0}")]
    Token(#[from] crate::tokens::TokenError),
    #[error("references non-existent {kind} key: {key}")]
    Key { kind: &'static str, key: String },
    #[error("{0}")]
    Field(#[from] crate::fields::FieldError),
    #[error("hostPath type check failed: {0}")]
    HostPath(String),
    #[error("{0}")]
    Claim(String),
    #[error("no volume plugin matched")]
    Unsupported,
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

fn on<T, E: Into<io::Error>>(what: impl std::fmt::Display, result: Result<T, E>) -> Result<T, VolumeError> {
    result.map_err(|e| VolumeError::Io { what: what.to_string(), source: e.into() })
}

/// One volume failed; the others are set up.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
pub struct SetUpError {
    pub volume: String,
    pub source: VolumeError,
}

pub struct Volumes {
    pub client: Client,
    pub objects: Objects,
    pub tokens: Tokens,
    pub pods_dir: PathBuf,
}

/// What the sources of a projected volume are read from.
pub(crate) struct Context<'a> {
    pub pod: &'a Pod,
    pub facts: &'a NodeFacts,
    pub now: Timestamp,
}

impl Volumes {
    /// Makes or refreshes every volume of the pod. A repeat changes only what has changed.
    pub async fn set_up(&self, pod: &Pod, facts: &NodeFacts, now: Timestamp) -> Result<Ready, SetUpError> {
        let context = Context { pod, facts, now };
        let mut ready = Ready::default();
        for volume in pod::spec(pod).and_then(|s| s.volumes.as_ref()).into_iter().flatten() {
            let mounted = self
                .one(&context, volume, &mut ready.renew_at)
                .await
                .map_err(|source| SetUpError { volume: volume.name.clone(), source })?;
            ready.volumes.insert(volume.name.clone(), mounted);
        }
        Ok(ready)
    }

    async fn one(
        &self,
        context: &Context<'_>,
        volume: &Volume,
        renew_at: &mut Option<Timestamp>,
    ) -> Result<Mounted, VolumeError> {
        let pod = context.pod;
        let dir = |plugin: &str| {
            self.pods_dir.join(pod::uid(pod)).join("volumes").join(format!("kubernetes.io~{plugin}")).join(&volume.name)
        };
        let group = fs_group(pod);
        if let Some(source) = &volume.empty_dir {
            let path = dir("empty-dir");
            let memory = source.medium.as_deref() == Some("Memory");
            let limit = source.size_limit.as_ref().and_then(|q| Quantity::try_from(q).ok()).filter(|q| !q.is_zero());
            let limit = match (limit, resources::pod_limit(pod, "memory")) {
                (Some(own), Some(pod)) => Some(own.min(pod)),
                (own, pod) => own.or(pod),
            };
            empty_dir(&path, memory, limit.map(|l| l.value()), group)?;
            return Ok(Mounted { path, read_only: false, image: None });
        }
        if let Some(source) = &volume.host_path {
            host::check(Path::new(&source.path), source.type_.as_deref().unwrap_or_default())?;
            return Ok(Mounted { path: PathBuf::from(&source.path), read_only: false, image: None });
        }
        if let Some(image) = &volume.image {
            let image = image.reference.clone().unwrap_or_default();
            return Ok(Mounted { path: PathBuf::new(), read_only: true, image: Some(image) });
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            let read_only = claim.read_only.unwrap_or(false);
            return self.claim(context, &claim.claim_name, read_only, group).await;
        }
        if volume.ephemeral.is_some() {
            let name = format!("{}-{}", pod::name(pod), volume.name);
            return self.claim(context, &name, false, group).await;
        }
        let (plugin, files) = if let Some(source) = &volume.config_map {
            ("configmap", projected::config_map(self, context, source).await?)
        } else if let Some(source) = &volume.secret {
            ("secret", projected::secret(self, context, source).await?)
        } else if let Some(source) = &volume.downward_api {
            ("downward-api", projected::downward(context, source)?)
        } else if let Some(source) = &volume.projected {
            ("projected", projected::projected(self, context, source, renew_at).await?)
        } else {
            return Err(VolumeError::Unsupported);
        };
        let path = dir(plugin);
        let target = path.clone();
        // Secrets never touch the disk.
        let memory = plugin != "configmap";
        let written = tokio::task::spawn_blocking(move || {
            data_dir(&target, memory)?;
            on(format_args!("write {}", target.display()), atomic::write(&target, &files, group))
        });
        match written.await {
            Ok(result) => result?,
            Err(e) => return Err(VolumeError::Io { what: "write volume".into(), source: io::Error::other(e) }),
        };
        Ok(Mounted { path, read_only: true, image: None })
    }

    /// Claims bound to directories of this node.
    async fn claim(
        &self,
        context: &Context<'_>,
        name: &str,
        read_only: bool,
        group: Option<u32>,
    ) -> Result<Mounted, VolumeError> {
        let namespace = pod::namespace(context.pod);
        let copy = self.pods_dir.join(pod::uid(context.pod)).join(format!("claim-{name}"));
        let found = self.resolve_claim(namespace, name).await;
        let path = match found {
            Ok(path) => {
                // The copy lets the pod come back after a reboot without a server.
                if fs::read_to_string(&copy).ok().as_deref() != path.to_str() {
                    let _ = crate::objects::write_private(&copy, path.as_os_str().as_encoded_bytes());
                }
                path
            }
            Err((error, lasting)) => match fs::read_to_string(&copy) {
                Ok(path) if !lasting => PathBuf::from(path),
                _ => return Err(error),
            },
        };
        if !path.is_dir() {
            on(format_args!("create {}", path.display()), fs::create_dir_all(&path))?;
        }
        if let Some(group) = group.filter(|_| !read_only) {
            let always = pod::spec(context.pod)
                .and_then(|s| s.security_context.as_ref())
                .and_then(|s| s.fs_group_change_policy.as_deref())
                != Some("OnRootMismatch");
            let meta = on(path.display(), fs::metadata(&path))?;
            if always || meta.gid() != group || meta.mode() & 0o2000 == 0 {
                let target = path.clone();
                let done = tokio::task::spawn_blocking(move || own(&target, group)).await;
                on(path.display(), done.unwrap_or_else(|e| Err(io::Error::other(e))))?;
            }
        }
        Ok(Mounted { path, read_only, image: None })
    }

    /// The flag says whether the API gave a clear answer.
    async fn resolve_claim(&self, namespace: &str, name: &str) -> Result<PathBuf, (VolumeError, bool)> {
        let failed = |e: kube::Error| {
            let lasting = matches!(&e, kube::Error::Api(s) if s.code == 404 || s.code == 403);
            (VolumeError::Claim(e.to_string()), lasting)
        };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let claim = claims.get(name).await.map_err(failed)?;
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let volume = claim.spec.and_then(|s| s.volume_name).filter(|v| !v.is_empty() && bound);
        let Some(volume) = volume else {
            return Err((VolumeError::Claim(format!("PersistentVolumeClaim is not bound: \"{name}\"")), true));
        };
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let spec = volumes.get(&volume).await.map_err(failed)?.spec.unwrap_or_default();
        if let Some(source) = spec.host_path {
            host::check(Path::new(&source.path), source.type_.as_deref().unwrap_or_default()).map_err(|e| (e, true))?;
            return Ok(PathBuf::from(source.path));
        }
        match spec.local {
            Some(local) if Path::new(&local.path).exists() => Ok(PathBuf::from(local.path)),
            Some(local) => Err((VolumeError::Claim(format!("path \"{}\" does not exist", local.path)), true)),
            None => Err((VolumeError::Unsupported, true)),
        }
    }

    /// Removes all that the pod had on this node. Errors are collected: what can be removed is.
    pub async fn tear_down(&self, uid: &str) -> io::Result<()> {
        self.objects.release(uid);
        self.tokens.release(uid);
        let dir = self.pods_dir.join(uid);
        tokio::task::spawn_blocking(move || remove_pod_dir(&dir)).await.unwrap_or_else(|e| Err(io::Error::other(e)))
    }
}

/// Unmounts everything below a pod's directory, deepest first, and only then removes files: never through a mount.
pub fn remove_pod_dir(dir: &Path) -> io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let mut mounts = mounts_below(dir)?;
    mounts.sort_by_key(|m| std::cmp::Reverse(m.as_os_str().len()));
    for target in mounts {
        umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    if !mounts_below(dir)?.is_empty() {
        return Err(io::Error::other(format!("mounts remain below {}", dir.display())));
    }
    fs::remove_dir_all(dir)
}

fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let dir = fs::canonicalize(dir)?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(|p| PathBuf::from(unescape(p)));
    Ok(points.filter(|p| p.starts_with(&dir)).collect())
}

/// mountinfo writes blanks as `\040`.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(code) => {
                out.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

pub fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod::spec(pod)?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else { return Ok(true) };
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

fn empty_dir(path: &Path, memory: bool, limit: Option<i64>, group: Option<u32>) -> Result<(), VolumeError> {
    let shown = path.display();
    let fresh = !path.is_dir();
    on(&shown, fs::create_dir_all(path))?;
    let mut made = fresh;
    if memory && !on(&shown, is_mount_point(path))? {
        let options = limit.map(|l| format!("size={l}"));
        let done = mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), options.as_deref());
        on(format_args!("mount tmpfs on {shown}"), done)?;
        made = true;
    }
    if made {
        // As upstream, which leaves a tmpfs its sticky bit.
        let mut mode = if memory { 0o1777 } else { 0o777 };
        if let Some(group) = group {
            on(&shown, chown(path, None, Some(group)))?;
            mode |= 0o2000;
        }
        on(&shown, fs::set_permissions(path, fs::Permissions::from_mode(mode)))?;
    }
    Ok(())
}

fn data_dir(path: &Path, memory: bool) -> Result<(), VolumeError> {
    let shown = path.display();
    on(&shown, fs::create_dir_all(path))?;
    if memory && !on(&shown, is_mount_point(path))? {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let done = mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("mode=0755"));
        on(format_args!("mount tmpfs on {shown}"), done)?;
    }
    Ok(())
}

/// Gives a tree to a group: it may read and write, and new files are the group's too.
fn own(path: &Path, group: u32) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.file_type().is_symlink() {
        return std::os::unix::fs::lchown(path, None, Some(group));
    }
    chown(path, None, Some(group))?;
    let extra = if meta.is_dir() { 0o2770 } else { 0o660 };
    fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o7777 | extra))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), group)?;
        }
    }
    Ok(())
}
