//! `/logs/`: the files below `/var/log`, as upstream serves them to administrators.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path as FsPath;

use axum::body::Body;
use axum::extract::Path;
use axum::response::{Html, IntoResponse as _, Response};
use http::StatusCode;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::refuse;

const DIR: &str = "/var/log";
/// A larger file is served up to here.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

pub async fn root() -> Response {
    list(FsPath::new(DIR))
}

pub async fn entry(Path(path): Path<String>) -> Response {
    // The kernel keeps the path below the directory, whatever links are there.
    let opened = fs::File::open(DIR).ok().and_then(|dir| {
        let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK);
        let how = how.resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(dir.as_fd(), FsPath::new(path.trim_end_matches('/')), how).ok()
    });
    let Some(file) = opened.map(fs::File::from) else {
        return refuse(StatusCode::NOT_FOUND, "404 page not found");
    };
    match file.metadata() {
        Ok(meta) if meta.is_dir() => list(&FsPath::new(DIR).join(&path)),
        Ok(meta) if meta.is_file() => {
            use tokio::io::AsyncReadExt as _;
            let reader = tokio::fs::File::from_std(file).take(BYTES_MAX);
            let mut response = Response::new(Body::from_stream(tokio_util::io::ReaderStream::new(reader)));
            let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
            response
        }
        _ => refuse(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

fn list(dir: &FsPath) -> Response {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            if e.file_type().is_ok_and(|t| t.is_dir()) { format!("{name}/") } else { name }
        })
        .collect();
    names.sort();
    let escape = |t: &str| t.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
    let lines: String = names.iter().map(|n| format!("<a href=\"{0}\">{0}</a>\n", escape(n))).collect();
    Html(format!("<!doctype html>\n<pre>\n{lines}</pre>\n")).into_response()
}
