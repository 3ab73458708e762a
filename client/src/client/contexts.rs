//! Calls of the Contexts service: the files that a build would see.

use bytes::Bytes;
use hearth_proto::MAX_MESSAGE_BYTES;
use hearth_proto::v1::contexts_client::ContextsClient;
use hearth_proto::v1::{
    ContextDifference, ContextEntry, ContextMount, ContextSources, DiffContextRequest, DigestContextRequest,
    DigestContextResponse, ListContextMountsRequest, ListContextRequest, MountContextRequest,
    ReadContextRequest, ReadContextResponse, UnmountContextRequest, read_context_response::Message,
};
use tonic::{Request, Streaming};

use super::{AuthenticatedChannel, Client, ClientError, unary_request};

/// Messages of a streaming call, as they arrive.
pub struct ResponseStream<T> {
    stream: Streaming<T>,
    address: String,
}

impl<T> ResponseStream<T> {
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        self.stream.message().await.map_err(|status| ClientError::from_status(&self.address, &status))
    }
}

/// Content of a file of a context, chunk by chunk.
pub struct ContextFile {
    pub entry: ContextEntry,
    chunks: ResponseStream<ReadContextResponse>,
}

impl ContextFile {
    /// Returns the next chunk, or `None` at the end of the file.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        match self.chunks.next().await?.map(|message| message.message) {
            None => Ok(None),
            Some(Some(Message::Chunk(chunk))) => Ok(Some(chunk)),
            Some(_) => {
                Err(ClientError::Protocol("a file's content had a message that is not content".to_owned()))
            }
        }
    }
}

impl Client {
    fn contexts(&self) -> ContextsClient<AuthenticatedChannel> {
        ContextsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(super) fn response_stream<T>(&self, stream: Streaming<T>) -> ResponseStream<T> {
        ResponseStream { stream, address: self.address.clone() }
    }

    pub async fn list_context(
        &self,
        request: ListContextRequest,
    ) -> Result<ResponseStream<ContextEntry>, ClientError> {
        let stream = self.message_or_error(self.contexts().list(Request::new(request)).await)?;
        Ok(self.response_stream(stream))
    }

    pub async fn read_context(&self, request: ReadContextRequest) -> Result<ContextFile, ClientError> {
        let stream = self.message_or_error(self.contexts().read(Request::new(request)).await)?;
        let mut chunks = self.response_stream(stream);
        match chunks.next().await?.and_then(|message| message.message) {
            Some(Message::Entry(entry)) => Ok(ContextFile { entry, chunks }),
            _ => Err(ClientError::Protocol("the first message of a file was not its entry".to_owned())),
        }
    }

    /// Computes the digest of a context. The call reads every byte of the tree, so it has no time limit.
    pub async fn digest_context(
        &self,
        context: ContextSources,
    ) -> Result<DigestContextResponse, ClientError> {
        let request = DigestContextRequest { context: Some(context) };
        self.message_or_error(self.contexts().digest(Request::new(request)).await)
    }

    pub async fn diff_contexts(
        &self,
        request: DiffContextRequest,
    ) -> Result<ResponseStream<ContextDifference>, ClientError> {
        let stream = self.message_or_error(self.contexts().diff(Request::new(request)).await)?;
        Ok(self.response_stream(stream))
    }

    pub async fn mount_context(&self, request: MountContextRequest) -> Result<ContextMount, ClientError> {
        self.message_or_error(self.contexts().mount(unary_request(request)).await)
    }

    /// Unmounts a context. Returns whether its changes are kept.
    pub async fn unmount_context(&self, request: UnmountContextRequest) -> Result<bool, ClientError> {
        self.message_or_error(self.contexts().unmount(unary_request(request)).await).map(|answer| answer.kept)
    }

    pub async fn context_mounts(&self) -> Result<Vec<ContextMount>, ClientError> {
        let request = unary_request(ListContextMountsRequest {});
        self.message_or_error(self.contexts().list_mounts(request).await).map(|answer| answer.mounts)
    }
}
