//! File sync: sends one tree to one receiver, by the protocol of fsutil.
//!
//! ```text
//! sender   --STAT a--STAT b--...--STAT(empty)-->   every selected entry in order; its index is its id
//!          <--REQ 3--REQ 7--...                    files that the receiver lacks
//!          --DATA 3..--DATA 3(empty)--DATA 7..-->  content, ended by an empty packet; may interleave
//!          <--FIN            --FIN-->
//!          --ERR-->                                failure; the receiver disconnects, then the stream ends
//! ```
//!
//! A file that cannot be read, or no longer matches its stat, fails the whole transfer with an error that names the
//! file: a truncated file must not become part of an image.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use percent_encoding::percent_decode;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Status, Streaming};

use super::select::{self, SelectionPatterns, StatBuilder};
use super::wire::{FileSync, FsutilPacket, PacketKind};
use crate::context::{FileTree, TransferWatch};

/// Bytes of content in one packet.
const DATA_CHUNK: usize = 256 << 10;
/// Number of files that are read at the same time.
const READERS: usize = 4;
/// Number of batches that wait for the receiver; with [`DATA_CHUNK`] it bounds the memory of one transfer.
const QUEUE: usize = 8;
/// Number of stats in one batch.
const STATS: usize = 256;
/// Time limit for the receiver to read the error and to disconnect. A receiver that still requests files when the
/// stream ends reports only `EOF`, and so would the build.
const ERROR_DRAIN_LIMIT: Duration = Duration::from_secs(2);

type PacketBatch = Vec<FsutilPacket>;

/// A tree, and the observer that is notified when it was sent.
#[derive(Clone)]
pub(super) struct TreeSource {
    pub(super) tree: Arc<dyn FileTree>,
    pub(super) watch: Arc<dyn TransferWatch>,
}

/// The tree of one session, as long as a build uses it. A later scan of the same version of the tree may replace it,
/// since its files may have moved.
#[derive(Clone)]
pub(super) struct ServedTree {
    /// Directory name by which BuildKit requests the tree.
    dir: &'static str,
    source: Arc<parking_lot::Mutex<Option<TreeSource>>>,
}

impl ServedTree {
    pub(super) fn new(dir: &'static str) -> Self {
        Self { dir, source: Arc::default() }
    }

    /// Replaces the tree to serve, and returns the previous one. Running transfers keep theirs.
    pub(super) fn replace(&self, source: Option<TreeSource>) -> Option<TreeSource> {
        std::mem::replace(&mut *self.source.lock(), source)
    }

    fn source(&self) -> Option<TreeSource> {
        self.source.lock().clone()
    }
}

impl FileSync for ServedTree {
    type Packets = futures::stream::BoxStream<'static, Result<FsutilPacket, Status>>;

    fn diff_copy(
        &self,
        metadata: &MetadataMap,
        requests: Streaming<FsutilPacket>,
    ) -> Result<Self::Packets, Status> {
        let (dir, wanted) = requested_selection(metadata);
        if dir != self.dir.as_bytes() {
            return Err(Status::not_found("a directory that this session does not serve"));
        }
        let source =
            self.source().ok_or_else(|| Status::unavailable("no build uses these files any more"))?;
        Ok(transfer(source, wanted, requests).boxed())
    }
}

/// Reads the directory name and the patterns from the headers, one header for each pattern. Values that are not ASCII
/// are query-escaped, which the header `<key>-encoded: 1` signals.
fn requested_selection(metadata: &MetadataMap) -> (Vec<u8>, SelectionPatterns) {
    let list = |key: &str| -> Vec<Vec<u8>> {
        let encoded = metadata.get(format!("{key}-encoded")).is_some_and(|value| value.as_bytes() == b"1");
        let values = metadata.iter().filter_map(|item| match item {
            KeyAndValueRef::Ascii(name, value) if name.as_str() == key => Some(value.as_bytes()),
            _ => None,
        });
        values.map(|value| if encoded { query_unescape(value) } else { value.to_vec() }).collect()
    };
    let dir = list("dir-name").into_iter().next().unwrap_or_default();
    let wanted = SelectionPatterns {
        includes: list("include-patterns"),
        excludes: list("exclude-patterns"),
        follow: list("followpaths"),
    };
    (dir, wanted)
}

fn query_unescape(value: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = value.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
    percent_decode(&spaced).collect()
}

fn transfer<S>(
    source: TreeSource,
    wanted: SelectionPatterns,
    mut requests: S,
) -> impl Stream<Item = Result<FsutilPacket, Status>> + Send
where
    S: Stream<Item = Result<FsutilPacket, Status>> + Send + Unpin + 'static,
{
    let (packets, out) = mpsc::channel::<Result<PacketBatch, Status>>(QUEUE);
    crate::task::spawn("file-sync", async move {
        let watch = Arc::clone(&source.watch);
        let result = send(source, wanted, &mut requests, packets.clone()).await;
        if let Ok(true) = result {
            // The build continues meanwhile.
            let notified = crate::task::blocking("file-sync-after", move || watch.files_sent()).await;
            if let Err(error) = notified {
                tracing::error!(%error, "context revalidation panicked");
            }
        }
        if let Err(status) = result {
            let text = status.message().to_owned();
            // The receiver reports the text of an ERR packet; the status ends the stream.
            let _ = packets.send(Ok(vec![FsutilPacket::error(text)])).await;
            let client_done = async { while let Some(Ok(_)) = requests.next().await {} };
            tokio::select! {
                () = client_done => {}
                () = packets.closed() => {}
                () = tokio::time::sleep(ERROR_DRAIN_LIMIT) => {}
            }
            let _ = packets.send(Err(status)).await;
        }
    });
    ReceiverStream::new(out).flat_map(|batch| {
        let items: Vec<Result<FsutilPacket, Status>> = match batch {
            Ok(packets) => packets.into_iter().map(Ok).collect(),
            Err(status) => vec![Err(status)],
        };
        futures::stream::iter(items)
    })
}

fn closed<E>(_: E) -> Status {
    Status::cancelled("the receiver is gone")
}

/// Sends the selected entries. Returns true when there was more than the entry that BuildKit reads to decide what it
/// needs.
async fn send<S>(
    source: TreeSource,
    wanted: SelectionPatterns,
    requests: &mut S,
    packets: mpsc::Sender<Result<PacketBatch, Status>>,
) -> Result<bool, Status>
where
    S: Stream<Item = Result<FsutilPacket, Status>> + Send + Unpin,
{
    let TreeSource { tree, watch } = source;
    // Ids refer to the whole selection, so that a request may arrive while stats are still being sent.
    let chosen = {
        let tree = Arc::clone(&tree);
        crate::task::blocking("select", move || select::select(&*tree, &wanted)).await
    };
    let selected = chosen
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| Status::invalid_argument(error.to_string()))?;

    if let Some(beyond) = selected.iter().find(|index| !tree.is_covered(**index)) {
        let path = String::from_utf8_lossy(tree.entry(*beyond).path).into_owned();
        let notified = crate::task::blocking("file-sync-beyond", move || watch.uncovered_requested()).await;
        notified.map_err(|error| Status::internal(error.to_string()))?;
        return Err(Status::aborted(format!("context selection: `{path}` was not expected to be copied")));
    }
    let selected: Arc<[usize]> = selected.into();
    let stats = send_stats(Arc::clone(&tree), Arc::clone(&selected), packets.clone());
    // Requests are read as they arrive, since HTTP/2 ends a connection on which many small frames wait unread. The
    // queue is still bounded, because a file may be requested only once.
    let (ask, asked) = mpsc::unbounded_channel::<(u32, usize)>();
    let asked = Arc::new(Mutex::new(asked));
    let readers = futures::future::try_join_all((0..READERS).map(|_| {
        let (tree, asked, packets) = (Arc::clone(&tree), Arc::clone(&asked), packets.clone());
        async move {
            let work = move || read_loop(&*tree, &asked, &packets);
            crate::task::blocking("file-sync-read", work)
                .await
                .map_err(|error| Status::internal(error.to_string()))?
        }
    }));
    let receive = async {
        let ask = ask;
        let mut requested = vec![false; selected.len()];
        while let Some(packet) = requests.next().await {
            let packet = packet?;
            match PacketKind::try_from(packet.kind) {
                Ok(PacketKind::Req) => {
                    let position = usize::try_from(packet.id).unwrap_or(usize::MAX);
                    let is_repeated = requested.get(position).copied().unwrap_or(true);
                    if is_repeated {
                        return Err(Status::invalid_argument(format!("file {} was not offered", packet.id)));
                    }
                    requested[position] = true;
                    ask.send((packet.id, selected[position])).map_err(closed)?;
                }
                Ok(PacketKind::Fin) => return Ok(()),
                Ok(PacketKind::Err) => {
                    let text = String::from_utf8_lossy(&packet.data).into_owned();
                    return Err(Status::aborted(format!("BuildKit could not take the files: {text}")));
                }
                _ => return Err(Status::invalid_argument("a packet that a receiver does not send")),
            }
        }
        Err(Status::cancelled("the receiver went away before the end"))
    };
    futures::try_join!(stats, readers, receive)?;
    packets.send(Ok(vec![FsutilPacket::fin()])).await.map_err(closed)?;
    Ok(selected.len() > 1)
}

async fn send_stats(
    tree: Arc<dyn FileTree>,
    selected: Arc<[usize]>,
    packets: mpsc::Sender<Result<PacketBatch, Status>>,
) -> Result<(), Status> {
    let mut stats = StatBuilder::default();
    for part in selected.chunks(STATS) {
        let batch = part.iter().map(|index| FsutilPacket::stat(stats.stat_of(&*tree, *index).0)).collect();
        packets.send(Ok(batch)).await.map_err(closed)?;
    }
    packets.send(Ok(vec![FsutilPacket::end_of_stats()])).await.map_err(closed)
}

/// Reads requested files until the requests end. Blocking.
fn read_loop(
    tree: &dyn FileTree,
    asked: &Mutex<mpsc::UnboundedReceiver<(u32, usize)>>,
    packets: &mpsc::Sender<Result<PacketBatch, Status>>,
) -> Result<(), Status> {
    loop {
        let next = asked.blocking_lock().blocking_recv();
        let Some((id, index)) = next else { return Ok(()) };
        send_file(tree, id, index, packets)?;
    }
}

fn send_file(
    tree: &dyn FileTree,
    id: u32,
    index: usize,
    packets: &mpsc::Sender<Result<PacketBatch, Status>>,
) -> Result<(), Status> {
    use crate::context::{FileKind, SpecialFile};
    let entry = tree.entry(index);
    let file = match entry.kind {
        FileKind::File(()) => index,
        FileKind::HardLink(file) => file,
        // A socket is shown as an empty file.
        FileKind::Special(SpecialFile::Socket) => {
            return packets.blocking_send(Ok(vec![FsutilPacket::data(id, Bytes::new())])).map_err(closed);
        }
        _ => return Err(Status::invalid_argument(format!("file {id} has no content"))),
    };
    let failed = |error: io::Error| {
        Status::aborted(format!("context file `{}`: {error}", String::from_utf8_lossy(entry.path)))
    };
    let mut content = tree.open(file).map_err(failed)?;
    let mut left = entry.size;
    let mut batch = Vec::with_capacity(2);
    while left > 0 {
        let part = read_part(&mut *content, left.min(DATA_CHUNK as u64)).map_err(failed)?;
        left -= part.len() as u64;
        batch.push(FsutilPacket::data(id, part));
        if left > 0 {
            packets.blocking_send(Ok(std::mem::take(&mut batch))).map_err(closed)?;
        }
    }
    // Reading to the end lets the tree report that the file changed meanwhile.
    let mut more = [0];
    if content.read(&mut more).map_err(failed)? > 0 {
        return Err(failed(io::Error::other("it grew while it was read")));
    }
    batch.push(FsutilPacket::data(id, Bytes::new()));
    packets.blocking_send(Ok(batch)).map_err(closed)
}

/// Reads exactly `length` bytes; a shorter file is an error.
fn read_part(content: &mut dyn Read, length: u64) -> io::Result<Bytes> {
    let length = usize::try_from(length).unwrap_or(DATA_CHUNK);
    let mut buffer = BytesMut::zeroed(length);
    content.read_exact(&mut buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("it shrank while it was read"),
        _ => error,
    })?;
    Ok(buffer.freeze())
}

#[cfg(test)]
mod tests;
