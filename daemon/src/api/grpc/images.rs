use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use hearth_proto::v1;
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status, Streaming};

use super::super::convert::{self, page_size};
use super::super::error::Refusal;
use super::upload::{FileUpload, begin_missing, checked, chunk_missing};
use super::{allow_repository, allow_storage, caller, require};
use crate::context::storage::{Storage, WriteOptions};
use crate::image::port::TagQuery;
use crate::image::{Destination, ImageError, Images, Inspected};
use crate::model::access::{Caller, RegistryVerb, StorageVerb};
use crate::model::{Reference, Repository, Tag};
use crate::task;

/// Chunks of an archive between the connection and the thread that reads it.
const AHEAD: usize = 4;

pub struct ImagesService {
    pub images: Images,
    pub storage: Storage,
}

#[tonic::async_trait]
impl v1::images_server::Images for ImagesService {
    async fn list(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let size = page_size(request.page_size, 100, 1000);
        let repository =
            match request.repository.as_str() {
                "" => None,
                text => Some(text.parse::<Repository>().map_err(|error| {
                    Refusal::invalid("repository", "invalid_repository", error.to_string())
                })?),
            };
        let mut query = TagQuery { repository, after: page(&request.page_token)?, limit: size };
        let mut images = Vec::new();
        // What the caller may not list takes no place on the page.
        loop {
            let found = self.images.list(query.clone()).await.map_err(Refusal::from)?;
            let more = found.len() == query.limit;
            query.after = found.last().map(|last| (last.repository.clone(), last.tag.clone()));
            let allowed = found
                .into_iter()
                .filter(|image| caller.may_use_repository(RegistryVerb::List, &image.repository));
            images.extend(allowed);
            if images.len() >= size || !more {
                let mut next_page_token = String::new();
                if images.len() > size || more {
                    images.truncate(size);
                    if let Some(last) = images.last() {
                        next_page_token = format!("{}:{}", last.repository, last.tag);
                    }
                }
                let rooms = self.images.room_registries();
                let images = images.iter().map(|image| convert::image(image, rooms)).collect();
                return Ok(Response::new(v1::ListImagesResponse { images, next_page_token }));
            }
        }
    }

    async fn inspect(
        &self,
        request: Request<v1::InspectImageRequest>,
    ) -> Result<Response<v1::InspectImageResponse>, Status> {
        let caller = caller(request.extensions())?;
        let reference = reference("reference", &request.into_inner().reference)?;
        allow_repository(&caller, RegistryVerb::Pull, &reference.repository)?;
        let inspected = self.images.inspect(&reference).await.map_err(Refusal::from)?;
        Ok(Response::new(self.inspected(inspected)))
    }

    async fn tag(&self, request: Request<v1::TagImageRequest>) -> Result<Response<v1::Image>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let source = reference("reference", &request.reference)?;
        let tag = convert::tag("tag", &request.tag)?;
        allow_repository(&caller, RegistryVerb::Pull, &source.repository)?;
        allow_repository(&caller, RegistryVerb::Write, &tag.repository)?;
        let image = self.images.tag(&source, &tag).await.map_err(Refusal::from)?;
        Ok(Response::new(convert::image(&image, self.images.room_registries())))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let caller = caller(request.extensions())?;
        let reference = reference("reference", &request.into_inner().reference)?;
        allow_repository(&caller, RegistryVerb::Write, &reference.repository)?;
        self.images.remove(&reference).await.map_err(Refusal::from)?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn load(
        &self,
        request: Request<Streaming<v1::LoadImageRequest>>,
    ) -> Result<Response<v1::LoadImageResponse>, Status> {
        use v1::load_image_request::Message;
        let caller = caller(request.extensions())?;
        let mut messages = request.into_inner();
        let Some(v1::LoadImageRequest { message: Some(Message::Begin(begin)) }) = messages.message().await?
        else {
            return Err(begin_missing());
        };
        let destination = destination(&caller, begin.destination)?;
        let copy = self.room_copy(&caller, &begin.room_path)?;
        let (send, arriving) = mpsc::channel(AHEAD);
        let images = self.images.clone();
        // A task of its own: when the client goes away, the archive is seen to be cut off and cleaned up after.
        let load = task::spawn("load-image", async move {
            images.load(Arriving { chunks: arriving, chunk: Bytes::new() }, destination).await
        });
        loop {
            let chunk = match messages.message().await {
                Ok(None) => break,
                Ok(Some(v1::LoadImageRequest { message: Some(Message::Chunk(chunk)) })) => checked(chunk),
                Ok(Some(_)) => Err(chunk_missing()),
                Err(status) => Err(status),
            };
            match chunk {
                Ok(chunk) => {
                    if let Some(copy) = &copy
                        && !copy.chunk(chunk.clone()).await
                    {
                        break;
                    }
                    // A load that has failed says why below.
                    if send.send(Ok(chunk)).await.is_err() {
                        break;
                    }
                }
                Err(status) => {
                    // The reader is told, so that it does not take what came for all there is.
                    let cut = io::Error::new(io::ErrorKind::ConnectionAborted, "the upload was cut off");
                    let _ = send.send(Err(cut)).await;
                    drop(send);
                    drop(load.await);
                    return Err(status);
                }
            }
        }
        drop(send);
        let loaded = load.await.map_err(|error| Refusal::internal("the archive was not loaded", error))?;
        let loaded = loaded.map_err(Refusal::from)?;
        if let Some(copy) = copy {
            copy.finish().await?;
        }
        Ok(Response::new(v1::LoadImageResponse {
            digest: loaded.manifest.digest.to_string(),
            size_bytes: loaded.size_bytes,
            reused_bytes: loaded.reused_bytes,
            pack_id: loaded.pack.map(|id| id.to_string()).unwrap_or_default(),
            image: loaded.image.map(|image| convert::image(&image, self.images.room_registries())),
        }))
    }
}

impl ImagesService {
    /// Where the archive is kept as a file too, when that was asked for.
    fn room_copy(&self, caller: &Caller, path: &str) -> Result<Option<FileUpload>, Status> {
        if path.is_empty() {
            return Ok(None);
        }
        let path = hearth_proto::value::storage_path(path)
            .map_err(|error| Refusal::invalid("begin.room_path", "invalid_path", error.to_string()))?;
        allow_storage(caller, StorageVerb::Write, &path)?;
        Ok(Some(FileUpload::start(self.storage.room.clone(), path.into(), WriteOptions::default())))
    }

    fn inspected(&self, inspected: Inspected) -> v1::InspectImageResponse {
        let rooms = self.images.room_registries();
        let image = match inspected.tag {
            Some(tag) => convert::image(&tag, rooms),
            None => v1::Image {
                reference: format!("{}@{}", inspected.repository, inspected.manifest.digest),
                repository: inspected.repository.to_string(),
                digest: inspected.manifest.digest.to_string(),
                size_bytes: inspected.size_bytes,
                ..v1::Image::default()
            },
        };
        let layer = |layer: crate::model::image::Descriptor| v1::Layer {
            digest: layer.digest.to_string(),
            media_type: layer.media_type,
            size_bytes: layer.size,
        };
        v1::InspectImageResponse {
            image: Some(image),
            media_type: inspected.manifest.media_type,
            platform: inspected.platform.unwrap_or_default(),
            layers: inspected.layers.into_iter().map(layer).collect(),
            manifest_json: String::from_utf8_lossy(&inspected.manifest_json).into_owned(),
            config_json: String::from_utf8_lossy(&inspected.config_json).into_owned(),
        }
    }
}

fn destination(caller: &Caller, wire: Option<v1::load_begin::Destination>) -> Result<Destination, Status> {
    match wire {
        Some(v1::load_begin::Destination::Tag(text)) => {
            let tag = convert::tag("begin.tag", &text)?;
            allow_repository(caller, RegistryVerb::Write, &tag.repository)?;
            Ok(Destination::Tag(tag))
        }
        Some(v1::load_begin::Destination::Temporary(true)) => {
            require(caller.may_build(), "send packs for builds")?;
            Ok(Destination::Pack { owner: caller.name.clone() })
        }
        Some(v1::load_begin::Destination::Temporary(false)) | None => {
            Err(Refusal::invalid("begin.tag", "destination_missing", "give a tag, or `temporary` for a pack")
                .into())
        }
    }
}

fn reference(field: &str, text: &str) -> Result<Reference, Refusal> {
    text.parse::<Reference>().map_err(|error| Refusal::invalid(field, "invalid_reference", error.to_string()))
}

/// `repository:tag`, the last one of the page before.
fn page(token: &str) -> Result<Option<(Repository, Tag)>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    let invalid = || Refusal::invalid("page_token", "invalid_page_token", "not a page token of this call");
    let (repository, tag) = token.rsplit_once(':').ok_or_else(invalid)?;
    Ok(Some((repository.parse().map_err(|_| invalid())?, tag.parse().map_err(|_| invalid())?)))
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

impl From<ImageError> for Refusal {
    fn from(error: ImageError) -> Self {
        let status = match &error {
            ImageError::NotFound { .. } | ImageError::PackNotFound { .. } => Code::NotFound,
            ImageError::Foreign { .. }
            | ImageError::TagNeeded { .. }
            | ImageError::Manifest { .. }
            | ImageError::TooLarge { .. }
            | ImageError::TooDeep { .. }
            | ImageError::Config { .. }
            | ImageError::ImageCount { .. }
            | ImageError::Archive(_) => Code::InvalidArgument,
            ImageError::BlobMissing { .. } | ImageError::NoPlatform { .. } => Code::FailedPrecondition,
            ImageError::NoSpace => Code::ResourceExhausted,
            ImageError::Catalog(_) | ImageError::Read { .. } | ImageError::Sweep(_) => {
                return Self::internal("the room's images could not be used", &error);
            }
            ImageError::Ending => Code::Unavailable,
        };
        let refusal = Self::new(status, error.code(), error.to_string());
        match error.hint() {
            Some(hint) => refusal.hint(hint),
            None => refusal,
        }
    }
}
