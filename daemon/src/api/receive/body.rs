//! A request body that is counted against its caller's share as it is read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::super::error::ApiError;
use super::super::shares::RequestShare;
use crate::model::fault::ErrorCode;

/// Time limit for waiting until memory is free.
const ROOM_WAIT: Duration = if cfg!(test) { Duration::from_millis(400) } else { Duration::from_secs(10) };
/// Length of the prefix of a gRPC message: one byte for compression, four for the length.
const PREFIX: usize = 5;

/// Tracks the boundaries of messages.
pub(super) struct MessageFraming {
    limit: u64,
    is_stream: bool,
    prefix: [u8; PREFIX],
    /// Number of prefix bytes that have been received.
    known: usize,
    /// Number of message bytes that are still to come.
    left: u64,
    /// Number of bytes of the message, with its prefix, that have been received.
    come: u64,
}

/// A message that is larger than its method accepts.
pub(in crate::api) struct MessageTooLarge {
    pub size: u64,
    pub limit: u64,
}

pub(super) struct ReceivedBody {
    body: Body,
    framing: Option<MessageFraming>,
    share: Option<Arc<RequestShare>>,
    /// Number of bytes that are counted for this body.
    held: u64,
    stall: Option<Duration>,
    silent: Option<Pin<Box<Sleep>>>,
    waiting: Option<WaitingFrame>,
}

/// A frame that waits for free memory.
struct WaitingFrame {
    data: Bytes,
    room: Pin<Box<dyn Future<Output = bool> + Send>>,
}

/// Bytes that are counted until they are dropped.
struct CountedBytes {
    data: Bytes,
    share: Arc<RequestShare>,
}

impl MessageFraming {
    pub(super) const fn new(limit: u64, is_stream: bool) -> Self {
        Self { limit, is_stream, prefix: [0; PREFIX], known: 0, left: 0, come: 0 }
    }

    fn follow(&mut self, mut data: &[u8]) -> Result<(), MessageTooLarge> {
        while !data.is_empty() {
            if self.known < PREFIX {
                if self.known == 0 {
                    self.come = 0;
                }
                let count = data.len().min(PREFIX - self.known);
                self.prefix[self.known..self.known + count].copy_from_slice(&data[..count]);
                self.known += count;
                self.come += count as u64;
                data = &data[count..];
                if self.known == PREFIX {
                    let [_, size @ ..] = self.prefix;
                    let size = u64::from(u32::from_be_bytes(size));
                    if size > self.limit {
                        return Err(MessageTooLarge { size, limit: self.limit });
                    }
                    self.left = size;
                }
            } else {
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len());
                self.left -= count as u64;
                self.come += count as u64;
                data = &data[count..];
            }
            if self.known == PREFIX && self.left == 0 {
                self.known = 0;
            }
        }
        Ok(())
    }

    /// Number of bytes of the current, incomplete message.
    const fn open(&self) -> u64 {
        if self.known == 0 { 0 } else { self.come }
    }
}

impl ReceivedBody {
    pub(super) fn new(
        body: Body,
        framing: Option<MessageFraming>,
        stall: Option<Duration>,
        share: Option<Arc<RequestShare>>,
    ) -> Self {
        Self { body, framing, share, held: 0, stall, silent: None, waiting: None }
    }

    /// Releases the memory of earlier messages: the reader has handled them, because it requests more.
    fn release(&mut self) {
        if let (Some(framing), Some(share)) = (&self.framing, &self.share)
            && framing.is_stream
            && self.held > framing.open()
        {
            share.shrink(self.held - framing.open());
            self.held = framing.open();
        }
    }

    /// Waits for the next frame, up to the stall limit.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.silent = None;
            return Poll::Ready(frame.map(|frame| {
                // tonic treats a stream that the client has cancelled, with the status `cancelled`, like one
                // that has ended normally, so that a part of an upload would be kept as the whole. Another
                // status prevents that.
                frame.map_err(|error| Status::aborted(format!("the request was cut off: {error}")))
            }));
        }
        let Some(stall) = self.stall else { return Poll::Pending };
        let silent =
            self.silent.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + stall)));
        ready!(silent.as_mut().poll(cx));
        Poll::Ready(Some(Err(stalled(stall).into())))
    }

    fn take(&mut self, data: Bytes) -> Frame<Bytes> {
        match (&self.framing, &self.share) {
            (None, Some(share)) => {
                Frame::data(Bytes::from_owner(CountedBytes { data, share: Arc::clone(share) }))
            }
            _ => {
                self.held += data.len() as u64;
                Frame::data(data)
            }
        }
    }
}

impl HttpBody for ReceivedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if let Some(waiting) = &mut this.waiting {
            let free = ready!(waiting.room.as_mut().poll(cx));
            let data = std::mem::take(&mut waiting.data);
            this.waiting = None;
            return Poll::Ready(Some(if free { Ok(this.take(data)) } else { Err(no_room().into()) }));
        }
        this.release();
        let data = match ready!(this.poll_body(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            },
            other => return Poll::Ready(other),
        };
        if let Some(framing) = &mut this.framing
            && let Err(error) = framing.follow(&data)
        {
            return Poll::Ready(Some(Err(ApiError::from(error).into())));
        }
        if let Some(share) = &this.share {
            let size = data.len() as u64;
            if !share.grow(size) {
                let share = Arc::clone(share);
                let room = Box::pin(async move {
                    tokio::time::timeout(ROOM_WAIT, share.grow_when_free(size)).await.is_ok()
                });
                this.waiting = Some(WaitingFrame { data, room });
                return Pin::new(this).poll_frame(cx);
            }
        }
        Poll::Ready(Some(Ok(this.take(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.waiting.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}

impl Drop for ReceivedBody {
    fn drop(&mut self) {
        // The memory of a unary call is released when the call is answered.
        if let (Some(share), Some(MessageFraming { is_stream: true, .. })) = (&self.share, &self.framing) {
            share.shrink(self.held);
        }
    }
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.share.shrink(self.data.len() as u64);
    }
}

fn stalled(stall: Duration) -> ApiError {
    let message = format!("nothing of the request came for {} s", stall.as_secs());
    ApiError::new(ErrorCode::UploadStalled, message)
}

fn no_room() -> ApiError {
    let message = "this caller's requests take the memory that there is for what is being received";
    ApiError::new(ErrorCode::Busy, message).hint("send less at the same time").retryable(Some(super::RETRY))
}

#[cfg(test)]
mod tests;
