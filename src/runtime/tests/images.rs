//! Images from archives and from a real registry (Debian's docker-registry, on loopback).

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mussel_cri::v1;
use mussel_cri::v1::image_service_server::ImageService;
use mussel_runtime::image::{ImageSource, ResolveError};
use mussel_runtime::images::folder::{self, Outcome};
use mussel_runtime::images::registries::Registries;
use mussel_runtime::images::{Images, ImportError};
use tokio_util::sync::CancellationToken;
use tonic::Request;

/// The archives of tests/images/build.py; `None` where they cannot be built.
fn archives(dir: &Path) -> Option<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    let out = dir.join("archives");
    let built = build(&[out.to_str().unwrap()]);
    if built.is_none() {
        eprintln!("skipped: needs python3 and busybox-static");
    }
    built.map(|_| out)
}

fn build(args: &[&str]) -> Option<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/images/build.py");
    let output = Command::new("python3").arg(script).args(args).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn open(dir: &Path) -> Images {
    Images::open(&dir.join("images"), Registries::default()).unwrap()
}

async fn list(images: &Images) -> Vec<v1::Image> {
    images.list_images(Request::new(v1::ListImagesRequest::default())).await.unwrap().into_inner().images
}

async fn remove(images: &Images, name: &str) {
    let image = Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
    images.remove_image(Request::new(v1::RemoveImageRequest { image })).await.unwrap();
}

fn layers(dir: &Path) -> usize {
    fs::read_dir(dir.join("images/layers")).unwrap().count()
}

#[tokio::test]
async fn archives_of_both_formats_are_imported_and_share_layers() {
    let dir = tempfile::tempdir().unwrap();
    let Some(archives) = archives(dir.path()) else { return };
    let images = open(dir.path());
    assert_eq!(images.import(&archives.join("busybox.tar"), false).await.unwrap(), ["mussel.test/busybox:1"]);
    assert_eq!(images.import(&archives.join("web.tar.gz"), false).await.unwrap(), ["mussel.test/web:1"]);
    assert_eq!(layers(dir.path()), 2, "the base layer is kept once");

    let web = images.resolve("mussel.test/web:1").await.unwrap();
    assert_eq!(web.config.entrypoint, ["/web"]);
    assert!(web.reference.starts_with("mussel.test/web@sha256:"), "{}", web.reference);
    assert_eq!(web.layers.len(), 2);
    assert!(web.layers[0].join("web").is_file(), "the topmost layer comes first");
    let shell = fs::metadata(web.layers[1].join("bin/sh")).unwrap();
    assert_eq!((shell.mode() & 0o777, shell.nlink() > 1), (0o755, true));
    assert_eq!(fs::metadata(web.layers[1].join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(web.layers[1].join("home/app")).unwrap().uid(), 1000);

    // A process that starts anew finds them.
    let images = open(dir.path());
    let listed = list(&images).await;
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|image| image.id.starts_with("sha256:") && image.size > 1_000_000));
    assert_eq!(images.resolve(&web.id).await.unwrap().id, web.id);

    remove(&images, "mussel.test/busybox:1").await;
    assert_eq!(layers(dir.path()), 2, "the web image still needs the base layer");
    remove(&images, &web.id).await;
    remove(&images, &web.id).await;
    assert_eq!(layers(dir.path()), 0);
    assert!(matches!(images.resolve("mussel.test/web:1").await, Err(ResolveError::NotFound(_))));
}

#[tokio::test]
async fn broken_archives_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(archives) = archives(dir.path()) else { return };
    let images = open(dir.path());
    let whole = fs::read(archives.join("busybox.tar")).unwrap();
    let broken = archives.join("broken.tar");
    for (bytes, what) in [(&whole[..whole.len() / 2], "half"), (&b"not a tar"[..], "text"), (&[][..], "nothing")] {
        fs::write(&broken, bytes).unwrap();
        assert!(images.import(&broken, false).await.is_err(), "{what}");
    }
    let mut changed = whole.clone();
    let at = changed.windows(8).position(|window| window == b"app:x:10").unwrap();
    changed[at] = b'b';
    fs::write(&broken, changed).unwrap();
    assert!(matches!(images.import(&broken, false).await, Err(ImportError::Layer(_))), "one byte differs");
    assert_eq!((list(&images).await.len(), layers(dir.path())), (0, 0));
}

#[tokio::test]
async fn the_folder_is_imported_at_start_and_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let Some(archives) = archives(dir.path()) else { return };
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::copy(archives.join("busybox.tar"), folder.join("a.tar")).unwrap();
    let whole = fs::read(archives.join("web.tar.gz")).unwrap();
    fs::write(folder.join("b.tar.gz"), &whole[..1000]).unwrap();

    let images = open(dir.path());
    let (tell, mut told) = tokio::sync::mpsc::channel(16);
    let (started, is_started) = tokio::sync::oneshot::channel();
    let stop = CancellationToken::new();
    let running = tokio::spawn(folder::run(
        images.clone(),
        folder.clone(),
        move |outcome| tell.try_send(outcome).unwrap(),
        move || started.send(()).unwrap(),
        stop.clone(),
    ));
    is_started.await.unwrap();
    assert!(matches!(told.recv().await, Some(Outcome::Imported { .. })));
    assert!(matches!(told.recv().await, Some(Outcome::Failed { archive, .. }) if archive.ends_with("b.tar.gz")));
    fs::write(folder.join("b.tar.gz"), &whole).unwrap();
    let outcome = tokio::time::timeout(Duration::from_secs(30), told.recv()).await.unwrap();
    assert!(matches!(outcome, Some(Outcome::Imported { images, .. }) if images == ["mussel.test/web:1"]));
    stop.cancel();
    running.await.unwrap();
}

/// Debian's registry on a free port of loopback, ended when dropped.
struct Registry {
    process: Child,
    host: String,
}

impl Registry {
    fn start(dir: &Path) -> Option<Self> {
        if Command::new("docker-registry").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("skipped: needs docker-registry");
            return None;
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
            http: {{addr: \"127.0.0.1:{port}\"}}\n",
            dir.join("registry").display()
        );
        fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let registry = Self { process: process.unwrap(), host: format!("127.0.0.1:{port}") };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&registry.host).is_err() {
            assert!(Instant::now() < deadline, "the registry does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn images_are_pulled_by_tag_and_digest() {
    // Once for the process; the binary does it in main.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let Some(archives) = archives(dir.path()) else { return };
    let Some(registry) = Registry::start(dir.path()) else { return };
    let digest = build(&[archives.to_str().unwrap(), "--push", &registry.host]).unwrap();
    let images = open(dir.path());
    let name = format!("{}/busybox:pulled", registry.host);
    let id = images.pull(&name, None).await.unwrap();
    assert_eq!(images.pull(&name, None).await.unwrap(), id, "a repeat changes nothing");
    let image = images.resolve(&name).await.unwrap();
    assert_eq!(image.reference, format!("{}/busybox@{digest}", registry.host));
    assert!(image.layers[0].join("bin/sh").is_file());
    let by_digest = format!("{}/busybox@{digest}", registry.host);
    assert_eq!(images.pull(&by_digest, None).await.unwrap(), id);
    assert_eq!(list(&images).await.len(), 1);

    let absent = images.pull(&format!("{}/busybox:absent", registry.host), None).await.unwrap_err();
    assert!(absent.to_string().contains("not found"), "{absent}");
    assert!(images.pull("Not A Name", None).await.is_err());
    assert!(fs::read_dir(dir.path().join("images/aside")).unwrap().next().is_none(), "nothing is left over");

    // The same image through a mirror that knows it under another name.
    let registries = dir.path().join("registries.yaml");
    let text = format!(
        "mirrors:\n  apps.example:\n    endpoint: [\"http://{}\"]\n    rewrite: {{\"^team/(.*)\": \"$1\"}}\n",
        registry.host
    );
    fs::write(&registries, text).unwrap();
    let images = Images::open(&dir.path().join("other"), Registries::load(&registries).unwrap()).unwrap();
    assert_eq!(images.pull("apps.example/team/busybox:pulled", None).await.unwrap(), id);
    assert!(images.resolve("apps.example/team/busybox:pulled").await.is_ok());
}
