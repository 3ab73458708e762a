//! Uploads of files to the storage: a file is stored completely or not at all. No thread waits for the sender.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tonic::Status;

use super::super::error::ApiError;
use crate::context::{StorageEntry, StorageError, StorageRoot, StorageWriter, WriteOptions};
use crate::disk::{DiskClaim, DiskError, DiskLedger, KeptContent, UploadKind};
use crate::model::fault::ErrorCode;
use crate::model::share_owner::ShareOwner;
use crate::task;
use crate::task::sequential::{SequentialError, SequentialWork};

/// Maximum size in bytes of a chunk from a client.
const MAX_CHUNK: usize = 4 * 1024 * 1024;

/// Upload of a file. Dropping it before [`finish`](Self::finish) leaves nothing of the file.
pub(super) struct FileUpload {
    content: SequentialWork<QuotaWriter, FileError>,
    kept: KeptContent,
}

/// A file to be stored, and its owner.
pub(super) struct NewFile<'a> {
    pub root: StorageRoot,
    pub path: PathBuf,
    pub options: WriteOptions,
    pub area: StorageArea,
    pub owner: &'a ShareOwner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StorageArea {
    Room,
    Project,
}

/// Writes a file within the owner's share of the disk.
pub(super) struct QuotaWriter {
    writer: StorageWriter,
    claim: DiskClaim,
}

/// Failure to write a file.
#[derive(Debug)]
pub(in crate::api) enum FileError {
    Storage(StorageError),
    Disk(DiskError),
}

impl StorageArea {
    pub(super) fn content(self, path: &Path) -> KeptContent {
        match self {
            Self::Room => KeptContent::RoomFile(path.to_owned()),
            Self::Project => KeptContent::ProjectFile(path.to_owned()),
        }
    }
}

impl QuotaWriter {
    /// Opens the file. Blocking, like all methods.
    pub(super) fn begin(disk: &DiskLedger, file: NewFile<'_>) -> Result<Self, FileError> {
        let NewFile { root, path, options, owner, .. } = file;
        let name = path.display().to_string();
        let claim = disk.begin(&owner.0, UploadKind::File, &name, root.path()).map_err(FileError::Disk)?;
        let writer = root.write(&path, options).map_err(FileError::Storage)?;
        Ok(Self { writer, claim })
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.claim.grow(bytes.len() as u64).map_err(FileError::Disk)?;
        self.writer.append(bytes).map_err(FileError::Storage)
    }

    pub(super) fn finish(self, kept: KeptContent) -> Result<StorageEntry, FileError> {
        let stat = self.writer.finish().map_err(FileError::Storage)?;
        self.claim.keep(vec![(kept, stat.size)]);
        Ok(stat)
    }
}

impl FileUpload {
    pub(super) async fn start(disk: &DiskLedger, file: NewFile<'_>) -> Result<Self, Status> {
        let kept = file.area.content(&file.path);
        let (disk, owner) = (disk.clone(), file.owner.clone());
        let NewFile { root, path, options, area, .. } = file;
        let begin = move || QuotaWriter::begin(&disk, NewFile { root, path, options, area, owner: &owner });
        let writer = task::blocking("file-upload", begin).await;
        let writer = writer.map_err(|error| not_written(&error))?.map_err(ApiError::from)?;
        Ok(Self { content: SequentialWork::new("file-upload", writer), kept })
    }

    /// Writes a chunk while the next one is received. Returns the error of an earlier chunk, if there is one.
    pub(super) async fn chunk(&mut self, chunk: Bytes) -> Result<(), Status> {
        self.content.next(move |writer| writer.append(&chunk)).await.map_err(stopped)
    }

    pub(super) async fn finish(self) -> Result<StorageEntry, Status> {
        let Self { content, kept } = self;
        let writer = content.finish().await.map_err(stopped)?;
        let written = task::blocking("file-upload", move || writer.finish(kept)).await;
        Ok(written.map_err(|error| not_written(&error))?.map_err(ApiError::from)?)
    }
}

fn stopped(stopped: SequentialError<FileError>) -> Status {
    match stopped {
        SequentialError::Failed(error) => ApiError::from(error).into(),
        SequentialError::Ended => not_written(&"its writer ended early"),
    }
}

fn not_written(cause: &dyn std::fmt::Display) -> Status {
    ApiError::internal("the file was not written", cause).into()
}

/// Refuses a chunk that exceeds the maximum size.
pub(super) fn checked(chunk: Bytes) -> Result<Bytes, Status> {
    if chunk.len() <= MAX_CHUNK {
        return Ok(chunk);
    }
    Err(ApiError::invalid("chunk", ErrorCode::ChunkTooLarge, format!("a chunk is at most {MAX_CHUNK} bytes"))
        .into())
}

/// Error about an upload without `begin` as its first message.
pub(super) fn begin_missing() -> Status {
    ApiError::invalid("begin", ErrorCode::BeginMissing, "the first message must be `begin`").into()
}

/// Error about an upload with a message other than a chunk after `begin`.
pub(super) fn chunk_missing() -> Status {
    ApiError::invalid("chunk", ErrorCode::ChunkMissing, "after `begin` come only chunks").into()
}
