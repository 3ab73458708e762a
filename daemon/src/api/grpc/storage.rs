use std::io::Read as _;
use std::path::PathBuf;
use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use hearth_proto::{CHUNK_BYTES, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::super::error::Refusal;
use super::upload::{FileUpload, begin_missing, checked, chunk_missing};
use super::{ask, caller, storage_for};
use crate::access::policy::Action;
use crate::context::storage::{FileKind, FileStat, Root, Storage, StorageError, WriteOptions};
use crate::model::access::{Caller, StorageVerb};
use crate::task;

/// Messages between the thread that touches files and the connection: this many chunks are in memory.
const AHEAD: usize = 4;

pub struct StorageService {
    pub storage: Storage,
}

pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::storage_server::Storage for StorageService {
    type ListStream = Answers<v1::FileEntry>;
    type ReadStream = Answers<v1::ReadFileResponse>;

    async fn list(
        &self,
        request: Request<v1::ListFilesRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let (root, path) = self.allow(&caller, StorageVerb::Read, request.area, &request.path)?;
        let listing = blocking(move || root.list(&path, request.recursive)).await?;
        Ok(Response::new(from_thread(move |send| {
            for entry in listing {
                let entry =
                    entry.map(|stat| file_entry(&stat)).map_err(|error| Status::from(Refusal::from(error)));
                let ended = entry.is_err();
                if send.blocking_send(entry).is_err() || ended {
                    break;
                }
            }
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
        let (stat, mut file) = blocking(move || root.read(&path)).await?;
        Ok(Response::new(from_thread(move |send| {
            let message = |message| v1::ReadFileResponse { message: Some(message) };
            let name = stat.path.clone();
            let mut next = Ok(message(Message::Entry(file_entry(&stat))));
            loop {
                let ended = next.is_err();
                if send.blocking_send(next).is_err() || ended {
                    return;
                }
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                next = match file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk) {
                    Ok(0) => return,
                    Ok(_) => Ok(message(Message::Chunk(chunk.into()))),
                    Err(source) => Err(Refusal::from(StorageError::Io { path: name.clone(), source }).into()),
                };
            }
        })))
    }

    async fn write(
        &self,
        request: Request<Streaming<v1::WriteFileRequest>>,
    ) -> Result<Response<v1::FileEntry>, Status> {
        use v1::write_file_request::Message;
        let caller = caller(request.extensions())?;
        let mut messages = request.into_inner();
        let Some(v1::WriteFileRequest { message: Some(Message::Begin(begin)) }) = messages.message().await?
        else {
            return Err(begin_missing());
        };
        let (root, path) = self.allow(&caller, StorageVerb::Write, begin.area, &begin.path)?;
        let mode = if begin.mode == 0 { WriteOptions::default().mode } else { begin.mode };
        let options = WriteOptions { mode, size: begin.size_bytes };

        let upload = FileUpload::start(root, path, options);
        while let Some(message) = messages.message().await? {
            let Some(Message::Chunk(chunk)) = message.message else {
                return Err(chunk_missing());
            };
            if !upload.chunk(checked(chunk)?).await {
                break;
            }
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
            ask(&caller, &Action::RemoveTree(&path.to_string_lossy()))?;
        }
        blocking(move || root.remove(&path, request.recursive)).await?;
        Ok(Response::new(v1::RemoveFileResponse {}))
    }
}

impl StorageService {
    /// The storage and the path in it, when the caller may use them so.
    fn allow(
        &self,
        caller: &Caller,
        verb: StorageVerb,
        area: i32,
        path: &str,
    ) -> Result<(Root, PathBuf), Status> {
        let root = match v1::StorageArea::try_from(area) {
            Ok(v1::StorageArea::Unspecified | v1::StorageArea::Room) => &self.storage.room,
            Ok(v1::StorageArea::Project) => &self.storage.project,
            Err(_) => return Err(Refusal::invalid("area", "invalid_area", "unknown storage area").into()),
        };
        storage_for(caller, verb, root, "path", path)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Status> {
    match task::blocking("storage", work).await {
        Ok(result) => Ok(result.map_err(Refusal::from)?),
        Err(error) => Err(Refusal::internal("the storage could not be reached", error).into()),
    }
}

/// A stream of what a blocking thread sends; it ends when the receiver has gone.
pub(super) fn from_thread<T: Send + 'static>(
    work: impl FnOnce(mpsc::Sender<Result<T, Status>>) + Send + 'static,
) -> Answers<T> {
    let (send, receive) = mpsc::channel(AHEAD);
    task::spawn("storage-stream", async move {
        if let Err(error) = task::blocking("storage-stream", move || work(send)).await {
            tracing::error!(%error, "a storage stream ended early");
        }
    });
    ReceiverStream::new(receive).boxed()
}

fn file_entry(stat: &FileStat) -> v1::FileEntry {
    let (kind, link_target) = match &stat.kind {
        FileKind::File => (v1::FileKind::File, String::new()),
        FileKind::Directory => (v1::FileKind::Directory, String::new()),
        FileKind::Symlink(target) => (v1::FileKind::Symlink, target.to_string_lossy().into_owned()),
        FileKind::Other => (v1::FileKind::Other, String::new()),
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

impl From<StorageError> for Refusal {
    fn from(error: StorageError) -> Self {
        let message = error.to_string();
        let (status, code) = match &error {
            StorageError::NotFound { .. } => (Code::NotFound, "not_found"),
            StorageError::Escapes { .. } => (Code::InvalidArgument, "path_escapes"),
            StorageError::IsLink { .. } => (Code::FailedPrecondition, "is_a_link"),
            StorageError::LinkLoop { .. } => (Code::InvalidArgument, "link_loop"),
            StorageError::NotADirectory { .. } => (Code::FailedPrecondition, "not_a_directory"),
            StorageError::IsADirectory { .. } => (Code::FailedPrecondition, "is_a_directory"),
            StorageError::IsTheRoot { .. } => (Code::InvalidArgument, "is_the_root"),
            StorageError::NotAFile { .. } => (Code::FailedPrecondition, "not_a_file"),
            StorageError::AlreadyExists { .. } => (Code::AlreadyExists, "already_exists"),
            StorageError::BadPath { .. } => (Code::InvalidArgument, "invalid_path"),
            StorageError::Denied { .. } => (Code::PermissionDenied, "denied"),
            StorageError::NoSpace { .. } => (Code::ResourceExhausted, "no_space"),
            StorageError::SizeMismatch { .. } => (Code::DataLoss, "size_mismatch"),
            StorageError::Changed { .. } => {
                return Self::new(Code::Aborted, "changed", message).retryable(None);
            }
            StorageError::Unsupported { .. } | StorageError::Io { .. } => {
                return Self::internal("the storage could not be used", message);
            }
        };
        let refusal = Self::new(status, code, message);
        match error {
            StorageError::IsADirectory { .. } => {
                refusal.hint("add --recursive to remove a directory with all below it")
            }
            StorageError::NoSpace { .. } => refusal.hint("free some space in the storage and try again"),
            _ => refusal,
        }
    }
}
