//! Writes a request body into a spool: the next megabyte is read from the connection while the last one is
//! hashed and written, and no more than these two are in memory.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;

use super::refusal::Refusal;
use crate::image::port::BlobError;
use crate::registry::uploads::Turn;
use crate::task;

/// Number of bytes that are read from the connection before they are written.
const BATCH: usize = 1024 * 1024;
/// Time without further data after which a partial batch is written, because received data uses memory that
/// others need.
const PAUSE: Duration = Duration::from_millis(100);

struct Batch {
    chunks: Vec<Bytes>,
    end: End,
}

enum End {
    MoreToCome,
    Whole,
    Cut(Refusal),
}

/// Appends a body to an upload. After a connection error, the data received before it stays in the upload;
/// after a disk error, the upload is removed.
pub(super) async fn receive(mut body: Body, mut turn: Turn, stall: Duration) -> Result<Turn, Refusal> {
    let mut batch = next(&mut body, stall).await;
    loop {
        if batch.chunks.is_empty() {
            return match batch.end {
                End::Cut(refusal) => Err(refusal),
                End::Whole | End::MoreToCome => Ok(turn),
            };
        }
        let write = task::blocking("upload", move || write(turn, &batch.chunks));
        match batch.end {
            End::MoreToCome => {
                let (written, following) = tokio::join!(write, next(&mut body, stall));
                turn = written??;
                batch = following;
            }
            End::Whole => return Ok(write.await??),
            End::Cut(refusal) => {
                write.await??;
                return Err(refusal);
            }
        }
    }
}

fn write(mut turn: Turn, chunks: &[Bytes]) -> Result<Turn, BlobError> {
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

async fn next(body: &mut Body, stall: Duration) -> Batch {
    let mut chunks = Vec::new();
    let mut size = 0;
    let end = loop {
        if size >= BATCH {
            break End::MoreToCome;
        }
        let limit = if chunks.is_empty() { stall } else { PAUSE.min(stall) };
        match tokio::time::timeout(limit, body.frame()).await {
            Err(_) if !chunks.is_empty() => break End::MoreToCome,
            Err(_) => {
                let message = format!("nothing of the body came for {} s", stall.as_secs());
                break End::Cut(Refusal::new(StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", message));
            }
            Ok(None) => break End::Whole,
            Ok(Some(Err(error))) => {
                break End::Cut(Refusal::bad(
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
    Batch { chunks, end }
}
