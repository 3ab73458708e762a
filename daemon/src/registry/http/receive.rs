//! Writes a request body into a spool: the next megabyte is read from the connection while the last one is
//! hashed and written, and no more than these two are in memory.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;

use super::error_response::RegistryErrorResponse;
use crate::image::port::BlobError;
use crate::registry::uploads::BlobUploadGuard;
use crate::task;

/// Number of bytes that are read from the connection before they are written.
const BATCH_BYTES: usize = 1024 * 1024;
/// Time without further data after which a partial batch is written, because received data uses memory that
/// others need.
const BATCH_TIMEOUT: Duration = Duration::from_millis(100);

struct BodyBatch {
    chunks: Vec<Bytes>,
    end: BodyEnd,
}

enum BodyEnd {
    MoreToCome,
    Complete,
    Aborted(RegistryErrorResponse),
}

/// Appends a body to an upload. After a connection error, the data received before it stays in the upload;
/// after a disk error, the upload is removed.
pub(super) async fn receive(
    mut body: Body,
    mut turn: BlobUploadGuard,
    stall: Duration,
) -> Result<BlobUploadGuard, RegistryErrorResponse> {
    let mut batch = next_batch(&mut body, stall).await;
    loop {
        if batch.chunks.is_empty() {
            return match batch.end {
                BodyEnd::Aborted(refusal) => Err(refusal),
                BodyEnd::Complete | BodyEnd::MoreToCome => Ok(turn),
            };
        }
        let write = task::blocking("upload", move || write(turn, &batch.chunks));
        match batch.end {
            BodyEnd::MoreToCome => {
                let (written, following) = tokio::join!(write, next_batch(&mut body, stall));
                turn = written??;
                batch = following;
            }
            BodyEnd::Complete => return Ok(write.await??),
            BodyEnd::Aborted(refusal) => {
                write.await??;
                return Err(refusal);
            }
        }
    }
}

fn write(mut turn: BlobUploadGuard, chunks: &[Bytes]) -> Result<BlobUploadGuard, BlobError> {
    let mut bytes = 0;
    for chunk in chunks {
        bytes += chunk.len() as u64;
        let Some(spool) = turn.as_mut() else { break };
        if let Err(error) = spool.write(chunk) {
            *turn = None;
            return Err(error);
        }
    }
    metrics::counter!("hearth_registry_received_bytes_total").increment(bytes);
    Ok(turn)
}

async fn next_batch(body: &mut Body, stall: Duration) -> BodyBatch {
    let mut chunks = Vec::new();
    let mut size = 0;
    let end = loop {
        if size >= BATCH_BYTES {
            break BodyEnd::MoreToCome;
        }
        let limit = if chunks.is_empty() { stall } else { BATCH_TIMEOUT.min(stall) };
        match tokio::time::timeout(limit, body.frame()).await {
            Err(_) if !chunks.is_empty() => break BodyEnd::MoreToCome,
            Err(_) => {
                let message = format!("nothing of the body came for {} s", stall.as_secs());
                break BodyEnd::Aborted(RegistryErrorResponse::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "BLOB_UPLOAD_INVALID",
                    message,
                ));
            }
            Ok(None) => break BodyEnd::Complete,
            Ok(Some(Err(error))) => {
                break BodyEnd::Aborted(RegistryErrorResponse::bad(
                    "BLOB_UPLOAD_INVALID",
                    format!("the body was cut off: {error}"),
                ));
            }
            Ok(Some(Ok(frame))) => {
                if let Ok(chunk) = frame.into_data()
                    && !chunk.is_empty()
                {
                    size += chunk.len();
                    chunks.push(chunk);
                }
            }
        }
    };
    BodyBatch { chunks, end }
}
