//! A file of the storage as it arrives: written on one thread, complete or not at all.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::Status;

use super::super::error::Refusal;
use crate::context::storage::{FileStat, Root, StorageError, WriteOptions};
use crate::task;

/// Chunks between the connection and the thread that writes.
const AHEAD: usize = 4;
/// A chunk that a client may send.
const MAX_CHUNK: usize = 4 * 1024 * 1024;

/// Dropped before [`finish`](Self::finish), it leaves nothing.
pub(super) struct FileUpload {
    chunks: mpsc::Sender<Bytes>,
    complete: oneshot::Sender<()>,
    writer: JoinHandle<Option<Result<FileStat, StorageError>>>,
}

impl FileUpload {
    pub(super) fn start(root: Root, path: std::path::PathBuf, options: WriteOptions) -> Self {
        let (chunks, mut arriving) = mpsc::channel::<Bytes>(AHEAD);
        let (complete, completed) = oneshot::channel::<()>();
        let write = move || {
            let mut writer = match root.write(&path, options) {
                Ok(writer) => writer,
                Err(error) => return Some(Err(error)),
            };
            while let Some(chunk) = arriving.blocking_recv() {
                if let Err(error) = writer.append(&chunk) {
                    return Some(Err(error));
                }
            }
            // Only what was said to be complete is kept.
            completed.blocking_recv().ok().map(|()| writer.finish())
        };
        let writer = task::spawn("file-upload", async move {
            task::blocking("file-upload", write).await.unwrap_or_else(|error| {
                tracing::error!(%error, "a file upload ended early");
                None
            })
        });
        Self { chunks, complete, writer }
    }

    /// False when the writer has given up; [`finish`](Self::finish) says why.
    pub(super) async fn chunk(&self, chunk: Bytes) -> bool {
        self.chunks.send(chunk).await.is_ok()
    }

    pub(super) async fn finish(self) -> Result<FileStat, Status> {
        let Self { chunks, complete, writer } = self;
        // A writer that has failed waits for neither.
        let _ = complete.send(());
        drop(chunks);
        match writer.await {
            Ok(Some(written)) => Ok(written.map_err(Refusal::from)?),
            Ok(None) => Err(Refusal::internal("the file was not written", "its writer ended early").into()),
            Err(error) => Err(Refusal::internal("the file was not written", error).into()),
        }
    }
}

/// Refuses a chunk that is larger than agreed.
pub(super) fn checked(chunk: Bytes) -> Result<Bytes, Status> {
    if chunk.len() <= MAX_CHUNK {
        return Ok(chunk);
    }
    Err(Refusal::invalid("chunk", "chunk_too_large", format!("a chunk is at most {MAX_CHUNK} bytes")).into())
}

/// An upload that does not say first what it is.
pub(super) fn begin_missing() -> Status {
    Refusal::invalid("begin", "begin_missing", "the first message must be `begin`").into()
}

/// An upload that says something else later on.
pub(super) fn chunk_missing() -> Status {
    Refusal::invalid("chunk", "chunk_missing", "after `begin` come only chunks").into()
}
