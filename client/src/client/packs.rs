//! Sends a directory by content: only the content that the room lacks crosses the wire.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future;
use hearth_pack::FileKind;
use hearth_pack::identity::{ContentHash, HashedEntry, HashedTree};
use hearth_pack::layer::LayerSource as _;
use hearth_pack::pieces::{self, CompressionEffort, FilePiece, LARGE_FILE, PieceBatch, PieceError};
use hearth_pack::walk::{WalkEntry, WalkedTree};
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::packs_client::PacksClient;
use hearth_proto::v1::{
    BeginPackRequest, ChunkPackRequest, ChunkedContent, CommitPackRequest, ListPackRequest, ListPackResponse,
    PackChunk, PackEntries, PackEntry, PackEntryKind, PackPiece, PackResult, PackXattr, SendPackRequest,
    begin_pack_response, list_pack_request, send_pack_request,
};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::outage::{ReconnectBackoff, ReconnectLimits};
use super::{AuthenticatedChannel, Client, ClientError, unary_request};
use crate::task;
use hearth_proto::MAX_MESSAGE_BYTES;

/// Maximum size of the list entries in one message, in bytes before compression; far below the message
/// limit.
const LIST_MESSAGE_BYTES: usize = 1 << 20;
/// Maximum number of chunks of large files in one call.
const MAX_CHUNKS_PER_CALL: usize = 50_000;
/// Maximum number of parallel content streams; the daemon processes each of them independently.
const MAX_CONTENT_STREAMS: usize = 2;
/// Maximum number of lost connections, counting failed attempts to reconnect, after which an upload fails.
const MAX_LOSSES: u32 = 100;
/// Maximum number of queued messages of each stream.
const QUEUED_MESSAGES_PER_STREAM: usize = 3;

/// A scanned tree that is offered to a room.
#[derive(Debug)]
pub struct PackOffer {
    pub tree: WalkedTree,
    pub hashed: HashedTree,
}

/// Result of sending a tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SentPack {
    pub result: PackResult,
    /// Bytes of list and content as sent by all attempts, after compression.
    pub wire_bytes: u64,
    /// Bytes of content that the room lacked and that were sent, before compression. Content that was sent again after
    /// a lost connection counts once.
    pub content_bytes: u64,
    /// Pieces of that content.
    pub pieces: u64,
    /// Number of files whose content the room had from other participants, and that were proven instead of
    /// sent.
    pub proven: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum PackUploadError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Content(#[from] PieceError),
    #[error("cannot send: {0}")]
    Work(#[from] io::Error),
}

/// An event of a pack upload, for the display of its progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackUploadEvent {
    /// Content of this many bytes, before compression, is to be sent now. Comes again when the upload is resumed.
    Begun { bytes: u64 },
    /// This many bytes more were sent.
    Sent { bytes: u64 },
    /// The connection was lost for this reason, and the upload waits for the daemon; once for each loss.
    Lost { reason: String },
}

/// Callback that receives the events of an upload, from several threads.
pub type PackUploadCallback = Arc<dyn Fn(PackUploadEvent) + Send + Sync>;

/// Attempts of one upload.
struct UploadAttempts {
    outages: ReconnectBackoff,
    /// True once the daemon accepted the upload: until then, an error of the connection is not an interruption.
    has_begun: bool,
    /// Bytes that all attempts sent.
    wire_bytes: Arc<AtomicU64>,
    /// Number of pieces, and of content bytes, that the room lacked at the first attempt.
    lacked: Option<(u64, u64)>,
}

impl UploadAttempts {
    fn sent(&self, result: PackResult, proven: u64) -> SentPack {
        let (pieces, content_bytes) = self.lacked.unwrap_or_default();
        let wire_bytes = self.wire_bytes.load(Ordering::Relaxed);
        SentPack { result, wire_bytes, content_bytes, pieces, proven }
    }

    fn count_wire_bytes(&self, bytes: u64) {
        self.wire_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Client {
    fn packs(&self) -> PacksClient<AuthenticatedChannel> {
        PacksClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Sends the content of a tree that the room lacks, and completes the upload as `begin` requests. Sets
    /// `begin.tree`. When the connection is lost after the upload began, it is resumed as soon as the daemon answers
    /// again: content that arrived is kept and not sent again.
    pub async fn send_pack(
        &self,
        mut begin: BeginPackRequest,
        offer: Arc<PackOffer>,
        on_event: PackUploadCallback,
    ) -> Result<SentPack, PackUploadError> {
        begin.tree = offer.hashed.digest.to_string();
        let mut attempts = UploadAttempts {
            outages: ReconnectBackoff::new(ReconnectLimits::default()),
            has_begun: false,
            wire_bytes: Arc::default(),
            lacked: None,
        };
        let mut losses = 0;
        let mut is_restarted = false;
        loop {
            attempts.outages.wait_for_retry().await;
            let error = match self.try_pack(begin.clone(), &offer, &on_event, &mut attempts).await {
                Err(PackUploadError::Client(error)) => error,
                other => return other,
            };
            match error {
                error @ ClientError::Unreachable { .. } if attempts.has_begun && losses < MAX_LOSSES => {
                    losses += 1;
                    if let Some(reason) = attempts.outages.connection_lost(error)? {
                        on_event(PackUploadEvent::Lost { reason });
                    }
                }
                // The daemon restarted or expired the upload; the content that arrived is kept, so a second attempt
                // resumes.
                ClientError::Failed(detail)
                    if !is_restarted
                        && matches!(
                            detail.code.parse(),
                            Ok(ErrorCode::UploadNotFound | ErrorCode::ContentGone)
                        ) =>
                {
                    is_restarted = true;
                }
                error => return Err(error.into()),
            }
        }
    }

    async fn try_pack(
        &self,
        begin: BeginPackRequest,
        offer: &Arc<PackOffer>,
        on_event: &PackUploadCallback,
        attempts: &mut UploadAttempts,
    ) -> Result<SentPack, PackUploadError> {
        // The daemon may assemble an image now, which takes long: no time limit, the pings watch the
        // connection.
        let begin_answer = self.message_or_error(self.packs().begin(begin).await)?;
        attempts.has_begun = true;
        attempts.outages.connection_restored();
        let upload_id = match begin_answer.answer {
            Some(begin_pack_response::Answer::Done(result)) => {
                // The commit of an earlier attempt had arrived.
                return Ok(attempts.sent(result, 0));
            }
            Some(begin_pack_response::Answer::UploadId(id)) => id,
            None => return Err(ClientError::Protocol("an upload has no id".to_owned()).into()),
        };
        let (needs, list_bytes) = self.send_list(&upload_id, offer).await?;
        attempts.count_wire_bytes(list_bytes);
        let is_file =
            |number: &u32| entry(offer, *number).is_some_and(|entry| entry.kind == FileKind::File(()));
        if !needs.missing.iter().chain(&needs.prove).all(is_file) {
            let what = "the daemon requested an entry that is not a file of the list";
            return Err(ClientError::Protocol(what.to_owned()).into());
        }
        let (cut, chunk_bytes) = self.cut_large(&upload_id, offer, &needs.missing).await?;
        attempts.count_wire_bytes(chunk_bytes);
        let small = needs.missing.iter().filter(|entry| !is_large(offer, **entry));
        let mut pieces: Vec<FilePiece> =
            small.map(|entry| whole_file_piece(offer, *entry)).chain(cut).collect();
        pieces.sort_unstable_by_key(|piece| (piece.entry, piece.number));
        let bytes = pieces.iter().map(|piece| u64::from(piece.size)).sum();
        attempts.lacked.get_or_insert((pieces.len() as u64, bytes));
        on_event(PackUploadEvent::Begun { bytes });
        let proof = self.prove(offer, &needs);
        let content = self.send_pieces(&upload_id, offer, pieces, (on_event, &attempts.wire_bytes));
        let (proof, ()) = future::try_join(proof, content).await?;
        let commit = CommitPackRequest { upload_id, proof };
        let committed = self.message_or_error(self.packs().commit(commit).await)?;
        let result =
            committed.result.ok_or_else(|| ClientError::Protocol("an upload has no result".to_owned()))?;
        Ok(attempts.sent(result, needs.prove.len() as u64))
    }

    async fn send_list(
        &self,
        upload_id: &str,
        offer: &Arc<PackOffer>,
    ) -> Result<(ListPackResponse, u64), PackUploadError> {
        let (messages, list) = mpsc::channel(QUEUED_MESSAGES_PER_STREAM);
        let (offered, upload_id) = (Arc::clone(offer), upload_id.to_owned());
        let writing = task::blocking("list", move || write_list(&offered, &upload_id, &messages));
        let mut packs = self.packs();
        let (written, answer) = future::join(writing, packs.list(ReceiverStream::new(list))).await;
        let bytes = written.map_err(io::Error::other)??;
        Ok((self.message_or_error(answer)?, bytes))
    }

    /// Cuts large files into chunks and asks which of them the room lacks. Also returns the bytes of the
    /// requests.
    async fn cut_large(
        &self,
        upload_id: &str,
        offer: &Arc<PackOffer>,
        missing: &[u32],
    ) -> Result<(Vec<FilePiece>, u64), PackUploadError> {
        let large: Vec<u32> = missing.iter().copied().filter(|entry| is_large(offer, *entry)).collect();
        if large.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let offered = Arc::clone(offer);
        let cutting = task::blocking("cut", move || {
            let cut = |entry: &u32| pieces::split_file(&offered.tree, *entry, &content(&offered, *entry));
            large.iter().map(cut).collect::<Result<Vec<_>, _>>()
        });
        let files = cutting.await.map_err(io::Error::other)??;
        let (mut wanted, mut bytes) = (Vec::new(), 0);
        let mut rest = files.as_slice();
        while !rest.is_empty() {
            let mut count = 0;
            let fits = |file: &&Vec<FilePiece>| {
                count += file.len();
                count <= MAX_CHUNKS_PER_CALL
            };
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            rest = later;
            let files = now.iter().filter_map(|pieces| chunked_content(pieces)).collect();
            let request = ChunkPackRequest { upload_id: upload_id.to_owned(), files };
            bytes += request.encoded_len() as u64;
            let answer = self.message_or_error(self.packs().chunks(unary_request(request)).await)?;
            for missing in answer.missing {
                let file = now.iter().find(|pieces| pieces.first().is_some_and(|p| p.entry == missing.entry));
                let file = file.map_or(&[][..], Vec::as_slice);
                wanted.extend(missing.chunks.iter().filter_map(|number| file.get(*number as usize)).copied());
            }
        }
        Ok((wanted, bytes))
    }

    async fn prove(
        &self,
        offer: &Arc<PackOffer>,
        needs: &ListPackResponse,
    ) -> Result<Bytes, PackUploadError> {
        if needs.prove.is_empty() {
            return Ok(Bytes::new());
        }
        let key = <[u8; 32]>::try_from(needs.proof_key.as_ref())
            .map_err(|_| ClientError::Protocol("the key of a proof does not have 32 bytes".to_owned()))?;
        let (offered, entries) = (Arc::clone(offer), needs.prove.clone());
        let proof = task::blocking("prove", move || pieces::prove(&offered.tree, &entries, &key));
        let proof = proof.await.map_err(io::Error::other)??;
        Ok(Bytes::copy_from_slice(&proof))
    }

    /// Sends pieces on several streams, and counts the bytes that cross the wire.
    async fn send_pieces(
        &self,
        upload_id: &str,
        offer: &Arc<PackOffer>,
        pieces: Vec<FilePiece>,
        (on_event, wire): (&PackUploadCallback, &Arc<AtomicU64>),
    ) -> Result<(), PackUploadError> {
        if pieces.is_empty() {
            return Ok(());
        }
        let batches = pieces::plan_batches(pieces);
        let (senders, streams): (Vec<_>, Vec<_>) = (0..MAX_CONTENT_STREAMS.min(batches.len()))
            .map(|_| mpsc::channel::<SendPackRequest>(QUEUED_MESSAGES_PER_STREAM))
            .unzip();
        let (offered, count, upload_id, on_event) =
            (Arc::clone(offer), Arc::clone(wire), upload_id.to_owned(), Arc::clone(on_event));
        let effort = if self.is_local { CompressionEffort::Local } else { CompressionEffort::Remote };
        let reading = task::blocking("pieces", move || {
            let read = pieces::send_batches(&offered.tree, &batches, (None, effort), &|worker, batch| {
                let bytes: u64 = batch.pieces.iter().map(|piece| u64::from(piece.size)).sum();
                let message = send_request(&upload_id, batch);
                count.fetch_add(message.encoded_len() as u64, Ordering::Relaxed);
                // The daemon closed the stream; its answer gives the reason.
                let is_open = senders[worker % senders.len()].blocking_send(message).is_ok();
                if is_open {
                    on_event(PackUploadEvent::Sent { bytes });
                }
                is_open
            });
            read.map(|()| drop(senders))
        });
        let calls = streams.into_iter().map(|stream| {
            let mut packs = self.packs();
            async move {
                // A stream without messages would name no upload, so it is not opened.
                let mut messages = ReceiverStream::new(stream);
                let Some(first) = messages.next().await else { return Ok(()) };
                let messages = tokio_stream::once(first).chain(messages);
                self.message_or_error(packs.send(messages).await).map(|_| ())
            }
        });
        let (read, answers) = future::join(reading, future::join_all(calls)).await;
        // A refusal by the daemon causes the reader to stop, so report it before an error of the reader.
        answers.into_iter().collect::<Result<Vec<()>, ClientError>>()?;
        Ok(read.map_err(io::Error::other)??)
    }
}

fn entry(offer: &PackOffer, entry: u32) -> Option<&WalkEntry> {
    offer.tree.entries().get(entry as usize)
}

fn is_large(offer: &PackOffer, number: u32) -> bool {
    entry(offer, number).is_some_and(|entry| entry.size > LARGE_FILE)
}

fn content(offer: &PackOffer, number: u32) -> ContentHash {
    let hashed = offer.hashed.entries.get(number as usize).and_then(|hashed| hashed.content);
    hashed.unwrap_or_else(|| ContentHash::of(b""))
}

fn whole_file_piece(offer: &PackOffer, number: u32) -> FilePiece {
    let size = entry(offer, number).map_or(0, |entry| u32::try_from(entry.size).unwrap_or(u32::MAX));
    FilePiece { entry: number, number: 0, offset: 0, size, hash: content(offer, number) }
}

fn chunked_content(pieces: &[FilePiece]) -> Option<ChunkedContent> {
    let chunk = |piece: &FilePiece| PackChunk {
        content: Bytes::copy_from_slice(piece.hash.as_bytes()),
        size: piece.size,
    };
    Some(ChunkedContent { entry: pieces.first()?.entry, chunks: pieces.iter().map(chunk).collect() })
}

fn send_request(upload_id: &str, batch: PieceBatch) -> SendPackRequest {
    let piece = |piece: &FilePiece| PackPiece { entry: piece.entry, chunk: piece.number, size: piece.size };
    SendPackRequest {
        upload_id: upload_id.to_owned(),
        pieces: batch.pieces.iter().map(piece).collect(),
        data: Some(send_pack_request::Data::Zstd(batch.frame.into())),
    }
}

/// Sends the list in compressed messages. Returns their size in bytes.
fn write_list(
    offer: &PackOffer,
    upload_id: &str,
    messages: &mpsc::Sender<ListPackRequest>,
) -> io::Result<u64> {
    let mut bytes = 0;
    let mut all = offer.tree.entries.iter().zip(&offer.hashed.entries).map(pack_entry).peekable();
    // Send one message even for an empty list, because it names the upload.
    let mut first = true;
    while std::mem::take(&mut first) || all.peek().is_some() {
        let (mut entries, mut size) = (Vec::new(), 0);
        while let Some(entry) =
            all.next_if(|entry| size == 0 || size + entry.encoded_len() <= LIST_MESSAGE_BYTES)
        {
            size += entry.encoded_len();
            entries.push(entry);
        }
        let frame = zstd::bulk::compress(&PackEntries { entries }.encode_to_vec(), 1)?;
        let message = ListPackRequest {
            upload_id: upload_id.to_owned(),
            part: Some(list_pack_request::Part::EntriesZstd(frame.into())),
        };
        bytes += message.encoded_len() as u64;
        if messages.blocking_send(message).is_err() {
            // The daemon's answer gives the reason.
            break;
        }
    }
    Ok(bytes)
}

fn pack_entry((entry, hashed): (&WalkEntry, &HashedEntry)) -> PackEntry {
    let xattr = |(name, value): &(Vec<u8>, Vec<u8>)| PackXattr {
        name: Bytes::copy_from_slice(name),
        value: Bytes::copy_from_slice(value),
    };
    let mut listed = PackEntry {
        path: Bytes::copy_from_slice(&entry.path),
        mode: entry.mode,
        xattrs: hashed.xattrs.iter().map(xattr).collect(),
        ..PackEntry::default()
    };
    let kind = match &entry.kind {
        FileKind::Directory => PackEntryKind::Directory,
        FileKind::File(()) => {
            listed.size = entry.size;
            listed.content =
                hashed.content.map(|hash| Bytes::copy_from_slice(hash.as_bytes())).unwrap_or_default();
            PackEntryKind::File
        }
        FileKind::Symlink(target) => {
            // A symlink has no mode of its own; the digest uses the same constant.
            listed.mode = 0o777;
            listed.target = Bytes::copy_from_slice(target);
            PackEntryKind::Symlink
        }
        FileKind::HardLink(to) => {
            listed.target = Bytes::copy_from_slice(to);
            PackEntryKind::Hardlink
        }
        FileKind::Special(never) => match *never {},
    };
    listed.set_kind(kind);
    listed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_upload_reports_what_was_lacked_at_first_and_the_bytes_of_all_attempts() {
        let mut attempts = UploadAttempts {
            outages: ReconnectBackoff::new(ReconnectLimits::default()),
            has_begun: true,
            wire_bytes: Arc::default(),
            lacked: None,
        };
        for (pieces, content_bytes, wire_bytes) in [(3, 100, 60), (1, 40, 50)] {
            attempts.lacked.get_or_insert((pieces, content_bytes));
            attempts.count_wire_bytes(wire_bytes);
        }
        let sent = attempts.sent(PackResult::default(), 0);
        assert_eq!((sent.pieces, sent.content_bytes, sent.wire_bytes), (3, 100, 110));
    }
}
