//! Streamed answers. Waiting for a slow reader never occupies a thread of the shared pools.

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
use tonic::{Code, Status};

use super::super::error::Refusal;
use crate::model::share_owner::ShareOwner;
use crate::places::{Place, Places};
use crate::task;

/// Size in bytes of a chunk of a file in one message, which is the memory that a slow reader makes the daemon hold.
pub(super) const CHUNK: usize = 256 * 1024;
/// Maximum number of messages between the walking thread and the connection.
const AHEAD: usize = 64;
/// Maximum number of concurrent walks of all callers, and of one.
const MOST_WALKS: usize = 32;
const MOST_WALKS_OF_ONE: usize = 4;
/// Time without reading after which a walk is ended.
const UNREAD: Duration = Duration::from_secs(30);

pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Streams the batches that `next` takes from `source`, until it returns an empty one or an error, which is
/// sent last. A batch is made after the one before it was taken, so a slow reader makes the daemon hold one
/// batch.
pub(super) fn in_pieces<S, T>(
    source: S,
    next: impl Fn(&mut S) -> Result<Vec<T>, Status> + Send + Sync + 'static,
) -> Answers<T>
where
    S: Send + 'static,
    T: Send + 'static,
{
    let next = Arc::new(next);
    let pieces = stream::unfold(Some((source, next)), |state| async {
        let (mut source, next) = state?;
        let of = Arc::clone(&next);
        match task::blocking("answer", move || (of(&mut source), source)).await {
            Ok((Ok(piece), _)) if piece.is_empty() => None,
            Ok((Ok(piece), source)) => Some((Ok(piece), Some((source, next)))),
            Ok((Err(status), _)) => Some((Err(status), None)),
            Err(error) => Some((Err(Refusal::internal("the answer ended early", error).into()), None)),
        }
    });
    pieces
        .flat_map(|piece| match piece {
            Ok(piece) => stream::iter(piece).map(Ok).left_stream(),
            Err(status) => stream::iter([Err(status)]).right_stream(),
        })
        .boxed()
}

/// Sends the findings of a walk to its reader.
pub(super) struct Told<T> {
    send: mpsc::Sender<Result<T, Status>>,
    runtime: runtime::Handle,
}

impl<T> Told<T> {
    /// Sends a message. Returns false if the reader has disconnected or has stopped reading.
    pub(super) fn tell(&self, message: Result<T, Status>) -> bool {
        let message = match self.send.try_send(message) {
            Ok(()) => return true,
            Err(mpsc::error::TrySendError::Closed(_)) => return false,
            Err(mpsc::error::TrySendError::Full(message)) => message,
        };
        // The timeout is created inside of `block_on`, where its timer finds the runtime: this is not a runtime thread.
        let sent =
            self.runtime.block_on(async { tokio::time::timeout(UNREAD, self.send.send(message)).await });
        matches!(sent, Ok(Ok(())))
    }
}

/// Limits the threads for walks, per owner of a share; cheap to clone.
#[derive(Clone)]
pub struct Walks(Arc<Places<ShareOwner>>);

impl Walks {
    /// Starts `walk` on its own thread, where it may block on its reader, and returns the stream of its messages.
    pub(super) fn begin<T: Send + 'static>(
        &self,
        owner: &ShareOwner,
        walk: impl FnOnce(&Told<T>) + Send + 'static,
    ) -> Result<Answers<T>, Status> {
        let place = self.take(owner)?;
        let (send, receive) = mpsc::channel(AHEAD);
        let told = Told { send, runtime: runtime::Handle::current() };
        let begun = task::thread("walk", move || {
            let _place = place;
            // A stream that just stopped would look complete, so a panic is reported as an error.
            if catch_unwind(AssertUnwindSafe(|| walk(&told))).is_err() {
                let refusal =
                    Refusal::internal("the listing ended before it was complete", "its thread panicked");
                told.tell(Err(refusal.into()));
            }
        });
        begun.map_err(|error| Refusal::internal("the listing could not be started", error))?;
        Ok(ReceiverStream::new(receive).boxed())
    }

    fn take(&self, owner: &ShareOwner) -> Result<Place<ShareOwner>, Refusal> {
        self.0.take(owner.clone()).ok_or_else(|| {
            let message = format!(
                "{MOST_WALKS_OF_ONE} listings of one caller and {MOST_WALKS} of all may be read at a time"
            );
            let refusal = Refusal::new(Code::ResourceExhausted, "too_many_requests", message);
            refusal.hint("read those that were asked for").retryable(Some(UNREAD))
        })
    }
}

impl Default for Walks {
    fn default() -> Self {
        Self(Places::new(MOST_WALKS, MOST_WALKS_OF_ONE))
    }
}

/// Reads the next chunk of a file; `None` at its end.
pub(super) fn chunk_of(file: &mut impl Read) -> io::Result<Option<Bytes>> {
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
            in_pieces(0, move |at: &mut u32| {
                *at += 1;
                if *at < upto { Ok(vec![*at, *at]) } else { Ok(Vec::new()) }
            })
        };
        let all: Vec<u32> = count(4).try_collect().await.unwrap();
        assert_eq!(all, [1, 1, 2, 2, 3, 3]);
        let failing = in_pieces(0, |at: &mut u32| {
            *at += 1;
            if *at < 2 { Ok(vec![*at]) } else { Err(Status::internal("no")) }
        });
        let all: Vec<_> = failing.collect().await;
        assert!(matches!(&all[..], [Ok(1), Err(status)] if status.message() == "no"));
    }

    #[tokio::test]
    async fn a_walk_waits_for_a_slow_reader_and_loses_nothing() {
        let told = Walks::default().begin::<usize>(&somebody(), |told| {
            for number in 0..10 * AHEAD {
                assert!(told.tell(Ok(number)));
            }
        });
        let mut told = told.unwrap();
        // The channel is full after this time.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut all = Vec::new();
        while let Some(number) = told.try_next().await.unwrap() {
            all.push(number);
        }
        assert_eq!(all, (0..10 * AHEAD).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_walk_that_panics_ends_with_an_error() {
        let told = Walks::default().begin::<u32>(&somebody(), |told| {
            told.tell(Ok(1));
            panic!("a test");
        });
        let all: Vec<_> = told.unwrap().collect().await;
        assert!(matches!(&all[..], [Ok(1), Err(status)] if status.code() == Code::Internal), "{all:?}");
    }

    #[tokio::test]
    async fn a_caller_has_so_many_walks_and_gets_them_back() {
        let walks = Walks::default();
        let walk = || walks.begin::<u32>(&somebody(), |told| while told.tell(Ok(1)) {});
        let held: Vec<_> = (0..MOST_WALKS_OF_ONE).map(|_| walk().unwrap()).collect();
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
