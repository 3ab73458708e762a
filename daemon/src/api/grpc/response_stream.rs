//! Response streams. Waiting for a slow client never occupies a thread of tokio's blocking pool.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::super::error::ApiError;
use crate::keyed_semaphore::{KeyedPermit, KeyedSemaphore};
use crate::model::fault::ErrorCode;
use crate::model::share_owner::ShareOwner;
use crate::task;

/// Size in bytes of a file chunk in one message. It bounds the memory that a slow client makes the daemon hold.
pub(super) const CHUNK: usize = 256 * 1024;
/// Maximum number of messages between the walking thread and the connection.
const CHANNEL_CAPACITY: usize = 64;
/// Maximum number of concurrent walks of all callers, and of one.
const MAX_WALKS: usize = 32;
const MAX_WALKS_PER_CALLER: usize = 4;
/// Time for which a client may stop reading before its walk is ended.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Streams the batches that `next` produces from `source`. The stream ends after an empty batch, which is not sent, or
/// after an error, which is sent. The next batch is produced only after the client has received the previous one, so a
/// slow client makes the daemon hold at most one batch.
pub(super) fn stream_batches<S, T>(
    source: S,
    next: impl Fn(&mut S) -> Result<Vec<T>, Status> + Send + Sync + 'static,
) -> ResponseStream<T>
where
    S: Send + 'static,
    T: Send + 'static,
{
    let next = Arc::new(next);
    let batches = stream::unfold(Some((source, next)), |state| async {
        let (mut source, next) = state?;
        let take_batch = Arc::clone(&next);
        match task::blocking("answer", move || (take_batch(&mut source), source)).await {
            Ok((Ok(batch), _)) if batch.is_empty() => None,
            Ok((Ok(batch), source)) => Some((Ok(batch), Some((source, next)))),
            Ok((Err(status), _)) => Some((Err(status), None)),
            Err(error) => Some((Err(ApiError::internal("the answer ended early", error).into()), None)),
        }
    });
    batches
        .flat_map(|batch| match batch {
            Ok(batch) => stream::iter(batch).map(Ok).left_stream(),
            Err(status) => stream::iter([Err(status)]).right_stream(),
        })
        .boxed()
}

/// Sends the messages of a walk through a directory tree to the client that requested it.
pub(super) struct WalkSender<T> {
    messages: mpsc::Sender<Result<T, Status>>,
    runtime: runtime::Handle,
}

impl<T> WalkSender<T> {
    /// Sends a message. Returns false if the client has disconnected or has stopped reading.
    pub(super) fn send(&self, message: Result<T, Status>) -> bool {
        let message = match self.messages.try_send(message) {
            Ok(()) => return true,
            Err(mpsc::error::TrySendError::Closed(_)) => return false,
            Err(mpsc::error::TrySendError::Full(message)) => message,
        };
        // This thread does not belong to the runtime, so the timeout must be created inside `block_on`.
        let sent = self
            .runtime
            .block_on(async { tokio::time::timeout(READ_TIMEOUT, self.messages.send(message)).await });
        matches!(sent, Ok(Ok(())))
    }
}

/// Limits the number of threads that walk directory trees, in total and for each share owner. Cheap to clone.
#[derive(Clone)]
pub struct WalkThreads(Arc<KeyedSemaphore<ShareOwner>>);

impl WalkThreads {
    /// Starts `walk` on its own thread, where it may wait for the client, and returns the stream of its messages.
    pub(super) fn start<T: Send + 'static>(
        &self,
        owner: &ShareOwner,
        walk: impl FnOnce(&WalkSender<T>) + Send + 'static,
    ) -> Result<ResponseStream<T>, Status> {
        let permit = self.reserve(owner)?;
        let (send, receive) = mpsc::channel(CHANNEL_CAPACITY);
        let sender = WalkSender { messages: send, runtime: runtime::Handle::current() };
        let thread_started = task::spawn_thread("walk", move || {
            let _permit = permit;
            // A stream that just stopped would look complete, so a panic is reported as an error.
            if catch_unwind(AssertUnwindSafe(|| walk(&sender))).is_err() {
                let refusal =
                    ApiError::internal("the listing ended before it was complete", "its thread panicked");
                sender.send(Err(refusal.into()));
            }
        });
        thread_started.map_err(|error| ApiError::internal("the listing could not be started", error))?;
        Ok(ReceiverStream::new(receive).boxed())
    }

    fn reserve(&self, owner: &ShareOwner) -> Result<KeyedPermit<ShareOwner>, ApiError> {
        self.0.try_acquire(owner.clone()).ok_or_else(|| {
            let message = format!(
                "{MAX_WALKS_PER_CALLER} listings of one caller and {MAX_WALKS} of all may be read at a time"
            );
            let refusal = ApiError::new(ErrorCode::TooManyRequests, message);
            refusal.hint("read those that were asked for").retryable(Some(READ_TIMEOUT))
        })
    }
}

impl Default for WalkThreads {
    fn default() -> Self {
        Self(KeyedSemaphore::new(MAX_WALKS, MAX_WALKS_PER_CALLER))
    }
}

/// Reads the next chunk of a file; `None` at its end.
pub(super) fn read_chunk(file: &mut impl Read) -> io::Result<Option<Bytes>> {
    let mut chunk = Vec::with_capacity(CHUNK);
    let count = file.take(CHUNK as u64).read_to_end(&mut chunk)?;
    Ok((count > 0).then(|| chunk.into()))
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    fn somebody() -> ShareOwner {
        ShareOwner("somebody".to_owned())
    }

    #[tokio::test]
    async fn pieces_come_in_order_and_an_error_is_the_last() {
        let count = |upto: u32| {
            stream_batches(0, move |at: &mut u32| {
                *at += 1;
                if *at < upto { Ok(vec![*at, *at]) } else { Ok(Vec::new()) }
            })
        };
        let all: Vec<u32> = count(4).try_collect().await.unwrap();
        assert_eq!(all, [1, 1, 2, 2, 3, 3]);
        let failing = stream_batches(0, |at: &mut u32| {
            *at += 1;
            if *at < 2 { Ok(vec![*at]) } else { Err(Status::internal("no")) }
        });
        let all: Vec<_> = failing.collect().await;
        assert!(matches!(&all[..], [Ok(1), Err(status)] if status.message() == "no"));
    }

    #[tokio::test]
    async fn a_walk_waits_for_a_slow_reader_and_loses_nothing() {
        let stream = WalkThreads::default().start::<usize>(&somebody(), |sender| {
            for number in 0..10 * CHANNEL_CAPACITY {
                assert!(sender.send(Ok(number)));
            }
        });
        let mut stream = stream.unwrap();
        // The channel is full after this time.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut all = Vec::new();
        while let Some(number) = stream.try_next().await.unwrap() {
            all.push(number);
        }
        assert_eq!(all, (0..10 * CHANNEL_CAPACITY).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_walk_that_panics_ends_with_an_error() {
        let stream = WalkThreads::default().start::<u32>(&somebody(), |sender| {
            sender.send(Ok(1));
            panic!("a test");
        });
        let all: Vec<_> = stream.unwrap().collect().await;
        assert!(
            matches!(&all[..], [Ok(1), Err(status)] if status.code() == tonic::Code::Internal),
            "{all:?}"
        );
    }

    #[tokio::test]
    async fn a_caller_has_so_many_walks_and_gets_them_back() {
        let walks = WalkThreads::default();
        let walk = || walks.start::<u32>(&somebody(), |sender| while sender.send(Ok(1)) {});
        let held: Vec<_> = (0..MAX_WALKS_PER_CALLER).map(|_| walk().unwrap()).collect();
        assert!(walk().is_err());
        drop(held);
        for _ in 0..200 {
            if let Ok(mut again) = walk() {
                assert!(matches!(again.next().await, Some(Ok(1))));
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no walk is given back");
    }
}
