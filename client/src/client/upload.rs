//! The sending half of an upload: chunks with a bound on how many are ready, and an end that is
//! said. A sender that goes away without saying so leaves the stream open until the call itself
//! is torn down, so that the daemon never takes a part for the whole.

use std::io;

use bytes::Bytes;
use futures::{Stream, stream};
use tokio::sync::mpsc;

use super::ClientError;

/// Chunks that are ready and not yet sent: all that an upload holds in memory.
const CHUNKS_AHEAD: usize = 4;

/// An upload ends early for one of these reasons.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot read what is to be sent: {0}")]
    Source(#[from] io::Error),
}

pub(super) enum Piece {
    Chunk(Bytes),
    End,
}

pub(super) fn channel() -> (mpsc::Sender<Piece>, impl Stream<Item = Bytes> + Send + 'static) {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let chunks = stream::unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Some(Piece::Chunk(chunk)) => Some((chunk, receiver)),
            Some(Piece::End) => None,
            None => std::future::pending().await,
        }
    });
    (sender, chunks)
}
