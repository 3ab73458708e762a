//! Calls of the Storage service: files of the room and its project. File content is streamed in both
//! directions.

use std::io;
use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures::future::{self, Either};
use hearth_proto::CHUNK_BYTES;
use hearth_proto::v1::{
    FileEntry, ListFilesRequest, ReadFileRequest, RemoveFileRequest, StorageArea, WriteBegin,
    WriteFileRequest, read_file_response, write_file_request::Message,
};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tonic::{Request, Streaming};

use super::upload::{self, UploadChunk, UploadError};
use super::{Client, ClientError, unary_request};

/// Content of a file of the room, chunk by chunk.
pub struct FileContent {
    pub entry: FileEntry,
    stream: Streaming<hearth_proto::v1::ReadFileResponse>,
    address: String,
}

/// Entries of a directory, as they arrive.
pub struct FileListing {
    stream: Streaming<FileEntry>,
    address: String,
}

impl FileListing {
    pub async fn next(&mut self) -> Result<Option<FileEntry>, ClientError> {
        self.stream.message().await.map_err(|status| ClientError::from_status(&self.address, &status))
    }
}

impl FileContent {
    /// Returns the next chunk, or `None` at the end of the file. The caller must compare the length with
    /// `entry.size_bytes`.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let message = self.stream.message().await;
        let message = message.map_err(|status| ClientError::from_status(&self.address, &status))?;
        match message.map(|message| message.message) {
            None => Ok(None),
            Some(Some(read_file_response::Message::Chunk(chunk))) => Ok(Some(chunk)),
            Some(_) => {
                Err(ClientError::Protocol("a file's content had a message that is not content".to_owned()))
            }
        }
    }
}

impl Client {
    pub async fn list_files(
        &self,
        area: StorageArea,
        path: &str,
        recursive: bool,
    ) -> Result<FileListing, ClientError> {
        let request = ListFilesRequest { area: area.into(), path: path.to_owned(), recursive };
        let stream = self.message_or_error(self.storage().list(Request::new(request)).await)?;
        Ok(FileListing { stream, address: self.address.clone() })
    }

    pub async fn read_file(&self, area: StorageArea, path: &str) -> Result<FileContent, ClientError> {
        let request = ReadFileRequest { area: area.into(), path: path.to_owned() };
        let mut stream = self.message_or_error(self.storage().read(Request::new(request)).await)?;
        let first =
            stream.message().await.map_err(|status| ClientError::from_status(&self.address, &status))?;
        match first.and_then(|message| message.message) {
            Some(read_file_response::Message::Entry(entry)) => {
                Ok(FileContent { entry, stream, address: self.address.clone() })
            }
            _ => {
                Err(ClientError::Protocol(format!("the first message of `{path}` was not the file's entry")))
            }
        }
    }

    /// Writes a file completely or not at all. A failure of `content` aborts the call, and the daemon keeps
    /// the old file.
    pub async fn write_file(
        &self,
        begin: WriteBegin,
        content: impl AsyncRead + Send,
    ) -> Result<FileEntry, UploadError> {
        let (pieces, chunks) = upload::channel();
        let messages = tokio_stream::once(Message::Begin(begin))
            .chain(chunks.map(Message::Chunk))
            .map(|message| WriteFileRequest { message: Some(message) });
        let mut storage = self.storage();
        let calling = pin!(storage.write(messages));
        let reading = pin!(read_chunks(content, pieces));
        match future::select(reading, calling).await {
            Either::Left((read, calling)) => {
                read?;
                Ok(self.message_or_error(calling.await)?)
            }
            Either::Right((answer, _reading)) => Ok(self.message_or_error(answer)?),
        }
    }

    pub async fn remove_file(
        &self,
        area: StorageArea,
        path: &str,
        recursive: bool,
    ) -> Result<(), ClientError> {
        let request = RemoveFileRequest { area: area.into(), path: path.to_owned(), recursive };
        self.message_or_error(self.storage().remove(unary_request(request)).await).map(|_| ())
    }
}

/// Sends the content in chunks. Also succeeds when the daemon closes the stream, because its answer
/// then gives the reason.
async fn read_chunks(content: impl AsyncRead, pieces: mpsc::Sender<UploadChunk>) -> io::Result<()> {
    let mut content = pin!(content);
    loop {
        let mut chunk = BytesMut::with_capacity(64 * 1024);
        while chunk.len() < CHUNK_BYTES && content.read_buf(&mut chunk).await? > 0 {}
        let last = chunk.is_empty();
        let piece = if last { UploadChunk::End } else { UploadChunk::Chunk(chunk.freeze()) };
        if pieces.send(piece).await.is_err() || last {
            return Ok(());
        }
    }
}
