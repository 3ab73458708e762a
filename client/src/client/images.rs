//! Calls of the Images service, and the upload of archives.

use std::io;
use std::pin::pin;

use bytes::BytesMut;
use futures::future::{self, Either};
use hearth_proto::CHUNK_BYTES;
use hearth_proto::v1::load_image_request::Message;
use hearth_proto::v1::{
    Attestation, CachedImage, Image, InspectImageRequest, InspectImageResponse, ListAttestationsRequest,
    ListCachedImagesRequest, ListImagesRequest, LoadBegin, LoadImageRequest, LoadImageResponse,
    RemoveImageRequest, TagImageRequest, load_begin,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;

use super::upload::{self, UploadChunk, UploadError};
use super::{Client, ClientError, unary_request};
use crate::task;

/// Destination of an uploaded archive in the room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveDestination {
    /// Tag of the image. Without a tag the archive becomes a temporary pack for builds.
    pub tag: Option<String>,
    /// Also keep the archive as this file of room storage.
    pub room_path: Option<String>,
}

/// Function that writes an archive from beginning to end; it runs on a blocking thread.
pub type ArchiveSource = Box<dyn FnOnce(&mut dyn io::Write) -> io::Result<()> + Send>;

impl Client {
    /// All tagged images, or those of one repository.
    pub async fn list_images(&self, repository: &str) -> Result<Vec<Image>, ClientError> {
        let mut images = Vec::new();
        let mut request = ListImagesRequest {
            repository: repository.to_owned(),
            page_size: 1000,
            page_token: String::new(),
        };
        loop {
            let page = self.message_or_error(self.images().list(unary_request(request.clone())).await)?;
            images.extend(page.images);
            if page.next_page_token.is_empty() {
                return Ok(images);
            }
            if page.next_page_token == request.page_token {
                return Err(ClientError::Protocol("a page of images has itself as the next page".to_owned()));
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Images of other registries that the room keeps for builds, the most recently used first.
    pub async fn list_cached_images(&self) -> Result<Vec<CachedImage>, ClientError> {
        Ok(self
            .message_or_error(self.images().list_cached(unary_request(ListCachedImagesRequest {})).await)?
            .images)
    }

    pub async fn inspect_image(&self, reference: &str) -> Result<InspectImageResponse, ClientError> {
        let request = InspectImageRequest { reference: reference.to_owned() };
        self.message_or_error(self.images().inspect(unary_request(request)).await)
    }

    /// The statements that are attached to an image, the newest first.
    pub async fn list_attestations(&self, reference: &str) -> Result<Vec<Attestation>, ClientError> {
        let request = ListAttestationsRequest { reference: reference.to_owned() };
        let answer = self.images().list_attestations(unary_request(request)).await;
        Ok(self.message_or_error(answer)?.attestations)
    }

    /// Adds a tag to an image, or moves a tag to it.
    pub async fn tag_image(&self, reference: &str, tag: &str) -> Result<Image, ClientError> {
        let request = TagImageRequest { reference: reference.to_owned(), tag: tag.to_owned() };
        self.message_or_error(self.images().tag(unary_request(request)).await)
    }

    pub async fn remove_image(&self, reference: &str) -> Result<(), ClientError> {
        let request = RemoveImageRequest { reference: reference.to_owned() };
        self.message_or_error(self.images().remove(unary_request(request)).await).map(|_| ())
    }

    /// Sends an OCI archive as one stream. A failure of `source` aborts the call, so that the daemon never
    /// takes a partial archive for a complete one.
    pub async fn load_image(
        &self,
        destination: ArchiveDestination,
        source: ArchiveSource,
    ) -> Result<LoadImageResponse, UploadError> {
        let (pieces, chunks) = upload::channel();
        let begin = LoadBegin {
            destination: Some(match destination.tag {
                Some(tag) => load_begin::Destination::Tag(tag),
                None => load_begin::Destination::Temporary(true),
            }),
            room_path: destination.room_path.unwrap_or_default(),
        };
        let messages = tokio_stream::once(Message::Begin(begin))
            .chain(chunks.map(Message::Chunk))
            .map(|message| LoadImageRequest { message: Some(message) });
        let writing = pin!(task::blocking("archive", move || {
            let filling = BytesMut::with_capacity(CHUNK_BYTES);
            let mut sink = ChunkSink { pieces, filling, hung_up: false };
            let written = source(&mut sink).and_then(|()| sink.end());
            // The daemon closed the stream; its answer gives the reason.
            written.or_else(|error| if sink.hung_up { Ok(()) } else { Err(error) })
        }));
        let mut images = self.images();
        let calling = pin!(images.load(messages));
        match future::select(writing, calling).await {
            Either::Left((written, calling)) => {
                written.map_err(io::Error::other)??;
                Ok(self.message_or_error(calling.await)?)
            }
            Either::Right((answer, _writing)) => Ok(self.message_or_error(answer)?),
        }
    }
}

/// Writer that cuts its input into chunks and blocks while the queue is full.
struct ChunkSink {
    pieces: mpsc::Sender<UploadChunk>,
    filling: BytesMut,
    hung_up: bool,
}

impl ChunkSink {
    fn send_filled(&mut self) -> io::Result<()> {
        let chunk = std::mem::replace(&mut self.filling, BytesMut::with_capacity(CHUNK_BYTES)).freeze();
        self.send(UploadChunk::Chunk(chunk))
    }

    fn send(&mut self, piece: UploadChunk) -> io::Result<()> {
        self.pieces.blocking_send(piece).map_err(|_| {
            self.hung_up = true;
            io::Error::new(io::ErrorKind::BrokenPipe, "the daemon ended the upload")
        })
    }

    fn end(&mut self) -> io::Result<()> {
        io::Write::flush(self)?;
        self.send(UploadChunk::End)
    }
}

impl io::Write for ChunkSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK_BYTES - self.filling.len());
        self.filling.extend_from_slice(&bytes[..count]);
        if self.filling.len() == CHUNK_BYTES {
            self.send_filled()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filling.is_empty() { Ok(()) } else { self.send_filled() }
    }
}
