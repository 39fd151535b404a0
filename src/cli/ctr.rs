//! `mussel ctr`: images of the embedded runtime, through its CRI socket.

use std::path::Path;

use anyhow::{Context, bail};
use mussel_cri::v1;
use mussel_cri::v1::image_service_client::ImageServiceClient;
use mussel_runtime::images::ARCHIVE_SCHEME;
use tonic::transport::Channel;

use super::args::{CtrArgs, CtrCommand, ImagesCommand};

pub fn main(args: &CtrArgs) -> anyhow::Result<()> {
    let CtrCommand::Images(command) = &args.command;
    let socket = args.local.run_dir.join("mussel.sock");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the async runtime")?;
    runtime.block_on(async {
        if !socket.exists() {
            bail!("{} does not exist; is mussel running, and with this --run-dir?", socket.display());
        }
        let mut images = ImageServiceClient::new(mussel_cri::connect(&socket));
        match command {
            ImagesCommand::Ls { quiet } => list(&mut images, *quiet).await,
            ImagesCommand::Import { archives } => import(&mut images, archives).await,
            ImagesCommand::Rm { images: names } => remove(&mut images, names).await,
            ImagesCommand::Pull { image } => {
                println!("{}", pull(&mut images, image).await?);
                Ok(())
            }
        }
    })
}

async fn list(images: &mut ImageServiceClient<Channel>, quiet: bool) -> anyhow::Result<()> {
    let list = images.list_images(v1::ListImagesRequest::default()).await.map_err(refused).context("list images")?;
    let mut rows: Vec<[String; 3]> = Vec::new();
    for image in list.into_inner().images {
        let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
        let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        #[expect(clippy::cast_precision_loss, reason = "for people to read")]
        let size = format!("{:.1} MB", image.size as f64 / 1e6);
        match names.as_slice() {
            [] => rows.push([image.id.clone(), id, size]),
            names => rows.extend(names.iter().map(|name| [name.clone(), id.clone(), size.clone()])),
        }
    }
    rows.sort();
    if quiet {
        rows.iter().for_each(|[name, ..]| println!("{name}"));
        return Ok(());
    }
    let width = rows.iter().map(|[name, ..]| name.len()).max().unwrap_or(0).max(4);
    println!("{:width$}  {:12}  SIZE", "NAME", "ID");
    rows.iter().for_each(|[name, id, size]| println!("{name:width$}  {id:12}  {size}"));
    Ok(())
}

async fn import(images: &mut ImageServiceClient<Channel>, archives: &[impl AsRef<Path>]) -> anyhow::Result<()> {
    let mut failed = 0;
    for archive in archives.iter().map(AsRef::as_ref) {
        let imported = match archive.canonicalize() {
            Ok(path) => pull(images, &format!("{ARCHIVE_SCHEME}{}", path.display())).await,
            Err(error) => Err(error.into()),
        };
        match imported {
            Ok(names) => names.lines().for_each(|name| println!("imported {name}")),
            Err(error) => {
                eprintln!("mussel: {}: {error:#}", archive.display());
                failed += 1;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} archives not imported", archives.len());
    }
    Ok(())
}

async fn remove(images: &mut ImageServiceClient<Channel>, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        let spec = v1::ImageSpec { image: name.clone(), ..Default::default() };
        let status = v1::ImageStatusRequest { image: Some(spec.clone()), verbose: false };
        let found = images.image_status(status).await.map_err(refused)?.into_inner().image;
        if found.is_none() {
            bail!("no image {name}");
        }
        images.remove_image(v1::RemoveImageRequest { image: Some(spec) }).await.map_err(refused)?;
        println!("removed {name}");
    }
    Ok(())
}

async fn pull(images: &mut ImageServiceClient<Channel>, image: &str) -> anyhow::Result<String> {
    let spec = v1::ImageSpec { image: image.to_owned(), ..Default::default() };
    let request = v1::PullImageRequest { image: Some(spec), ..Default::default() };
    Ok(images.pull_image(request).await.map_err(refused)?.into_inner().image_ref)
}

/// What the runtime said, without gRPC's wrapping.
fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}
