//! Carries the bytes of a connection in messages of `Control.Session`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use tokio_util::sync::PollSender;

/// Maximum bytes of one message: large enough to keep the cost per message low, small enough that both ends work at
/// the same time.
const MESSAGE: usize = 128 << 10;
const QUEUE: usize = 8;

pub(super) fn reader<S>(messages: S) -> impl AsyncRead + Send + Unpin
where
    S: Stream<Item = Result<BytesMessage, tonic::Status>> + Send + Unpin,
{
    StreamReader::new(messages.map(|message| message.map(|m| Bytes::from(m.data)).map_err(io::Error::other)))
}

pub(super) fn writer() -> (SessionWriter, mpsc::Receiver<BytesMessage>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (SessionWriter { sender: PollSender::new(sender), pending: Vec::with_capacity(MESSAGE) }, receiver)
}

/// Collects small writes into one message, because HTTP/2 writes the head of each frame separately.
pub(super) struct SessionWriter {
    sender: PollSender<BytesMessage>,
    pending: Vec<u8>,
}

impl SessionWriter {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.sender.poll_reserve(cx)).map_err(closed)?;
        let data = std::mem::replace(&mut self.pending, Vec::with_capacity(MESSAGE));
        Poll::Ready(self.sender.send_item(BytesMessage { data }).map_err(closed))
    }
}

impl AsyncWrite for SessionWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.pending.len() >= MESSAGE {
            ready!(this.poll_send(cx))?;
        }
        let mut written = 0;
        for slice in slices {
            let room = MESSAGE - this.pending.len();
            let part = &slice[..slice.len().min(room)];
            this.pending.extend_from_slice(part);
            written += part.len();
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.pending.is_empty() { Poll::Ready(Ok(())) } else { this.poll_send(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.get_mut().sender.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn small_writes_leave_as_one_message_and_large_ones_are_cut() {
        let (mut writer, mut messages) = writer();
        writer.write_all(b"head").await.unwrap();
        writer.write_all(b"body").await.unwrap();
        writer.flush().await.unwrap();
        assert_eq!(messages.recv().await.unwrap().data, b"headbody");
        writer.write_all(&vec![7; MESSAGE + 1]).await.unwrap();
        writer.shutdown().await.unwrap();
        assert_eq!(messages.recv().await.unwrap().data.len(), MESSAGE);
        assert_eq!(messages.recv().await.unwrap().data.len(), 1);
        assert!(messages.recv().await.is_none());
    }
}
