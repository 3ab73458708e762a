//! Images go out: what the registry has is not sent, the rest is, and the name comes last.
//!
//! ```text
//! blob: HEAD -> there
//!       POST ?mount&from -> 201 mounted
//!                        -> 202 a session: PUT it, streamed -> 201
//!       a failure: all of that again, a few times, for each blob on its own
//! ```

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use hearth_proto::value::{Digest, Reference};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use super::Remote;
use super::error::RemoteError;
use super::host::{Host, repository, shown};
use super::transport::{Call, elsewhere};
use crate::image::Descriptor;

/// Opens a blob's content, at its start; once for each try.
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

/// A repository that is pushed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    host: Host,
    repository: String,
}

impl Target {
    /// `docker.io/library/python`
    pub fn name(&self) -> String {
        format!("{}/{}", self.host.key, self.repository)
    }

    /// Whether blobs can be mounted from `other`.
    pub fn is_beside(&self, other: &Self) -> bool {
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

/// What became of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    There,
    /// It was in another repository of the same registry.
    Mounted,
    Sent,
}

impl Remote {
    /// Where a reference is pushed: to its registry itself, never to a mirror.
    pub fn target(&self, reference: &Reference) -> Target {
        Target { host: self.known(self.mirrors.own(reference)), repository: repository(reference) }
    }

    /// Brings a blob to a repository. `from` is one of the same registry that has it.
    pub async fn push_blob(
        &self,
        target: &Target,
        blob: &Descriptor,
        from: Option<&Target>,
        content: &OpenContent,
    ) -> Result<Pushed, RemoteError> {
        let from = from.filter(|from| target.is_beside(from));
        let mut attempt = 1;
        loop {
            let error = match self.push_once(target, blob, from, content).await {
                Ok(pushed) => return Ok(pushed),
                Err(error) => error,
            };
            // An upload session that went away answers 404, and a new one may do.
            let lost = matches!(error, RemoteError::Refused { status: 404 | 416, .. });
            if attempt >= self.retry.attempts || !(error.retryable() || lost) {
                return Err(error);
            }
            tracing::debug!(%error, digest = %blob.digest, attempt, "a blob is pushed again");
            tokio::time::sleep(self.retry.pause(attempt, None)).await;
            attempt += 1;
        }
    }

    async fn push_once(
        &self,
        target: &Target,
        blob: &Descriptor,
        from: Option<&Target>,
        content: &OpenContent,
    ) -> Result<Pushed, RemoteError> {
        let scope = target.scope(from);
        let url = target.host.url(&target.repository, &format!("blobs/{}", blob.digest));
        match self.send(&target.host, &scope, &Call::new(Method::HEAD, url)).await {
            Ok(_) => return Ok(Pushed::There),
            Err(RemoteError::Refused { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
        let mut url = target.host.url(&target.repository, "blobs/uploads/");
        if let Some(from) = from {
            url.query_pairs_mut()
                .append_pair("mount", &blob.digest.to_string())
                .append_pair("from", &from.repository);
        }
        let begin = Call::new(Method::POST, url).header(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let begun = self.send(&target.host, &scope, &begin).await?;
        if begun.status() == StatusCode::CREATED && from.is_some() {
            return Ok(Pushed::Mounted);
        }
        let mut session = session(&target.host, &begun)?;
        session.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let put = Call::new(Method::PUT, session)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .content(content.clone(), blob.size);
        // Once for each session: what it took of a failed try is not known.
        self.once().send(&target.host, &scope, &put).await?;
        Ok(Pushed::Sent)
    }

    fn once(&self) -> Self {
        let retry = super::Retry { attempts: 1, ..self.retry };
        Self { retry, ..self.clone() }
    }

    /// Sets a manifest whose blobs are there; `name` is a tag or its own digest.
    pub async fn push_manifest(
        &self,
        target: &Target,
        name: &str,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<(), RemoteError> {
        let url = target.host.url(&target.repository, &format!("manifests/{name}"));
        let media_type = HeaderValue::from_str(media_type).map_err(|_| RemoteError::MediaType {
            what: format!("the manifest for {}", shown(&url)),
            media_type: "unreadable".to_owned(),
        })?;
        let put = Call::new(Method::PUT, url).header(CONTENT_TYPE, media_type).bytes(Bytes::from(bytes));
        self.send(&target.host, &target.scope(None), &put).await.map(drop)
    }
}

/// Where an upload goes on.
fn session(host: &Host, begun: &Response) -> Result<Url, RemoteError> {
    let url = begun.url();
    let location = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let Some(next) = location.and_then(|location| url.join(location).ok()) else {
        let reason = "an upload was begun without a place to go on".to_owned();
        return Err(RemoteError::Answer { url: shown(url), reason });
    };
    match elsewhere(host, &next) {
        Ok(()) => Ok(next),
        Err(reason) => Err(RemoteError::Redirect { url: shown(url), to: shown(&next), reason }),
    }
}
