//! Pushes images: blobs that the registry lacks are uploaded, and the manifest follows last.
//!
//! ```text
//! blob: HEAD -> 200 already present
//!       POST ?mount&from -> 201 mounted
//!                        -> 202 upload session: PUT, streamed -> 201
//!       on failure, all of this is retried a few times, for each blob separately
//! ```

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use hearth_oci::Descriptor;
use hearth_value::{Digest, Reference};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use super::RegistryClient;
use super::error::RemoteError;
use super::host::{RegistryHost, redacted_url, repository};
use super::transport::{RegistryRequest, check_redirect};

/// Opens a blob's content at its start, once for each attempt.
#[derive(Clone)]
pub struct OpenContent {
    digest: Digest,
    open: Arc<dyn Fn() -> io::Result<File> + Send + Sync>,
}

impl OpenContent {
    pub fn new(digest: Digest, open: impl Fn() -> io::Result<File> + Send + Sync + 'static) -> Self {
        Self { digest, open: Arc::new(open) }
    }

    pub(super) fn open(&self) -> Result<File, RemoteError> {
        (self.open)().map_err(|source| RemoteError::Content { digest: self.digest, source })
    }
}

/// Repository that is pushed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushTarget {
    host: RegistryHost,
    repository: String,
}

impl PushTarget {
    /// Returns the full name, such as `docker.io/library/python`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host.key, self.repository)
    }

    /// Reports whether blobs can be mounted from `other`.
    pub fn can_mount_from(&self, other: &Self) -> bool {
        self.host == other.host && self.repository != other.repository
    }

    fn scope(&self, from: Option<&Self>) -> String {
        let own = format!("repository:{}:pull,push", self.repository);
        match from {
            Some(from) => format!("{own} repository:{}:pull", from.repository),
            None => own,
        }
    }
}

/// Outcome of pushing a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// The repository already had the blob.
    AlreadyPresent,
    /// The blob was mounted from another repository of the same registry.
    Mounted,
    /// The blob was uploaded.
    Uploaded,
}

impl RegistryClient {
    /// Returns the push target of a reference: its registry itself, never a mirror.
    pub fn target(&self, reference: &Reference) -> PushTarget {
        PushTarget {
            host: self.mark_operator_host(self.mirrors.registry_host(reference)),
            repository: repository(reference),
        }
    }

    /// Pushes a blob to a repository. `from` is a repository that has the blob; it is used if it is in the same
    /// registry.
    pub async fn push_blob(
        &self,
        target: &PushTarget,
        blob: &Descriptor,
        from: Option<&PushTarget>,
        content: &OpenContent,
    ) -> Result<PushOutcome, RemoteError> {
        let from = from.filter(|from| target.can_mount_from(from));
        let mut attempt = 1;
        loop {
            let error = match self.push_once(target, blob, from, content).await {
                Ok(pushed) => return Ok(pushed),
                Err(error) => error,
            };
            // An expired upload session answers 404 or 416, and a new session may work.
            let lost = matches!(error, RemoteError::Refused { status: 404 | 416, .. });
            if attempt >= self.retry.attempts || !(error.retryable() || lost) {
                return Err(error);
            }
            tracing::debug!(%error, blob.digest = %blob.digest, attempt, "retrying blob push");
            tokio::time::sleep(self.retry.pause(attempt, None)).await;
            attempt += 1;
        }
    }

    async fn push_once(
        &self,
        target: &PushTarget,
        blob: &Descriptor,
        from: Option<&PushTarget>,
        content: &OpenContent,
    ) -> Result<PushOutcome, RemoteError> {
        let scope = target.scope(from);
        let url = target.host.url(&target.repository, &format!("blobs/{}", blob.digest));
        match self.send(&target.host, &scope, &RegistryRequest::new(Method::HEAD, url)).await {
            Ok(_) => return Ok(PushOutcome::AlreadyPresent),
            Err(RemoteError::Refused { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
        let mut url = target.host.url(&target.repository, "blobs/uploads/");
        if let Some(from) = from {
            url.query_pairs_mut()
                .append_pair("mount", &blob.digest.to_string())
                .append_pair("from", &from.repository);
        }
        let begin =
            RegistryRequest::new(Method::POST, url).header(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let answer = self.send(&target.host, &scope, &begin).await?;
        if answer.status() == StatusCode::CREATED && from.is_some() {
            return Ok(PushOutcome::Mounted);
        }
        let mut session = upload_session(&target.host, &answer)?;
        session.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let put = RegistryRequest::new(Method::PUT, session)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .content(content.clone(), blob.size);
        // A session is used once: after a failure it is unknown how much of the content it has stored.
        self.without_retries().send(&target.host, &scope, &put).await?;
        Ok(PushOutcome::Uploaded)
    }

    fn without_retries(&self) -> Self {
        let retry = super::RetryPolicy { attempts: 1, ..self.retry };
        Self { retry, ..self.clone() }
    }

    /// Pushes a manifest whose blobs are present. `name` is a tag or the manifest's digest.
    pub async fn push_manifest(
        &self,
        target: &PushTarget,
        name: &str,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<(), RemoteError> {
        let url = target.host.url(&target.repository, &format!("manifests/{name}"));
        let media_type = HeaderValue::from_str(media_type).map_err(|_| RemoteError::MediaType {
            what: format!("the manifest for {}", redacted_url(&url)),
            media_type: "unreadable".to_owned(),
        })?;
        let put =
            RegistryRequest::new(Method::PUT, url).header(CONTENT_TYPE, media_type).bytes(Bytes::from(bytes));
        self.send(&target.host, &target.scope(None), &put).await.map(drop)
    }
}

/// Returns the URL of an upload session from the answer that began it.
fn upload_session(host: &RegistryHost, answer: &Response) -> Result<Url, RemoteError> {
    let url = answer.url();
    let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let Some(next) = location.and_then(|location| url.join(location).ok()) else {
        let reason = "it began an upload without a valid location".to_owned();
        return Err(RemoteError::Answer { url: redacted_url(url), reason });
    };
    match check_redirect(host, &next) {
        Ok(()) => Ok(next),
        Err(reason) => Err(RemoteError::Redirect { url: redacted_url(url), to: redacted_url(&next), reason }),
    }
}
