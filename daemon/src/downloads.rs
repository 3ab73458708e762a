//! Cache of files that builds fetch by URL (`ADD https://...`). The daemon fetches a file, stores it by its sha256,
//! and serves it to the builder.
//!
//! ```text
//! URL --> allowed? --> cached: conditional request --> not modified --------------------------.
//!                  '-> fetched: each redirect is checked, size and time are limited --> file by sha256
//!                                                                                             |
//! builder <-- http://<the daemon>/downloads/<random name> <-----------------------------------'
//! ```
//!
//! The egress policy of builds decides which URLs are allowed. It checks the host name, and the address when the
//! connection is made, so that neither a redirect nor a changed DNS record leads to this machine or a private
//! network. Credentials are never sent. The builder gets the file with its sha256, so the recorded file is the one
//! that the build used.

mod client;
mod files;
mod serve;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::build::port::{DownloadRequest, Downloader, OfferedDownload};
use crate::model::Digest;
use crate::model::egress::EgressPolicy;
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::task;

use client::{FetchClient, FetchOutcome};
use files::DownloadFiles;

pub use serve::router;

/// Maximum length of a URL, in bytes.
const MAX_URL: usize = 8192;

/// Options of the download cache.
#[derive(Clone, Debug)]
pub struct Options {
    pub directory: PathBuf,
    pub policy: EgressPolicy,
    /// Maximum size of all files, in bytes. Beyond it the least recently used files are removed.
    pub max_bytes: u64,
    /// Minimum free disk space, in bytes.
    pub min_free: u64,
    /// Address (`host:port`) at which builders reach this daemon.
    pub address: String,
}

/// Handle to the download cache; cheap to clone.
#[derive(Clone)]
pub struct DownloadCache {
    shared: Arc<DownloadCacheInner>,
}

struct DownloadCacheInner {
    files: DownloadFiles,
    client: FetchClient,
    offers: serve::OfferedFiles,
    address: String,
}

#[derive(Debug, thiserror::Error)]
enum DownloadError {
    #[error("`{url}` cannot be fetched: {reason}")]
    Url { url: String, reason: &'static str },
    #[error("{url}: builds may not reach `{host}`")]
    Host { url: String, host: String },
    #[error("{url}: builds may not reach {address}, where `{host}` is")]
    Address { url: String, host: String, address: std::net::IpAddr },
    #[error("{url} answered {status}")]
    Status { url: String, status: u16 },
    #[error("{url} redirects more than {limit} times")]
    Redirects { url: String, limit: usize },
    #[error("{url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{url} took longer than {seconds} s")]
    Slow { url: String, seconds: u64 },
    #[error("{url} has more than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error("{url} has content {actual}, and --checksum says {wanted}")]
    Checksum { url: String, wanted: String, actual: Digest },
    #[error("--checksum={given}: expected sha256 and 64 hexadecimal digits")]
    Algorithm { given: String },
    #[error("no space is left for downloads: {free} bytes of the disk are free, and {floor} must stay free")]
    NoSpace { free: u64, floor: u64 },
    #[error("the file cannot be stored: {0}")]
    Store(#[from] std::io::Error),
    #[error("the daemon is ending")]
    Ending,
}

impl DownloadCache {
    pub fn open(options: Options) -> std::io::Result<Self> {
        let files = DownloadFiles::open(options.directory, options.max_bytes, options.min_free)?;
        let shared = DownloadCacheInner {
            files,
            client: FetchClient::new(options.policy),
            offers: serve::OfferedFiles::default(),
            address: options.address,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    async fn get(&self, request: &DownloadRequest) -> Result<OfferedDownload, DownloadError> {
        let shared = &self.shared;
        let wanted = request.checksum.as_deref().map(sha256_of).transpose()?;
        if request.url.len() > MAX_URL {
            let url = request.url.chars().take(100).collect();
            return Err(DownloadError::Url { url, reason: "it is too long" });
        }
        // Requests for the same URL run one at a time, so the second request finds the file that the first one
        // fetched.
        let _turn = shared.files.lock_url(&request.url).await;
        let known = shared.files.find_record(&request.url).await?;
        if let (Some(wanted), Some(known)) = (wanted, &known)
            && known.digest == wanted
        {
            return self.offer(known.digest, known.last_modified.clone(), true).await;
        }
        let answer = shared.client.fetch(&request.url, known.as_ref(), &shared.files).await?;
        let (record, cached) = match (answer, known) {
            (FetchOutcome::Unchanged, Some(known)) => (known, true),
            (FetchOutcome::Fetched(record), _) => (record, false),
            (FetchOutcome::Unchanged, None) => {
                return Err(DownloadError::Status { url: client::redacted_url(&request.url), status: 304 });
            }
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != record.digest) {
            let (url, wanted) = (client::redacted_url(&request.url), wanted.to_string());
            return Err(DownloadError::Checksum { url, wanted, actual: record.digest });
        }
        let last_modified = record.last_modified.clone();
        let digest = record.digest;
        shared.files.save_record(&request.url, record).await?;
        self.offer(digest, last_modified, cached).await
    }

    async fn offer(
        &self,
        digest: Digest,
        last_modified: Option<String>,
        cached: bool,
    ) -> Result<OfferedDownload, DownloadError> {
        let shared = &self.shared;
        let (file, size) = shared.files.open_content(&digest).await?;
        let (name, offer) = shared.offers.add(file, last_modified);
        let url = format!("http://{}{}{name}", shared.address, serve::PATH);
        Ok(OfferedDownload { url, digest, size, cached, offer: Box::new(offer) })
    }
}

#[async_trait]
impl Downloader for DownloadCache {
    async fn download(&self, request: DownloadRequest) -> Result<OfferedDownload, Fault> {
        self.get(&request).await.map_err(|error| fault(&error))
    }

    async fn allows_repository(&self, host: &str) -> Result<(), Fault> {
        self.shared.client.check_host(host).await.map_err(|error| fault(&error))
    }
}

fn fault(error: &DownloadError) -> Fault {
    let code = match error {
        DownloadError::Url { .. } => ErrorCode::InvalidUrl,
        DownloadError::Host { .. } | DownloadError::Address { .. } => ErrorCode::EgressDenied,
        DownloadError::Status { status: 404 | 410, .. } => ErrorCode::DownloadNotFound,
        DownloadError::Status { status: 401 | 403, .. } => ErrorCode::DownloadDenied,
        DownloadError::Status { .. } | DownloadError::Redirects { .. } => ErrorCode::DownloadFailed,
        DownloadError::Unreachable { .. } | DownloadError::Slow { .. } => ErrorCode::DownloadUnreachable,
        DownloadError::TooLarge { .. } => ErrorCode::DownloadTooLarge,
        DownloadError::Checksum { .. } => ErrorCode::ChecksumMismatch,
        DownloadError::Algorithm { .. } => ErrorCode::InvalidChecksum,
        DownloadError::NoSpace { .. } => ErrorCode::NoSpace,
        DownloadError::Store(error) if error.kind() == std::io::ErrorKind::StorageFull => ErrorCode::NoSpace,
        DownloadError::Store(_) | DownloadError::Ending => ErrorCode::Internal,
    };
    let fault = Fault::new(FaultStage::Context, code, error.to_string());
    match (code, error) {
        (ErrorCode::NoSpace, _) => fault.hint("free space in the state directory").retryable(),
        (ErrorCode::Internal, _) | (_, DownloadError::Status { status: 429 | 500.., .. }) => {
            fault.retryable()
        }
        _ => fault,
    }
}

fn sha256_of(given: &str) -> Result<Digest, DownloadError> {
    given.parse().map_err(|_| DownloadError::Algorithm { given: given.chars().take(100).collect() })
}

/// Runs blocking file operations on the blocking thread pool.
async fn blocking_io<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, DownloadError> {
    Ok(task::blocking("downloads", work).await.map_err(|_| DownloadError::Ending)??)
}

#[cfg(test)]
mod tests;
