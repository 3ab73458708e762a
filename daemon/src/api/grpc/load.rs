//! Loads an image archive: it is received into a scratch file, which is unpacked when it is complete, and into
//! a copy in the storage if requested.
//!
//! ```text
//! messages --> spool --complete--> reader --> blobs without a name
//!        '---> copy --> complete file            both done: the image is named
//! ```

use std::fs::File;
use std::io::{self, Seek as _, Write as _};

use bytes::Bytes;
use hearth_proto::v1;
use tonic::{Status, Streaming};

use super::super::audit;
use super::super::convert;
use super::super::error::ApiError;
use super::images::ImagesService;
use super::upload::{FileUpload, NewFile, StorageArea, begin_missing, checked, chunk_missing};
use super::{authorized_storage_path, check_access};
use crate::access::policy::CallerAction;
use crate::context::WriteOptions;
use crate::disk::{DiskClaim, KeptContent, UploadKind};
use crate::image::{ImageDestination, ImageError};
use crate::model::RoomRegistries;
use crate::model::access::{Caller, StorageVerb};
use crate::model::fault::ErrorCode;
use crate::model::share_owner::ShareOwner;
use crate::task::sequential::{SequentialError, SequentialWork};

const READ_AHEAD: usize = 256 * 1024;

impl ImagesService {
    pub(super) async fn take_archive(
        &self,
        caller: &Caller,
        owner: &ShareOwner,
        mut messages: Streaming<v1::LoadImageRequest>,
    ) -> Result<v1::LoadImageResponse, Status> {
        use v1::load_image_request::Message;
        let Some(v1::LoadImageRequest { message: Some(Message::Begin(begin)) }) = messages.message().await?
        else {
            return Err(begin_missing());
        };
        let destination = destination(caller, begin.destination, self.images.room_registries())?;
        let mut copy = self.room_copy(caller, owner, &begin.room_path).await?;
        let name = match &destination {
            ImageDestination::Tag(tag) => tag.to_string(),
            ImageDestination::Untagged(repository) => repository.to_string(),
            ImageDestination::Pack { .. } => "pack".to_owned(),
        };
        let mut spool = self.spool(owner, &name).await?;
        while let Some(message) = messages.message().await? {
            let Some(Message::Chunk(chunk)) = message.message else { return Err(chunk_missing()) };
            let chunk = checked(chunk)?;
            if let Some(copy) = &mut copy {
                copy.chunk(chunk.clone()).await?;
            }
            spool.chunk(chunk).await?;
        }
        let SpooledArchive { file: archive, claim } = spool.finish().await?;
        let received = self.images.receive(io::BufReader::with_capacity(READ_AHEAD, archive)).await;
        let received = received.map_err(ApiError::from)?;
        // The copy is finished first: an image whose archive could not be stored gets no name.
        if let Some(copy) = copy
            && let Err(status) = copy.finish().await
        {
            self.images.discard(received).await;
            return Err(status);
        }
        let brought = received.new_content();
        let loaded =
            self.images.name_received(received, destination, &caller.name).await.map_err(ApiError::from)?;
        let content = brought.into_iter().map(|(digest, bytes)| (KeptContent::Blob(digest), bytes));
        claim.keep(content.collect());
        Ok(v1::LoadImageResponse {
            digest: loaded.manifest.digest.to_string(),
            size_bytes: loaded.size_bytes,
            reused_bytes: loaded.reused_bytes,
            pack_id: loaded.pack.map(|id| id.to_string()).unwrap_or_default(),
            image: loaded.image.map(|image| convert::image(&image, self.images.room_registries())),
        })
    }

    /// Starts the upload of a copy of the archive to the storage, if requested.
    async fn room_copy(
        &self,
        caller: &Caller,
        owner: &ShareOwner,
        path: &str,
    ) -> Result<Option<FileUpload>, Status> {
        if path.is_empty() {
            return Ok(None);
        }
        let (root, path) =
            authorized_storage_path(caller, StorageVerb::Write, &self.storage.room, "begin.room_path", path)?;
        let options = WriteOptions::default();
        let file = NewFile { root, path, options, area: StorageArea::Room, owner };
        Ok(Some(FileUpload::start(&self.disk, file).await?))
    }
}

fn destination(
    caller: &Caller,
    wire: Option<v1::load_begin::Destination>,
    rooms: &RoomRegistries,
) -> Result<ImageDestination, Status> {
    match wire {
        Some(v1::load_begin::Destination::Tag(text)) => {
            let tag = convert::tag("begin.tag", &text)?;
            if !rooms.owns_tag(&tag) {
                return Err(ApiError::from(ImageError::Foreign { reference: tag.to_string() }).into());
            }
            audit::record_object(&tag);
            check_access(caller, &CallerAction::WriteRepository(&tag.repository))?;
            Ok(ImageDestination::Tag(tag))
        }
        Some(v1::load_begin::Destination::Temporary(true)) => {
            audit::record_object("a temporary pack");
            check_access(caller, &CallerAction::SendPack)?;
            Ok(ImageDestination::Pack { owner: caller.name.clone() })
        }
        Some(v1::load_begin::Destination::Temporary(false)) | None => Err(ApiError::invalid(
            "begin.tag",
            ErrorCode::DestinationMissing,
            "give a tag, or `temporary` for a pack",
        )
        .into()),
    }
}

/// Archive that is being received. Dropping it removes the scratch file.
struct ArchiveSpool(SequentialWork<SpooledArchive, Status>);

struct SpooledArchive {
    file: File,
    claim: DiskClaim,
}

impl ImagesService {
    async fn spool(&self, owner: &ShareOwner, name: &str) -> Result<ArchiveSpool, Status> {
        let (file, directory) = self.images.scratch_file().await.map_err(ApiError::from)?;
        let claim = self.disk.begin(&owner.0, UploadKind::Archive, name, &directory);
        Ok(ArchiveSpool(SequentialWork::new(
            "load-image",
            SpooledArchive { file, claim: claim.map_err(ApiError::from)? },
        )))
    }
}

impl ArchiveSpool {
    async fn chunk(&mut self, chunk: Bytes) -> Result<(), Status> {
        let write = move |SpooledArchive { file, claim }: &mut SpooledArchive| {
            claim.grow(chunk.len() as u64).map_err(ApiError::from)?;
            file.write_all(&chunk).map_err(not_kept)
        };
        self.0.next(write).await.map_err(stopped)
    }

    /// Returns the whole archive, rewound to its start.
    async fn finish(mut self) -> Result<SpooledArchive, Status> {
        self.0.next(|spooled| spooled.file.rewind().map_err(not_kept)).await.map_err(stopped)?;
        self.0.finish().await.map_err(stopped)
    }
}

fn not_kept(error: io::Error) -> Status {
    ApiError::from(ImageError::scratch(error)).into()
}

fn stopped(stopped: SequentialError<Status>) -> Status {
    match stopped {
        SequentialError::Failed(status) => status,
        SequentialError::Ended => {
            ApiError::internal("the archive was not loaded", "its writer ended early").into()
        }
    }
}
