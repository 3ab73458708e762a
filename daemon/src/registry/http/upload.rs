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

use super::error_response::RegistryErrorResponse;
use super::range::parse_content_range;
use super::{DOCKER_CONTENT_DIGEST, QueryParams, RegistryApi, empty, header_value, receive, route};
use crate::access::policy::{CallerAction, decide};
use crate::image::port::BlobStorage as _;
use crate::model::access::Caller;
use crate::model::{Digest, Repository};
use crate::registry::blobs::BlobSpool;
use crate::registry::uploads::{BlobUpload, BlobUploadGuard, OpenUploads};
use crate::task;

const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

impl RegistryApi {
    pub(super) async fn begin_upload(
        &self,
        caller: &Caller,
        owner: &str,
        repository: &Repository,
        query: &QueryParams,
        body: Body,
    ) -> Result<Response, RegistryErrorResponse> {
        if let Some(mount) = query.get("mount")
            && let Some(response) = self.mount(caller, repository, mount, query.get("from")).await?
        {
            return Ok(response);
        }
        let whole = query.get("digest").map(route::digest).transpose()?;
        self.uploads.check(&caller.name).map_err(|_| too_many())?;
        let (blobs, owner, to) = (self.blobs.clone(), owner.to_owned(), repository.clone());
        let spool = task::blocking("upload", move || blobs.spool_for_owner(&owner, to.as_str()));
        let spool = spool.await??;
        let upload = self.uploads.begin(repository, &caller.name, spool).map_err(|_| too_many())?;
        let Some(digest) = whole else {
            return progress(StatusCode::ACCEPTED, repository, &upload.id, 0);
        };
        // The client never learns the id of this upload, so it ends with the request in any case.
        let _ends = EndUploadOnDrop { uploads: &self.uploads, upload: &upload };
        let turn = self.lock_upload(&upload).await?;
        let turn = receive::receive(body, turn, self.uploads.limits.stall_timeout).await?;
        self.finish(repository, turn, &digest).await
    }

    /// Links a blob of another repository, if it exists and the caller may read it.
    async fn mount(
        &self,
        caller: &Caller,
        repository: &Repository,
        digest: &str,
        from: Option<&str>,
    ) -> Result<Option<Response>, RegistryErrorResponse> {
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
    ) -> Result<Response, RegistryErrorResponse> {
        let upload = self.upload(caller, repository, id)?;
        let turn = self.append(repository, &upload, headers, body).await?;
        let size = size_of(&turn, id)?;
        progress(StatusCode::ACCEPTED, repository, id, size)
    }

    pub(super) async fn put_upload(
        &self,
        caller: &Caller,
        repository: &Repository,
        id: &str,
        query: &QueryParams,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, RegistryErrorResponse> {
        let upload = self.upload(caller, repository, id)?;
        let digest = query.get("digest").ok_or_else(|| {
            RegistryErrorResponse::bad(
                "DIGEST_INVALID",
                "an upload is closed with `?digest=sha256:...`, the digest of the whole blob",
            )
        })?;
        let digest = route::digest(digest)?;
        let turn = self.append(repository, &upload, headers, body).await?;
        let _ends = EndUploadOnDrop { uploads: &self.uploads, upload: &upload };
        self.finish(repository, turn, &digest).await
    }

    pub(super) async fn upload_status(
        &self,
        caller: &Caller,
        repository: &Repository,
        id: &str,
    ) -> Result<Response, RegistryErrorResponse> {
        let upload = self.upload(caller, repository, id)?;
        let size = size_of(&self.lock_upload(&upload).await?, id)?;
        progress(StatusCode::NO_CONTENT, repository, id, size)
    }

    pub(super) async fn cancel_upload(
        &self,
        caller: &Caller,
        repository: &Repository,
        id: &str,
    ) -> Result<Response, RegistryErrorResponse> {
        let upload = self.upload(caller, repository, id)?;
        self.uploads.end(id);
        let mut turn = self.lock_upload(&upload).await?;
        task::blocking("upload", move || *turn = None).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    fn upload(
        &self,
        caller: &Caller,
        repository: &Repository,
        id: &str,
    ) -> Result<Arc<BlobUpload>, RegistryErrorResponse> {
        let upload =
            self.uploads.find(id, repository).ok_or_else(|| RegistryErrorResponse::upload_unknown(id))?;
        decide(caller, &CallerAction::UseUpload { id, owner: &upload.owner })
            .map_err(|denied| RegistryErrorResponse::upload_unknown(id).hiding_denial(denied))?;
        upload.mark_used();
        Ok(upload)
    }

    async fn lock_upload(&self, upload: &BlobUpload) -> Result<BlobUploadGuard, RegistryErrorResponse> {
        upload
            .lock(self.uploads.limits.turn_timeout)
            .await
            .ok_or_else(|| RegistryErrorResponse::busy("another request is still adding to this upload"))
    }

    /// Appends one chunk, if it starts where the last one ended.
    async fn append(
        &self,
        repository: &Repository,
        upload: &BlobUpload,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<BlobUploadGuard, RegistryErrorResponse> {
        let turn = self.lock_upload(upload).await?;
        let size = size_of(&turn, &upload.id)?;
        if let Some(range) = headers.get(CONTENT_RANGE) {
            let (first, last) = range.to_str().ok().and_then(parse_content_range).ok_or_else(|| {
                RegistryErrorResponse::bad(
                    "BLOB_UPLOAD_INVALID",
                    "Content-Range is not `<first byte>-<last byte>`",
                )
            })?;
            if first != size {
                return Err(out_of_order(repository, &upload.id, first, size));
            }
            let length =
                headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
            if length.is_some_and(|length| length != last - first + 1) {
                return Err(RegistryErrorResponse::bad(
                    "SIZE_INVALID",
                    "Content-Range and Content-Length differ",
                ));
            }
        }
        let received = receive::receive(body, turn, self.uploads.limits.stall_timeout).await;
        upload.mark_used();
        match received {
            Ok(turn) => Ok(turn),
            Err(refusal) => {
                // After a failed write the upload is removed; after a broken connection it may be resumed.
                if self.lock_upload(upload).await.is_ok_and(|turn| turn.is_none()) {
                    self.uploads.end(&upload.id);
                }
                Err(refusal)
            }
        }
    }

    async fn finish(
        &self,
        repository: &Repository,
        mut turn: BlobUploadGuard,
        digest: &Digest,
    ) -> Result<Response, RegistryErrorResponse> {
        let expected = *digest;
        let placed =
            task::blocking("upload", move || turn.take().map(|spool| spool.place(&expected))).await?;
        let placed = placed.ok_or_else(|| RegistryErrorResponse::upload_unknown("ended meanwhile"))??;
        // A link to a blob whose directory entry was lost in a power failure is harmless: the blob is then sent again.
        let settled = task::blocking("upload", move || placed.make_durable());
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
struct EndUploadOnDrop<'a> {
    uploads: &'a OpenUploads,
    upload: &'a BlobUpload,
}

impl Drop for EndUploadOnDrop<'_> {
    fn drop(&mut self) {
        self.uploads.end(&self.upload.id);
    }
}

fn size_of(turn: &BlobUploadGuard, id: &str) -> Result<u64, RegistryErrorResponse> {
    turn.as_ref().map(BlobSpool::size).ok_or_else(|| RegistryErrorResponse::upload_unknown(id))
}

fn too_many() -> RegistryErrorResponse {
    RegistryErrorResponse::busy("too many uploads are open; finish or cancel some")
}

fn location(repository: &Repository, id: &str) -> String {
    format!("/v2/{repository}/blobs/uploads/{id}")
}

/// Value of the `Range` header: up to the last byte received; `0-0` for none, as in Docker's registry.
fn received_range(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

fn out_of_order(repository: &Repository, id: &str, first: u64, size: u64) -> RegistryErrorResponse {
    RegistryErrorResponse::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "BLOB_UPLOAD_INVALID",
        format!("the piece begins at byte {first}, and {size} bytes are there"),
    )
    .header(LOCATION, &location(repository, id))
    .header(RANGE, &received_range(size))
    .header(DOCKER_UPLOAD_UUID, id)
}

fn progress(
    status: StatusCode,
    repository: &Repository,
    id: &str,
    size: u64,
) -> Result<Response, RegistryErrorResponse> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    for (name, text) in [
        (LOCATION, location(repository, id)),
        (RANGE, received_range(size)),
        (DOCKER_UPLOAD_UUID, id.to_owned()),
    ] {
        headers.insert(name, header_value(&text)?);
    }
    Ok(response)
}

fn created(repository: &Repository, digest: &Digest) -> Result<Response, RegistryErrorResponse> {
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, header_value(&format!("/v2/{repository}/blobs/{digest}"))?);
    headers.insert(DOCKER_CONTENT_DIGEST, header_value(&digest.to_string())?);
    Ok(response)
}
