//! Reads the content of the room's images, blob by blob.

use bytes::Bytes;
use hearth_proto::v1::{ReadBlobRequest, ReadBlobResponse, read_blob_response::Message};
use hearth_proto::value::Digest;
use tonic::{Request, Streaming};

use super::{Client, ClientError};

/// Content of a blob as a stream. The caller must verify it against the digest.
pub struct BlobContent {
    pub digest: Digest,
    pub size: u64,
    /// Media type of a manifest or index; empty for other blobs.
    pub media_type: String,
    stream: Streaming<ReadBlobResponse>,
    address: String,
}

impl BlobContent {
    /// Returns the next chunk, or `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let message = self.stream.message().await;
        match message.map_err(|status| ClientError::from_status(&self.address, &status))?.map(|m| m.message) {
            None => Ok(None),
            Some(Some(Message::Chunk(chunk))) => Ok(Some(chunk)),
            Some(_) => Err(ClientError::Protocol(
                "the daemon sent a message other than content after the first message of a blob".to_owned(),
            )),
        }
    }
}

impl Client {
    /// Reads a blob of an image of the room; without a digest, its manifest or index.
    pub async fn read_blob(
        &self,
        reference: &str,
        digest: Option<&Digest>,
    ) -> Result<BlobContent, ClientError> {
        let request = ReadBlobRequest {
            reference: reference.to_owned(),
            digest: digest.map(Digest::to_string).unwrap_or_default(),
            offset: 0,
        };
        let mut stream = self.message_or_error(self.images().read_blob(Request::new(request)).await)?;
        let first = stream.message().await;
        let first = first.map_err(|status| ClientError::from_status(&self.address, &status))?;
        let Some(Message::Head(head)) = first.and_then(|message| message.message) else {
            return Err(ClientError::Protocol("the first message of a blob was not its head".to_owned()));
        };
        let digest = head.digest.parse().map_err(|error| ClientError::Protocol(format!("{error}")))?;
        let address = self.address.clone();
        Ok(BlobContent { digest, size: head.size_bytes, media_type: head.media_type, stream, address })
    }
}
