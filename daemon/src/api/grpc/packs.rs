use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use hearth_oci::DeclaredPlatform;
use hearth_pack::FileKind;
use hearth_pack::identity::{ContentHash, HashedContent, TreeDigest, TreeNode};
use hearth_pack::layer::{Compression, LayerOptions};
use hearth_proto::v1;
use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};
use tracing::Span;
use tracing::field::Empty;

use super::super::audit;
use super::super::convert;
use super::super::error::ApiError;
use super::upload::{FileError, NewFile, QuotaWriter, StorageArea};
use super::{authorized_storage_path, caller, check_access, share_owner};
use crate::access::policy::{CallerAction, decide};
use crate::context::{ContentPiece, StorageError, StorageRoot, StorageRoots, WriteOptions};
use crate::disk::DiskLedger;
use crate::model::Reference;
use crate::model::access::{Caller, StorageVerb};
use crate::model::fault::ErrorCode;
use crate::model::share_owner::ShareOwner;
use crate::packs::store::MAX_PIECE_SIZE;
use crate::packs::{
    CommittedPack, ListingReceiver, PackBeginOutcome, PackDestination, PackError, PackImageOptions,
    PackStore, PreparedPack, UploadPlan,
};
use crate::packs::{PieceData, PieceReceiver, SentPiece};
use crate::task;

/// Maximum size in bytes of a part of a list after decompression.
const MAX_ENTRIES: usize = 8 << 20;
const MAX_LINEAGE: usize = 128;

pub struct PacksService {
    pub packs: PackStore,
    pub storage: StorageRoots,
    pub rooms: crate::model::RoomRegistries,
    pub disk: DiskLedger,
}

#[tonic::async_trait]
impl v1::packs_server::Packs for PacksService {
    #[tracing::instrument(name = "pack", skip_all, fields(operation = "begin", tree.digest = Empty))]
    async fn begin(
        &self,
        request: Request<v1::BeginPackRequest>,
    ) -> Result<Response<v1::BeginPackResponse>, Status> {
        use v1::begin_pack_response::Answer;
        let (caller, owner) = (caller(request.extensions())?, share_owner(request.extensions())?);
        let request = request.into_inner();
        let tree: TreeDigest =
            request.tree.parse().map_err(|error: hearth_pack::identity::InvalidHash| {
                ApiError::invalid("tree", ErrorCode::InvalidTree, error.to_string())
            })?;
        Span::current().record("tree.digest", tracing::field::display(&tree));
        let destination = destination(&caller, &self.storage.room, request)?;
        let outcome = Box::pin(self.packs.begin(tree, destination)).await.map_err(ApiError::from)?;
        let answer = match outcome {
            PackBeginOutcome::Done(ready) => Answer::Done(self.result(&caller, &owner, *ready).await?),
            PackBeginOutcome::Upload(id) => Answer::UploadId(id),
        };
        Ok(Response::new(v1::BeginPackResponse { answer: Some(answer) }))
    }

    #[tracing::instrument(name = "pack", skip_all, fields(operation = "list", upload.id = Empty))]
    async fn list(
        &self,
        request: Request<Streaming<v1::ListPackRequest>>,
    ) -> Result<Response<v1::ListPackResponse>, Status> {
        let caller = caller(request.extensions())?;
        let mut messages = request.into_inner();
        let mut lister: Option<ListingReceiver> = None;
        while let Some(message) = messages.message().await? {
            let lister = match &mut lister {
                Some(lister) => lister,
                None => {
                    let owner = self.own_upload(&caller, &message.upload_id)?;
                    let opened = self.packs.listing_receiver(&owner, &message.upload_id);
                    lister.insert(opened.map_err(ApiError::from)?)
                }
            };
            let part = match message.part {
                Some(v1::list_pack_request::Part::Entries(entries)) => entries,
                Some(v1::list_pack_request::Part::EntriesZstd(frame)) => unpacked(&frame)?,
                None => v1::PackEntries::default(),
            };
            for entry in &part.entries {
                push(lister, entry)?;
            }
        }
        let lister = lister.ok_or_else(|| upload_missing("upload_id"))?;
        let list: Arc<UploadPlan> = lister.finish().await.map_err(ApiError::from)?;
        Ok(Response::new(v1::ListPackResponse {
            missing: list.missing.clone(),
            prove: list.prove.clone(),
            proof_key: Bytes::copy_from_slice(&list.proof_key),
        }))
    }

    #[tracing::instrument(name = "pack", skip_all, fields(operation = "chunks", upload.id = Empty))]
    async fn chunks(
        &self,
        request: Request<v1::ChunkPackRequest>,
    ) -> Result<Response<v1::ChunkPackResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let owner = self.own_upload(&caller, &request.upload_id)?;
        let mut files = Vec::with_capacity(request.files.len());
        for file in request.files {
            let mut pieces = Vec::with_capacity(file.chunks.len());
            for chunk in &file.chunks {
                pieces.push(ContentPiece {
                    hash: hash("files.chunks.content", &chunk.content)?,
                    size: chunk.size,
                });
            }
            files.push((file.entry, pieces));
        }
        let missing =
            self.packs.register_chunks(&owner, &request.upload_id, files).await.map_err(ApiError::from)?;
        let missing =
            missing.into_iter().map(|(entry, chunks)| v1::MissingChunks { entry, chunks }).collect();
        Ok(Response::new(v1::ChunkPackResponse { missing }))
    }

    #[tracing::instrument(name = "pack", skip_all, fields(operation = "send", upload.id = Empty))]
    async fn send(
        &self,
        request: Request<Streaming<v1::SendPackRequest>>,
    ) -> Result<Response<v1::SendPackResponse>, Status> {
        let caller = caller(request.extensions())?;
        let mut messages = request.into_inner();
        let mut receiver: Option<PieceReceiver> = None;
        let received = self.receive_pieces(&caller, &mut messages, &mut receiver).await;
        let Some(receiver) = receiver else {
            return received.and_then(|()| Err(upload_missing("upload_id")));
        };
        // A truncated stream is stored too: the next attempt sends the rest.
        let durable = receiver.finish().await.map_err(ApiError::from);
        received?;
        durable?;
        Ok(Response::new(v1::SendPackResponse { pieces: receiver.pieces, bytes: receiver.bytes }))
    }

    #[tracing::instrument(name = "pack", skip_all, fields(operation = "commit", upload.id = Empty))]
    async fn commit(
        &self,
        request: Request<v1::CommitPackRequest>,
    ) -> Result<Response<v1::CommitPackResponse>, Status> {
        let (caller, owner) = (caller(request.extensions())?, share_owner(request.extensions())?);
        let request = request.into_inner();
        let upload_owner = self.own_upload(&caller, &request.upload_id)?;
        let proof = match request.proof.len() {
            0 => None,
            _ => Some(<[u8; 32]>::try_from(request.proof.as_ref()).map_err(|_| {
                ApiError::invalid("proof", ErrorCode::InvalidProof, "a proof is a BLAKE3 hash: 32 bytes")
            })?),
        };
        let ready = Box::pin(self.packs.commit(&upload_owner, &request.upload_id, proof)).await;
        let result = self.result(&caller, &owner, ready.map_err(ApiError::from)?).await?;
        Ok(Response::new(v1::CommitPackResponse { result: Some(result) }))
    }
}

impl PacksService {
    /// Returns the owner of an upload that the caller may continue. Another caller's upload gives the same
    /// error as a missing one.
    fn own_upload(&self, caller: &Caller, id: &str) -> Result<String, Status> {
        audit::record_object(format_args!("upload {}", id.chars().take(64).collect::<String>()));
        let owner = self.packs.upload_owner(id).map_err(ApiError::from)?;
        Span::current().record("upload.id", id);
        if let Err(denied) = decide(caller, &CallerAction::UseUpload { id, owner: &owner }) {
            audit::record_hidden_denial(&denied);
            return Err(ApiError::from(PackError::no_upload(id)).into());
        }
        Ok(owner)
    }

    async fn receive_pieces(
        &self,
        caller: &Caller,
        messages: &mut Streaming<v1::SendPackRequest>,
        receiver: &mut Option<PieceReceiver>,
    ) -> Result<(), Status> {
        while let Some(message) = messages.message().await? {
            let receiver = match receiver {
                Some(receiver) => receiver,
                None => {
                    let owner = self.own_upload(caller, &message.upload_id)?;
                    let opened = self.packs.piece_receiver(&owner, &message.upload_id);
                    receiver.insert(opened.map_err(ApiError::from)?)
                }
            };
            let data = match message.data {
                Some(v1::send_pack_request::Data::Plain(bytes)) => PieceData::Plain(bytes),
                Some(v1::send_pack_request::Data::Zstd(bytes)) => PieceData::Zstd(bytes),
                None => PieceData::Plain(Bytes::new()),
            };
            let piece = |piece: v1::PackPiece| {
                let v1::PackPiece { entry, chunk, size } = piece;
                SentPiece { entry, chunk, size }
            };
            let pieces = message.pieces.into_iter().map(piece).collect();
            receiver.receive(pieces, data).await.map_err(ApiError::from)?;
        }
        Ok(())
    }

    /// Stores the archive if requested, and then names the image: an image whose archive could not be stored
    /// gets no name.
    async fn result(
        &self,
        caller: &Caller,
        owner: &ShareOwner,
        ready: PreparedPack,
    ) -> Result<v1::PackResult, Status> {
        if let Some((image, path)) = ready.archive() {
            // The committing caller may have fewer rights than the one who began.
            let (root, path) =
                authorized_storage_path(caller, StorageVerb::Write, &self.storage.room, "room_path", path)?;
            let (disk, owner) = (self.disk.clone(), owner.clone());
            let write = move || {
                let (options, area) = (WriteOptions::default(), StorageArea::Room);
                let file = NewFile { root, path: path.clone(), options, area, owner: &owner };
                let mut writer = QuotaWriter::begin(&disk, file)?;
                let mut failed = None;
                let written =
                    image.write_archive(&mut ArchiveSink { writer: &mut writer, failed: &mut failed });
                match (failed, written) {
                    (Some(error), _) => Err(error),
                    (None, Err(source)) => Err(FileError::Storage(StorageError::Io { path, source })),
                    (None, Ok(())) => writer.finish(area.content(&path)),
                }
            };
            let stored = task::blocking("store archive", write).await;
            stored
                .map_err(|error| ApiError::internal("the archive was not stored", error))?
                .map_err(ApiError::from)?;
        }
        let CommittedPack { pack, image, made } =
            Box::pin(self.packs.publish(ready)).await.map_err(ApiError::from)?;
        tracing::info!(
            caller = caller.name,
            pack.id = pack.as_ref().map(tracing::field::display),
            image.digest = made.as_ref().map(|made| tracing::field::display(&made.digest)),
            "pack committed"
        );
        Ok(v1::PackResult {
            pack_id: pack.map(|id| id.to_string()).unwrap_or_default(),
            image: image.map(|image| convert::image(&image, &self.rooms)),
            digest: made.as_ref().map(|made| made.digest.to_string()).unwrap_or_default(),
            layer: made.as_ref().map(|made| made.layer.to_string()).unwrap_or_default(),
            diff_id: made.as_ref().map(|made| made.diff_id.to_string()).unwrap_or_default(),
            archive_bytes: made.map(|made| made.archive_bytes).unwrap_or_default(),
        })
    }
}

fn upload_missing(field: &str) -> Status {
    ApiError::invalid(field, ErrorCode::UploadMissing, "the first message names the upload").into()
}

fn unpacked(frame: &[u8]) -> Result<v1::PackEntries, ApiError> {
    let invalid = |what: &str| {
        ApiError::invalid(
            "entries_zstd",
            ErrorCode::InvalidList,
            format!("{what} of a serialized PackEntries of 8 MiB at most"),
        )
    };
    let bytes = zstd::bulk::decompress(frame, MAX_ENTRIES).map_err(|_| invalid("not the zstd frame"))?;
    v1::PackEntries::decode(Bytes::from(bytes)).map_err(|_| invalid("not the zstd frame"))
}

fn hash(field: &str, bytes: &[u8]) -> Result<ContentHash, ApiError> {
    let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| {
        ApiError::invalid(field, ErrorCode::InvalidHash, "a content is named by its BLAKE3 hash: 32 bytes")
    })?;
    Ok(ContentHash::from_bytes(bytes))
}

fn push(lister: &mut ListingReceiver, entry: &v1::PackEntry) -> Result<(), ApiError> {
    use v1::PackEntryKind as Kind;
    let kind = match entry.kind() {
        Kind::Directory => FileKind::Directory,
        Kind::File => {
            FileKind::File(HashedContent { size: entry.size, hash: hash("entries.content", &entry.content)? })
        }
        Kind::Symlink => FileKind::Symlink(&entry.target[..]),
        Kind::Hardlink => FileKind::HardLink(&entry.target[..]),
        Kind::Unspecified => {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            return Err(ApiError::invalid(
                "entries.kind",
                ErrorCode::InvalidList,
                format!("`{path}` has no kind"),
            ));
        }
    };
    let xattrs: Cow<'_, [(Vec<u8>, Vec<u8>)]> = if entry.xattrs.is_empty() {
        Cow::Borrowed(&[])
    } else {
        entry.xattrs.iter().map(|xattr| (xattr.name.to_vec(), xattr.value.to_vec())).collect()
    };
    let node = TreeNode { path: &entry.path, mode: entry.mode, kind, xattrs: &xattrs };
    Ok(lister.push(&node)?)
}

fn destination(
    caller: &Caller,
    room: &StorageRoot,
    request: v1::BeginPackRequest,
) -> Result<PackDestination, Status> {
    use v1::begin_pack_request::Destination as Wire;
    let tag: Option<Reference> = match &request.destination {
        Some(Wire::Tag(text)) => Some(convert::tag("tag", text)?),
        Some(Wire::Temporary(true)) => None,
        Some(Wire::Temporary(false)) | None => {
            let what = "give a tag, or `temporary` for a pack";
            return Err(ApiError::invalid("tag", ErrorCode::DestinationMissing, what).into());
        }
    };
    match &tag {
        Some(tag) => audit::record_object(tag),
        None => audit::record_object("a temporary pack"),
    }
    match &tag {
        Some(tag) => check_access(caller, &CallerAction::WriteRepository(&tag.repository))?,
        None => check_access(caller, &CallerAction::SendPack)?,
    }
    let mut archive = None;
    if !request.room_path.is_empty() {
        authorized_storage_path(caller, StorageVerb::Write, room, "room_path", &request.room_path)?;
        archive = Some(request.room_path);
    }
    if request.lineage.len() > MAX_LINEAGE {
        let what = "a lineage has at most 128 bytes";
        return Err(ApiError::invalid("lineage", ErrorCode::InvalidLineage, what).into());
    }
    let image = image(request.image.unwrap_or_default())?;
    Ok(PackDestination { owner: caller.name.clone(), tag, archive, image, lineage: request.lineage })
}

fn image(image: v1::PackImage) -> Result<PackImageOptions, ApiError> {
    let compression = match image.compression.as_str() {
        "" | "zstd" => Compression::Zstd,
        "gzip" => Compression::Gzip,
        "none" => Compression::None,
        _ => {
            let known = "a compression is zstd, gzip or none";
            return Err(ApiError::invalid("image.compression", ErrorCode::InvalidCompression, known));
        }
    };
    let platform = match image.arch.as_str() {
        "" => DeclaredPlatform::default(),
        arch => arch.parse().map_err(|error: hearth_oci::PlatformError| {
            ApiError::invalid("image.arch", ErrorCode::InvalidArch, error.to_string())
        })?,
    };
    // Checked before the upload, so that an error is not reported only after it.
    let config = convert::config_flags(image.config.unwrap_or_default(), "image.config")?;
    let layer = LayerOptions { compression, mtime: image.mtime, workers: None };
    Ok(PackImageOptions { layer, config, platform, docker: image.docker })
}

/// Writes an archive to a file of the storage, and keeps the typed error.
struct ArchiveSink<'a> {
    writer: &'a mut QuotaWriter,
    failed: &'a mut Option<FileError>,
}

impl std::io::Write for ArchiveSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.writer.append(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                *self.failed = Some(error);
                Err(std::io::ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// The largest piece must fit into a message.
const _: () = assert!((MAX_PIECE_SIZE as usize) < hearth_proto::MAX_MESSAGE_BYTES);
