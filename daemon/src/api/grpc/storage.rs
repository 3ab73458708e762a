use std::path::PathBuf;

use hearth_proto::v1;
use tonic::{Request, Response, Status, Streaming};

use super::super::audit;
use super::super::error::ApiError;
use super::response_stream::{ResponseStream, read_chunk, stream_batches};
use super::upload::{FileUpload, NewFile, StorageArea, begin_missing, checked, chunk_missing};
use super::{authorized_storage_path, caller, check_access, share_owner};
use crate::access::policy::CallerAction;
use crate::context::{FileKind, StorageEntry, StorageError, StorageRoot, StorageRoots, WriteOptions};
use crate::disk::DiskLedger;
use crate::model::access::{Caller, StorageVerb};
use crate::model::fault::ErrorCode;
use crate::task;

/// Maximum number of directory entries that are read for one batch of a listing.
const ENTRIES: usize = 256;

pub struct StorageService {
    pub storage: StorageRoots,
    pub disk: DiskLedger,
}

#[tonic::async_trait]
impl v1::storage_server::Storage for StorageService {
    type ListStream = ResponseStream<v1::FileEntry>;
    type ReadStream = ResponseStream<v1::ReadFileResponse>;

    async fn list(
        &self,
        request: Request<v1::ListFilesRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let (root, path) = self.allow(&caller, StorageVerb::Read, request.area, &request.path)?;
        let listing = blocking(move || root.list(&path, request.recursive)).await?;
        Ok(Response::new(stream_batches(listing, |listing| {
            let piece = listing.take(ENTRIES).map(|entry| Ok(file_entry(&entry?)));
            piece.collect::<Result<_, StorageError>>().map_err(|error| ApiError::from(error).into())
        })))
    }

    async fn read(
        &self,
        request: Request<v1::ReadFileRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        use v1::read_file_response::Message;
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let (root, path) = self.allow(&caller, StorageVerb::Read, request.area, &request.path)?;
        let (stat, file) = blocking(move || root.read(&path)).await?;
        let path = stat.path.clone();
        Ok(Response::new(stream_batches((Some(stat), file), move |(stat, file)| {
            let message = match stat.take() {
                Some(stat) => Some(Message::Entry(file_entry(&stat))),
                None => read_chunk(file)
                    .map_err(|source| ApiError::from(StorageError::Io { path: path.clone(), source }))?
                    .map(Message::Chunk),
            };
            Ok(message.map(|message| v1::ReadFileResponse { message: Some(message) }).into_iter().collect())
        })))
    }

    async fn write(
        &self,
        request: Request<Streaming<v1::WriteFileRequest>>,
    ) -> Result<Response<v1::FileEntry>, Status> {
        use v1::write_file_request::Message;
        let (caller, owner) = (caller(request.extensions())?, share_owner(request.extensions())?);
        let mut messages = request.into_inner();
        let Some(v1::WriteFileRequest { message: Some(Message::Begin(begin)) }) = messages.message().await?
        else {
            return Err(begin_missing());
        };
        let (root, path) = self.allow(&caller, StorageVerb::Write, begin.area, &begin.path)?;
        if !begin.link_target.is_empty() {
            if messages.message().await?.is_some() {
                let what = "a link has no content";
                return Err(ApiError::invalid("chunk", ErrorCode::InvalidArgument, what).into());
            }
            return self.make_link(&caller, begin.area, (root, path), begin.link_target.into()).await;
        }
        let mode = if begin.mode == 0 { WriteOptions::default().mode } else { begin.mode };
        let options = WriteOptions { mode, size: begin.size_bytes };

        let area = area(begin.area)?;
        let file = NewFile { root, path, options, area, owner: &owner };
        let mut upload = FileUpload::start(&self.disk, file).await?;
        while let Some(message) = messages.message().await? {
            let Some(Message::Chunk(chunk)) = message.message else {
                return Err(chunk_missing());
            };
            upload.chunk(checked(chunk)?).await?;
        }
        Ok(Response::new(file_entry(&upload.finish().await?)))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveFileRequest>,
    ) -> Result<Response<v1::RemoveFileResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let (root, path) = self.allow(&caller, StorageVerb::Write, request.area, &request.path)?;
        if request.recursive {
            check_access(&caller, &CallerAction::RemoveTree(&path.to_string_lossy()))?;
        }
        let (disk, area) = (self.disk.clone(), area(request.area)?);
        blocking(move || {
            root.remove(&path, request.recursive)?;
            disk.forget_below(&area.content(&path));
            Ok(())
        })
        .await?;
        Ok(Response::new(v1::RemoveFileResponse {}))
    }
}

impl StorageService {
    /// Makes a link to a path that the caller may write, so that a link never leads a caller with more rights there.
    async fn make_link(
        &self,
        caller: &Caller,
        wire: i32,
        (root, path): (StorageRoot, PathBuf),
        target: PathBuf,
    ) -> Result<Response<v1::FileEntry>, Status> {
        let destination = StorageRoot::link_destination(&path, &target).map_err(ApiError::from)?;
        check_access(caller, &CallerAction::WriteStorage(&destination.to_string_lossy()))?;
        let (disk, area) = (self.disk.clone(), area(wire)?);
        let made = blocking(move || {
            let made = root.make_link(&path, &target)?;
            disk.forget_below(&area.content(&path));
            Ok(made)
        });
        Ok(Response::new(file_entry(&made.await?)))
    }

    /// Checks that the caller may use a path, and returns the storage and the path in it.
    fn allow(
        &self,
        caller: &Caller,
        verb: StorageVerb,
        wire: i32,
        path: &str,
    ) -> Result<(StorageRoot, PathBuf), Status> {
        let (root, name) = match area(wire)? {
            StorageArea::Room => (&self.storage.room, "room"),
            StorageArea::Project => (&self.storage.project, "project"),
        };
        audit::record_object(format_args!("{name} storage /{}", path.trim_start_matches('/')));
        authorized_storage_path(caller, verb, root, "path", path)
    }
}

fn area(wire: i32) -> Result<StorageArea, ApiError> {
    match v1::StorageArea::try_from(wire) {
        Ok(v1::StorageArea::Unspecified | v1::StorageArea::Room) => Ok(StorageArea::Room),
        Ok(v1::StorageArea::Project) => Ok(StorageArea::Project),
        Err(_) => Err(ApiError::invalid("area", ErrorCode::InvalidArea, "unknown storage area")),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Status> {
    match task::blocking("storage", work).await {
        Ok(result) => Ok(result.map_err(ApiError::from)?),
        Err(error) => Err(ApiError::internal("the storage could not be reached", error).into()),
    }
}

fn file_entry(stat: &StorageEntry) -> v1::FileEntry {
    let (kind, link_target) = match &stat.kind {
        FileKind::File(()) => (v1::FileKind::File, String::new()),
        FileKind::Directory => (v1::FileKind::Directory, String::new()),
        FileKind::Symlink(target) => (v1::FileKind::Symlink, target.to_string_lossy().into_owned()),
        FileKind::HardLink(never) => match *never {},
        FileKind::Special(_) => (v1::FileKind::Other, String::new()),
    };
    v1::FileEntry {
        path: stat.path.to_string_lossy().into_owned(),
        kind: kind.into(),
        size_bytes: stat.size,
        mode: stat.mode,
        modified_at: Some(prost_types::Timestamp {
            seconds: stat.modified.div_euclid(1_000_000_000),
            nanos: stat.modified.rem_euclid(1_000_000_000) as i32,
        }),
        link_target,
    }
}
