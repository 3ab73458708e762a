//! `/v2/<name>/blobs/uploads/`: blob uploads.
//!
//! POST begins an upload (or stores a blob in one request, or mounts one from another repository), PATCH
//! appends a chunk, PUT appends the last one and names the digest, GET returns the progress, DELETE cancels the
//! upload.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, LOCATION, RANGE};
use http::{HeaderMap, HeaderName, StatusCode};

use super::range::piece;
use super::refusal::Refusal;
use super::{DOCKER_CONTENT_DIGEST, Query, Registry, empty, header_value, receive, route};
use crate::access::policy::{CallerAction, decide};
use crate::image::port::Blobs as _;
use crate::model::access::Caller;
use crate::model::{Digest, Repository};
use crate::registry::blobs::Spool;
use crate::registry::uploads::{Turn, Upload, Uploads};
use crate::task;

const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

impl Registry {
    pub(super) async fn begin_upload(
        &self,
        caller: &Caller,
        owner: &str,
        repository: &Repository,
        query: &Query,
        body: Body,
    ) -> Result<Response, Refusal> {
        if let Some(mount) = query.get("mount")
            && let Some(response) = self.mount(caller, repository, mount, query.get("from")).await?
        {
            return Ok(response);
        }
        let whole = query.get("digest").map(route::digest).transpose()?;
        self.uploads.check(&caller.name).map_err(|_| too_many())?;
        let (blobs, owner, to) = (self.blobs.clone(), owner.to_owned(), repository.clone());
        let spool = task::blocking("upload", move || blobs.spool_of(&owner, to.as_str()));
        let spool = spool.await??;
        let upload = self.uploads.begin(repository, &caller.name, spool).map_err(|_| too_many())?;
        let Some(digest) = whole else {
            return progress(StatusCode::ACCEPTED, repository, &upload.id, 0);
        };
        // The client never learns the id of this upload, so it ends with the request in any case.
        let _ends = EndsWith { uploads: &self.uploads, upload: &upload };
        let turn = self.turn(&upload).await?;
        let turn = receive::receive(body, turn, self.uploads.limits.stall).await?;
        self.finish(repository, turn, &digest).await
    }

    /// Links a blob of another repository, if it exists and the caller may read it.
    async fn mount(
        &self,
        caller: &Caller,
        repository: &Repository,
        digest: &str,
        from: Option<&str>,
    ) -> Result<Option<Response>, Refusal> {
        let digest = route::digest(digest)?;
        // A source that is missing, unknown or not allowed gives the same result: the client sends the blob.
        let Some(from) = from.and_then(|from| from.parse::<Repository>().ok()) else { return Ok(None) };
        let readable = decide(caller, &CallerAction::PullRepository(&from)).is_ok();
        if !readable || !self.catalog.has_blob(&from, &digest).await? {
            return Ok(None);
        }
        let blobs = self.blobs.clone();
        if task::blocking("blob", move || blobs.touch(&digest)).await??.is_none() {
            return Ok(None);
        }
        self.catalog.link_blob(repository, &digest).await?;
        created(repository, &digest).map(Some)
    }

    pub(super) async fn patch_upload(
        &self,
        caller: &Caller,
        repository: &Repository,
        id: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Refusal> {
        let upload = self.upload(caller, repository, id)?;
        let turn = self.add(repository, &upload, headers, body).await?;
        let size = size_of(&turn, id)?;
        progress(StatusCode::ACCEPTED, repository, id, size)
    }

    pub(super) async fn put_upload(
        &self,
        caller: &Caller,
        repository: &Repository,
        id: &str,
        query: &Query,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Refusal> {
        let upload = self.upload(caller, repository, id)?;
        let digest = query.get("digest").ok_or_else(|| {
            Refusal::bad(
                "DIGEST_INVALID",
                "an upload is closed with `?digest=sha256:...`, the digest of the whole blob",
            )
        })?;
        let digest = route::digest(digest)?;
        let turn = self.add(repository, &upload, headers, body).await?;
        let _ends = EndsWith { uploads: &self.uploads, upload: &upload };
        self.finish(repository, turn, &digest).await
    }

    pub(super) async fn upload_status(
        &self,
        caller: &Caller,
        repository: &Repository,
        id: &str,
    ) -> Result<Response, Refusal> {
        let upload = self.upload(caller, repository, id)?;
        let size = size_of(&self.turn(&upload).await?, id)?;
        progress(StatusCode::NO_CONTENT, repository, id, size)
    }

    pub(super) async fn cancel_upload(
        &self,
        caller: &Caller,
        repository: &Repository,
        id: &str,
    ) -> Result<Response, Refusal> {
        let upload = self.upload(caller, repository, id)?;
        self.uploads.end(id);
        let mut turn = self.turn(&upload).await?;
        task::blocking("upload", move || *turn = None).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    fn upload(&self, caller: &Caller, repository: &Repository, id: &str) -> Result<Arc<Upload>, Refusal> {
        let upload = self.uploads.find(id, repository).ok_or_else(|| Refusal::upload_unknown(id))?;
        decide(caller, &CallerAction::UseUpload { id, owner: &upload.owner })
            .map_err(|denied| Refusal::upload_unknown(id).hiding(denied))?;
        upload.used();
        Ok(upload)
    }

    async fn turn(&self, upload: &Upload) -> Result<Turn, Refusal> {
        upload
            .turn(self.uploads.limits.turn)
            .await
            .ok_or_else(|| Refusal::busy("another request is still adding to this upload"))
    }

    /// Appends one chunk, if it starts where the last one ended.
    async fn add(
        &self,
        repository: &Repository,
        upload: &Upload,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Turn, Refusal> {
        let turn = self.turn(upload).await?;
        let size = size_of(&turn, &upload.id)?;
        if let Some(range) = headers.get(CONTENT_RANGE) {
            let (first, last) = range.to_str().ok().and_then(piece).ok_or_else(|| {
                Refusal::bad("BLOB_UPLOAD_INVALID", "Content-Range is not `<first byte>-<last byte>`")
            })?;
            if first != size {
                return Err(out_of_order(repository, &upload.id, first, size));
            }
            let length =
                headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
            if length.is_some_and(|length| length != last - first + 1) {
                return Err(Refusal::bad("SIZE_INVALID", "Content-Range and Content-Length differ"));
            }
        }
        let received = receive::receive(body, turn, self.uploads.limits.stall).await;
        upload.used();
        match received {
            Ok(turn) => Ok(turn),
            Err(refusal) => {
                // After a failed write the upload is removed; after a broken connection it may be resumed.
                if self.turn(upload).await.is_ok_and(|turn| turn.is_none()) {
                    self.uploads.end(&upload.id);
                }
                Err(refusal)
            }
        }
    }

    async fn finish(
        &self,
        repository: &Repository,
        mut turn: Turn,
        digest: &Digest,
    ) -> Result<Response, Refusal> {
        let expected = *digest;
        let placed =
            task::blocking("upload", move || turn.take().map(|spool| spool.place(&expected))).await?;
        let placed = placed.ok_or_else(|| Refusal::upload_unknown("ended meanwhile"))??;
        // A link to a blob whose directory entry was lost in a power failure is harmless: the blob is then sent again.
        let settled = task::blocking("upload", move || placed.settle());
        let (settled, linked) = tokio::join!(settled, self.catalog.link_blob(repository, digest));
        settled??;
        linked?;
        if let Some(arrivals) = &self.arrivals {
            arrivals.blob_arrived(digest);
        }
        created(repository, digest)
    }
}

/// Removes an upload when dropped, whatever the result of the request is.
struct EndsWith<'a> {
    uploads: &'a Uploads,
    upload: &'a Upload,
}

impl Drop for EndsWith<'_> {
    fn drop(&mut self) {
        self.uploads.end(&self.upload.id);
    }
}

fn size_of(turn: &Turn, id: &str) -> Result<u64, Refusal> {
    turn.as_ref().map(Spool::size).ok_or_else(|| Refusal::upload_unknown(id))
}

fn too_many() -> Refusal {
    Refusal::busy("too many uploads are open; finish or cancel some")
}

fn location(repository: &Repository, id: &str) -> String {
    format!("/v2/{repository}/blobs/uploads/{id}")
}

/// Value of the `Range` header: up to the last byte received; `0-0` for none, as in Docker's registry.
fn received(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

fn out_of_order(repository: &Repository, id: &str, first: u64, size: u64) -> Refusal {
    Refusal::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "BLOB_UPLOAD_INVALID",
        format!("the piece begins at byte {first}, and {size} bytes are there"),
    )
    .header(LOCATION, &location(repository, id))
    .header(RANGE, &received(size))
    .header(DOCKER_UPLOAD_UUID, id)
}

fn progress(status: StatusCode, repository: &Repository, id: &str, size: u64) -> Result<Response, Refusal> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    for (name, text) in
        [(LOCATION, location(repository, id)), (RANGE, received(size)), (DOCKER_UPLOAD_UUID, id.to_owned())]
    {
        headers.insert(name, header_value(&text)?);
    }
    Ok(response)
}

fn created(repository: &Repository, digest: &Digest) -> Result<Response, Refusal> {
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, header_value(&format!("/v2/{repository}/blobs/{digest}"))?);
    headers.insert(DOCKER_CONTENT_DIGEST, header_value(&digest.to_string())?);
    Ok(response)
}
