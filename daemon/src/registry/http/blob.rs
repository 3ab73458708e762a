//! `/v2/<name>/blobs/<digest>`: download and deletion of blobs.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::json;

use super::error_response::RegistryErrorResponse;
use super::range::{ByteRange, parse_range};
use super::{DOCKER_CONTENT_DIGEST, RegistryApi, empty, header_value};
use crate::image::port::RemovalOutcome;
use crate::model::{Digest, Repository};
use crate::registry::blobs::{BlobCheck, OpenedBlob};
use crate::task;

/// Number of bytes that are read from the file at a time. Large, because each read is a task on a blocking thread.
const CHUNK: u64 = 512 * 1024;

impl RegistryApi {
    pub(super) async fn get_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Response, RegistryErrorResponse> {
        let unknown = || RegistryErrorResponse::blob_unknown(repository, digest);
        if !self.catalog.has_blob(repository, digest).await? {
            return Err(unknown());
        }
        let tag = format!("\"{digest}\"");
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let (blobs, digest) = (self.blobs.clone(), *digest);
        let range = header(RANGE)
            .filter(|_| *method == Method::GET && header(IF_RANGE).is_none_or(|held| held == tag));
        let is_held = header(IF_NONE_MATCH).is_some_and(|held| held == tag || held == "*");
        // Nothing is sent of a blob that the client has, and of one that it asks about.
        let whole = range.is_none() || is_held || *method == Method::HEAD;
        let opened = task::blocking("blob", move || blobs.open_checked(&digest, whole));
        let OpenedBlob { file, size, check } = opened.await??.ok_or_else(unknown)?;
        let mut response = if is_held {
            empty(StatusCode::NOT_MODIFIED)
        } else {
            let (first, count) = match parse_range(range, size) {
                ByteRange::All => (0, size),
                ByteRange::Part { first, count } => (first, count),
                ByteRange::Unsatisfiable => {
                    let message = format!("the blob has {size} bytes");
                    return Err(RegistryErrorResponse::new(
                        StatusCode::RANGE_NOT_SATISFIABLE,
                        "SIZE_INVALID",
                        message,
                    )
                    .detail(json!({"size": size}))
                    .header(CONTENT_RANGE, &format!("bytes */{size}")));
                }
            };
            let partial = range.is_some() && parse_range(range, size) != ByteRange::All;
            let body = if *method == Method::HEAD {
                Body::empty()
            } else {
                content(file, first, count, check).await?
            };
            let mut response = Response::new(body);
            if partial {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let part = format!("bytes {first}-{}/{size}", first + count - 1);
                response.headers_mut().insert(CONTENT_RANGE, header_value(&part)?);
            }
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(count));
            response
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(ETAG, header_value(&tag)?);
        headers.insert(DOCKER_CONTENT_DIGEST, header_value(&digest.to_string())?);
        Ok(response)
    }

    pub(super) async fn delete_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Response, RegistryErrorResponse> {
        match self.catalog.unlink_blob(repository, digest).await? {
            RemovalOutcome::Removed => Ok(empty(StatusCode::ACCEPTED)),
            RemovalOutcome::Unknown => Err(RegistryErrorResponse::blob_unknown(repository, digest)),
            RemovalOutcome::Deployed(service) => Err(RegistryErrorResponse::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "UNSUPPORTED",
                format!("service `{service}` runs an image that needs blob {digest}"),
            )),
            RemovalOutcome::NeededBy(manifest) => Err(RegistryErrorResponse::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "UNSUPPORTED",
                format!("blob {digest} is part of manifest {manifest}; delete that first"),
            )),
        }
    }
}

/// Streams a part of a file as a body. A file that is shorter than expected, or whose content fails the check, aborts
/// the connection before its last bytes, so that no client takes the content for complete.
async fn content(
    mut file: File,
    first: u64,
    count: u64,
    check: Option<BlobCheck>,
) -> Result<Body, RegistryErrorResponse> {
    if first > 0 {
        file = task::blocking("blob", move || file.seek(SeekFrom::Start(first)).map(|_| file)).await??;
    }
    Ok(Body::from_stream(futures::stream::try_unfold(
        (file, count, check),
        |(file, left, check)| async move {
            if left == 0 {
                return Ok(None);
            }
            let next = task::blocking("blob", move || read_checked(file, left, check));
            let (chunk, file, check) = next.await.map_err(io::Error::other)??;
            let size = chunk.len() as u64;
            metrics::counter!("hearth_registry_sent_bytes_total").increment(size);
            Ok::<_, io::Error>(Some((chunk, (file, left - size, check))))
        },
    )))
}

fn read_checked(
    file: File,
    left: u64,
    mut check: Option<BlobCheck>,
) -> io::Result<(Bytes, File, Option<BlobCheck>)> {
    let (chunk, file) = read(file, left.min(CHUNK))?;
    if let Some(check) = &mut check {
        check.update(&chunk);
    }
    if chunk.len() as u64 == left
        && let Some(check) = check.take()
        && !check.finish()?
    {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the blob is damaged on the disk"));
    }
    Ok((chunk, file, check))
}

fn read(file: File, count: u64) -> io::Result<(Bytes, File)> {
    let mut chunk = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    let mut limited = file.take(count);
    limited.read_to_end(&mut chunk)?;
    if (chunk.len() as u64) < count {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((chunk.into(), limited.into_inner()))
}
