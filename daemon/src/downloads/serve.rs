//! HTTP endpoint from which the builder gets a download: a path with a random name that only its build knows, valid
//! for as long as the build runs.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LAST_MODIFIED};
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;

use super::DownloadCache;
use crate::task;

/// Size of one read, in bytes.
const CHUNK: usize = 256 << 10;

pub(super) const PATH: &str = "/downloads/";

/// Files that are currently served, by random name.
#[derive(Clone, Default)]
pub(super) struct OfferedFiles(Arc<Mutex<HashMap<String, OfferedFile>>>);

struct OfferedFile {
    file: Arc<File>,
    last_modified: Option<String>,
}

/// Guard for a served file. Dropping it stops serving the file.
pub(super) struct OfferGuard {
    offers: OfferedFiles,
    name: String,
}

impl OfferedFiles {
    pub(super) fn add(&self, file: File, last_modified: Option<String>) -> (String, OfferGuard) {
        let name: String = rand::random::<[u8; 16]>().iter().map(|byte| format!("{byte:02x}")).collect();
        let offered = OfferedFile { file: Arc::new(file), last_modified };
        self.0.lock().insert(name.clone(), offered);
        (name.clone(), OfferGuard { offers: self.clone(), name })
    }

    fn find(&self, name: &str) -> Option<(Arc<File>, Option<String>)> {
        let offers = self.0.lock();
        offers.get(name).map(|offered| (Arc::clone(&offered.file), offered.last_modified.clone()))
    }
}

impl Drop for OfferGuard {
    fn drop(&mut self) {
        self.offers.0.lock().remove(&self.name);
    }
}

/// Returns the router that serves the offered files. The random name in the path is the only credential.
pub fn router(downloads: DownloadCache) -> Router {
    Router::new().route("/downloads/{name}", get(download)).with_state(downloads)
}

async fn download(State(downloads): State<DownloadCache>, Path(name): Path<String>) -> Response {
    let Some((file, last_modified)) = downloads.shared.offers.find(&name) else {
        return (StatusCode::NOT_FOUND, "not found\n").into_response();
    };
    let size = match file.metadata() {
        Ok(metadata) => metadata.len(),
        Err(error) => {
            tracing::error!(%error, "failed to read a download");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    // Several requests may read the file at once: each has a position of its own.
    let chunks = futures::stream::try_unfold((file, 0), |(file, position)| async move {
        let read = move || {
            let mut chunk = vec![0; CHUNK];
            let count = file.read_at(&mut chunk, position)?;
            chunk.truncate(count);
            Ok::<_, io::Error>((chunk, file))
        };
        let (chunk, file) = task::blocking("read download", read).await.map_err(io::Error::other)??;
        let next = position + chunk.len() as u64;
        Ok::<_, io::Error>((!chunk.is_empty()).then_some((Bytes::from(chunk), (file, next))))
    });
    let mut answer = Response::new(Body::from_stream(chunks));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_LENGTH, size.into());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(time) = last_modified.and_then(|time| HeaderValue::from_str(&time).ok()) {
        headers.insert(LAST_MODIFIED, time);
    }
    answer
}
