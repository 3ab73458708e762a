//! Downloads blobs by digest: streams and hashes them, and resumes after an interruption.
//!
//! The last bytes are held back until the digest of the whole content is verified, so that the receiver never gets
//! all bytes of a wrong blob.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use hearth_oci::{Descriptor, MAX_DOCUMENT_BYTES};
use hearth_value::Digest;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::RegistryClient;
use super::error::RemoteError;
use super::host::{RegistryHost, redacted_url};
use super::resolve::{PullSource, not_found};
use super::transport::{RegistryRequest, next_chunk};

/// Number of chunks that are buffered between the connection and the receiver.
pub const CHUNK_BUFFER: usize = 16;

/// State of a blob's download.
struct BlobDownload<'a> {
    blob: &'a Descriptor,
    received: u64,
    sum: Sha256,
    /// Last received chunk, held back until more data arrives or the digest is verified.
    held: Bytes,
    to: &'a mpsc::Sender<Bytes>,
}

impl RegistryClient {
    /// Fetches a blob into a channel, from `source`'s hosts in turn. The content sent to the channel is complete and
    /// verified only if this returns no error.
    pub async fn fetch_blob(
        &self,
        source: &PullSource,
        blob: &Descriptor,
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), RemoteError> {
        let mut progress = BlobDownload { blob, received: 0, sum: Sha256::new(), held: Bytes::new(), to };
        let mut last = None;
        for host in &source.hosts {
            match self.fetch_blob_from(host, source, &mut progress).await {
                Ok(()) => return Ok(()),
                // The bytes received so far may be wrong, so another host cannot continue from there.
                Err(error @ (RemoteError::Mismatch { .. } | RemoteError::Size { .. })) => return Err(error),
                Err(error) if error.allows_next_host() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| not_found(source, source.registry())))
    }

    async fn fetch_blob_from(
        &self,
        host: &RegistryHost,
        source: &PullSource,
        progress: &mut BlobDownload<'_>,
    ) -> Result<(), RemoteError> {
        let url = host.url(&source.repository, &format!("blobs/{}", progress.blob.digest));
        let mut attempt = 1;
        loop {
            let before = progress.received;
            let mut call = RegistryRequest::get(url.clone());
            if before > 0
                && let Ok(range) = HeaderValue::from_str(&format!("bytes={before}-"))
            {
                call = call.header(RANGE, range);
            }
            let answer = self.send(host, &source.scope(), &call).await?;
            let error = match self.receive_body(answer, progress).await {
                Ok(()) => return Ok(()),
                Err(error) if error.retryable() => error,
                Err(error) => return Err(error),
            };
            // Attempts are only counted without progress: a transfer that progresses may be interrupted any number of
            // times.
            attempt = if progress.received > before { 1 } else { attempt + 1 };
            if attempt > self.retry.attempts {
                return Err(error);
            }
            tracing::debug!(
                %error,
                blob.digest = %progress.blob.digest,
                offset = progress.received,
                "resuming blob download"
            );
            tokio::time::sleep(self.retry.pause(attempt, None)).await;
        }
    }

    async fn receive_body(
        &self,
        mut answer: Response,
        progress: &mut BlobDownload<'_>,
    ) -> Result<(), RemoteError> {
        let url = answer.url().clone();
        let mut skip = match answer.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&answer) == Some(progress.received) => 0,
            StatusCode::PARTIAL_CONTENT => {
                let reason = "it has another range than requested".to_owned();
                return Err(RemoteError::Answer { url: redacted_url(&url), reason });
            }
            // Some registries ignore ranges: the bytes that were already received are skipped.
            _ => progress.received,
        };
        loop {
            let chunk = match next_chunk(&mut answer, &url, self.retry.stall).await {
                // The content is complete: an error at the end of the connection does not matter.
                Err(_) if progress.received == progress.blob.size => None,
                chunk => chunk?,
            };
            match chunk {
                Some(mut chunk) => {
                    let known = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
                    chunk.advance(known);
                    skip -= known as u64;
                    progress.add(chunk, &redacted_url(&url)).await?;
                }
                None if progress.received < progress.blob.size => {
                    return Err(RemoteError::Unreachable {
                        url: redacted_url(&url),
                        reason: format!(
                            "it ended after {} of {} bytes",
                            progress.received, progress.blob.size
                        ),
                    });
                }
                None => return progress.finish(&redacted_url(&url)).await,
            }
        }
    }

    /// Fetches a whole small blob, such as a config.
    pub async fn fetch_bytes(&self, source: &PullSource, blob: &Descriptor) -> Result<Vec<u8>, RemoteError> {
        if blob.size > MAX_DOCUMENT_BYTES as u64 {
            return Err(RemoteError::TooLarge { url: source.reference.clone(), limit: MAX_DOCUMENT_BYTES });
        }
        let (send, mut chunks) = mpsc::channel::<Bytes>(CHUNK_BUFFER);
        let collect = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = chunks.recv().await {
                bytes.extend_from_slice(&chunk);
            }
            bytes
        };
        let fetch = async {
            let fetched = self.fetch_blob(source, blob, &send).await;
            drop(send);
            fetched
        };
        let (fetched, bytes) = tokio::join!(fetch, collect);
        fetched.map(|()| bytes)
    }
}

fn range_start(answer: &Response) -> Option<u64> {
    let range = answer.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

impl BlobDownload<'_> {
    async fn add(&mut self, chunk: Bytes, url: &str) -> Result<(), RemoteError> {
        if chunk.is_empty() {
            return Ok(());
        }
        self.received += chunk.len() as u64;
        if self.received > self.blob.size {
            return Err(self.size(url));
        }
        self.sum.update(&chunk);
        let ready = std::mem::replace(&mut self.held, chunk);
        self.send(ready).await
    }

    async fn finish(&mut self, url: &str) -> Result<(), RemoteError> {
        let actual = Digest::from_sha256(self.sum.clone().finalize().into());
        if self.received != self.blob.size {
            return Err(self.size(url));
        }
        if actual != self.blob.digest {
            return Err(RemoteError::Mismatch { url: url.to_owned(), declared: self.blob.digest, actual });
        }
        let last = std::mem::take(&mut self.held);
        self.send(last).await
    }

    async fn send(&self, chunk: Bytes) -> Result<(), RemoteError> {
        if chunk.is_empty() {
            return Ok(());
        }
        self.to.send(chunk).await.map_err(|_| RemoteError::ReceiverStopped { digest: self.blob.digest })
    }

    fn size(&self, url: &str) -> RemoteError {
        RemoteError::Size {
            url: url.to_owned(),
            digest: self.blob.digest,
            declared: self.blob.size,
            actual: self.received,
        }
    }
}

/// Blocking reader for the chunks of a blob. It ends with the channel, even if the content is incomplete: the reader
/// must check the size and the digest.
#[derive(Debug)]
pub struct BlobReader {
    chunks: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl BlobReader {
    pub fn new(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self { chunks, chunk: Bytes::new() }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let count = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
