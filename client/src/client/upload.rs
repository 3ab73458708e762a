//! The sending half of an upload: a bounded queue of chunks with an explicit end. Dropping the sender
//! without the end keeps the stream open until the call is aborted, so that the daemon never takes a
//! partial upload for a complete one.

use std::io;

use bytes::Bytes;
use futures::{Stream, stream};
use tokio::sync::mpsc;

use super::ClientError;

/// Maximum number of queued chunks: the memory bound of an upload.
const MAX_QUEUED_CHUNKS: usize = 4;

/// Reasons for an upload that ends early.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot read what is to be sent: {0}")]
    Source(#[from] io::Error),
}

/// A message of the queue: content, or the end of the upload.
pub(super) enum UploadChunk {
    Chunk(Bytes),
    End,
}

pub(super) fn channel() -> (mpsc::Sender<UploadChunk>, impl Stream<Item = Bytes> + Send + 'static) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_CHUNKS);
    let chunks = stream::unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Some(UploadChunk::Chunk(chunk)) => Some((chunk, receiver)),
            Some(UploadChunk::End) => None,
            None => std::future::pending().await,
        }
    });
    (sender, chunks)
}
