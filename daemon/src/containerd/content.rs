//! Transfer of the room's blobs into containerd's content store, and into memory.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;

use containerd_client::services::v1::{DeleteContentRequest, WriteAction, WriteContentRequest};
use hearth_oci::{Descriptor, MAX_DOCUMENT_BYTES};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::channel::{ContainerdConnection, call, limit};
use super::failure::{ContainerdFault, unless_missing};
use crate::deploy::port::RuntimeError;
use crate::image::port::BlobStorage;
use crate::model::Digest;

const CHUNK: usize = 1 << 20;
/// Number of chunks that are read ahead.
const AHEAD: usize = 2;

/// Reads a small blob, such as a manifest or a config. Blocking.
pub(super) fn read_small_blob(blobs: &dyn BlobStorage, digest: &Digest) -> Result<Vec<u8>, RuntimeError> {
    let file = open_protected(blobs, digest)?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_DOCUMENT_BYTES as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| RuntimeError::Other(format!("blob {digest}: {error}")))?;
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(RuntimeError::UnusableImage(format!("{digest} is too large for a manifest or config")));
    }
    Ok(bytes)
}

/// Opens a blob, and protects it from the registry's garbage collection for its grace period.
fn open_protected(blobs: &dyn BlobStorage, digest: &Digest) -> Result<File, RuntimeError> {
    let failed = |error: io::Error| RuntimeError::Other(format!("blob {digest}: {error}"));
    let file = blobs.open_verified(digest).map_err(failed)?;
    file.ok_or_else(|| RuntimeError::UnusableImage(format!("its blob {digest} is not in the room")))
}

/// Copies a blob into the content store, where the lease of the connection holds it. containerd verifies its digest.
pub(super) async fn copy_blob(
    connection: &ContainerdConnection,
    blobs: Arc<dyn BlobStorage>,
    blob: &Descriptor,
) -> Result<(), RuntimeError> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let wanted = blob.clone();
    let read = crate::task::blocking("read-blob", move || send_chunks(blobs.as_ref(), &wanted, &sender));
    let written = write(connection, receiver);
    let (read, written) = tokio::join!(read, written);
    // A read error is the cause of the write error.
    read.map_err(|error| RuntimeError::Other(error.to_string()))??;
    match written {
        Ok(()) | Err(ContainerdFault::AlreadyExists(_)) => Ok(()),
        Err(fault) => Err(fault.into_runtime_error()),
    }
}

async fn write(
    connection: &ContainerdConnection,
    receiver: mpsc::Receiver<WriteContentRequest>,
) -> Result<(), ContainerdFault> {
    let write = async {
        let mut client = connection.content();
        let mut answers = client.write(ReceiverStream::new(receiver)).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok(tonic::Response::new(()))
    };
    call(limit::LAYER, write).await
}

/// Sends a blob's content in chunks. Blocking; returns early, with success, when the receiver is dropped.
fn send_chunks(
    blobs: &dyn BlobStorage,
    blob: &Descriptor,
    sender: &mpsc::Sender<WriteContentRequest>,
) -> Result<(), RuntimeError> {
    let digest = &blob.digest;
    let mut file = open_protected(blobs, digest)?;
    let total = i64::try_from(blob.size).unwrap_or(i64::MAX);
    let (reference, expected) = (format!("hearth-{digest}"), digest.to_string());
    let request = |action: WriteAction, offset: i64, data: Vec<u8>| WriteContentRequest {
        action: action.into(),
        r#ref: reference.clone(),
        total,
        expected: expected.clone(),
        offset,
        data,
        labels: std::collections::HashMap::new(),
    };
    let mut offset = 0_i64;
    loop {
        let mut data = Vec::with_capacity(CHUNK);
        let count = file.by_ref().take(CHUNK as u64).read_to_end(&mut data);
        let count = count.map_err(|error| RuntimeError::Other(format!("blob {digest}: {error}")))?;
        let action = if count < CHUNK { WriteAction::Commit } else { WriteAction::Write };
        if sender.blocking_send(request(action, offset, data)).is_err() || count < CHUNK {
            return Ok(());
        }
        offset += count as i64;
    }
}

/// Deletes content; the unpacked files of the image stay.
pub(super) async fn delete_content(
    connection: &ContainerdConnection,
    digest: &Digest,
) -> Result<(), ContainerdFault> {
    let request = DeleteContentRequest { digest: digest.to_string() };
    let deleted = call(limit::RECORD, connection.content().delete(request)).await;
    unless_missing(deleted).map(|_| ())
}
