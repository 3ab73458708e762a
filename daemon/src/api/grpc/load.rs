//! An archive arrives: to the reader that takes it apart, and to its copy in storage where one is wanted.
//!
//! ```text
//! messages --> reader --> blobs, nameless
//!        '---> copy --> file, whole             both done: the name
//! ```

use std::io::{self, Read};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use hearth_proto::v1;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use super::super::convert;
use super::super::error::Refusal;
use super::images::ImagesService;
use super::upload::{FileUpload, begin_missing, checked, chunk_missing};
use super::{ask, storage_for};
use crate::access::policy::Action;
use crate::context::storage::WriteOptions;
use crate::image::{Destination, ImageError};
use crate::model::RoomRegistries;
use crate::model::access::{Caller, StorageVerb};
use crate::task;

/// Chunks of an archive between the connection and the thread that reads it.
const AHEAD: usize = 4;
/// Longest silence in an upload.
const STALL: Duration = Duration::from_secs(120);

impl ImagesService {
    pub(super) async fn take_archive(
        &self,
        caller: &Caller,
        mut messages: Streaming<v1::LoadImageRequest>,
    ) -> Result<v1::LoadImageResponse, Status> {
        use v1::load_image_request::Message;
        let Some(v1::LoadImageRequest { message: Some(Message::Begin(begin)) }) =
            within_stall(messages.message()).await?
        else {
            return Err(begin_missing());
        };
        let destination = destination(caller, begin.destination, self.images.room_registries())?;
        let copy = self.room_copy(caller, &begin.room_path)?;
        let (send, arriving) = mpsc::channel(AHEAD);
        let images = self.images.clone();
        // A task of its own: when the client goes away, the archive is seen to be cut off and cleaned up after.
        let receive = task::spawn("load-image", async move {
            images.receive(Arriving { chunks: arriving, chunk: Bytes::new() }).await
        });
        let passed_on = pass_on(&mut messages, copy.as_ref(), &send).await;
        if passed_on.is_err() {
            // The reader is told, so that it does not take what came for all there is.
            let cut = io::Error::new(io::ErrorKind::ConnectionAborted, "the upload was cut off");
            let _ = send.send(Err(cut)).await;
        }
        drop(send);
        let received =
            receive.await.map_err(|error| Refusal::internal("the archive was not loaded", error))?;
        let received = match (passed_on, received) {
            (Ok(()), received) => received.map_err(Refusal::from)?,
            (Err(cut), received) => {
                if let Ok(received) = received {
                    self.images.discard(received).await;
                }
                return Err(match (cut, copy) {
                    (Cut::Copy, Some(copy)) => match copy.finish().await {
                        Err(status) => status,
                        Ok(_) => {
                            Refusal::internal("the copy in storage was not written", "it gave no reason")
                                .into()
                        }
                    },
                    (Cut::Upload(status), _) => *status,
                    (Cut::Copy, None) => Refusal::internal("the archive was not loaded", "no copy").into(),
                });
            }
        };
        // The copy first: an image whose archive was not kept as asked has no name.
        if let Some(copy) = copy
            && let Err(status) = copy.finish().await
        {
            self.images.discard(received).await;
            return Err(status);
        }
        let loaded = self.images.settle(received, destination).await.map_err(Refusal::from)?;
        Ok(v1::LoadImageResponse {
            digest: loaded.manifest.digest.to_string(),
            size_bytes: loaded.size_bytes,
            reused_bytes: loaded.reused_bytes,
            pack_id: loaded.pack.map(|id| id.to_string()).unwrap_or_default(),
            image: loaded.image.map(|image| convert::image(&image, self.images.room_registries())),
        })
    }

    /// Where the archive is kept as a file too, when that was asked for.
    fn room_copy(&self, caller: &Caller, path: &str) -> Result<Option<FileUpload>, Status> {
        if path.is_empty() {
            return Ok(None);
        }
        let (root, path) =
            storage_for(caller, StorageVerb::Write, &self.storage.room, "begin.room_path", path)?;
        Ok(Some(FileUpload::start(root, path, WriteOptions::default())))
    }
}

fn destination(
    caller: &Caller,
    wire: Option<v1::load_begin::Destination>,
    rooms: &RoomRegistries,
) -> Result<Destination, Status> {
    match wire {
        Some(v1::load_begin::Destination::Tag(text)) => {
            let tag = convert::tag("begin.tag", &text)?;
            if !rooms.owns_tag(&tag) {
                return Err(Refusal::from(ImageError::Foreign { reference: tag.to_string() }).into());
            }
            ask(caller, &Action::WriteRepository(&tag.repository))?;
            Ok(Destination::Tag(tag))
        }
        Some(v1::load_begin::Destination::Temporary(true)) => {
            ask(caller, &Action::SendPack)?;
            Ok(Destination::Pack { owner: caller.name.clone() })
        }
        Some(v1::load_begin::Destination::Temporary(false)) | None => {
            Err(Refusal::invalid("begin.tag", "destination_missing", "give a tag, or `temporary` for a pack")
                .into())
        }
    }
}

/// Why an upload went no further.
enum Cut {
    /// The copy in storage cannot be written, and says why.
    Copy,
    Upload(Box<Status>),
}

/// Hands the chunks of an upload to the reader of the archive, and to the copy in storage.
async fn pass_on(
    messages: &mut Streaming<v1::LoadImageRequest>,
    copy: Option<&FileUpload>,
    send: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), Cut> {
    use v1::load_image_request::Message;
    let upload = |status: Status| Cut::Upload(Box::new(status));
    loop {
        let chunk = match within_stall(messages.message()).await.map_err(upload)? {
            None => return Ok(()),
            Some(v1::LoadImageRequest { message: Some(Message::Chunk(chunk)) }) => {
                checked(chunk).map_err(upload)?
            }
            Some(_) => return Err(upload(chunk_missing())),
        };
        if let Some(copy) = copy
            && !copy.chunk(chunk.clone()).await
        {
            return Err(Cut::Copy);
        }
        // A reader that has ended says why below; what follows the archive belongs to the copy all the same.
        if send.send(Ok(chunk)).await.is_err() && copy.is_none() {
            return Ok(());
        }
    }
}

/// A message of an upload. A client that sends nothing for long does not keep a thread waiting.
async fn within_stall<T>(message: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(STALL, message).await.unwrap_or_else(|_| {
        let message = format!("nothing was sent for {} s", STALL.as_secs());
        Err(Refusal::new(Code::DeadlineExceeded, "upload_stalled", message).retryable(None).into())
    })
}

/// The chunks of an upload as a reader for a blocking thread.
struct Arriving {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let count = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
