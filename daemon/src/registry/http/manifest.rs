//! `/v2/<name>/manifests/<tag or digest>`.

use std::io::{Cursor, Read as _};

use axum::body::Body;
use axum::response::Response;
use hearth_oci::{Descriptor, MAX_DOCUMENT_BYTES};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::error_response::RegistryErrorResponse;
use super::route::ManifestName;
use super::{DOCKER_CONTENT_DIGEST, RegistryApi, empty, header_value};
use crate::image::port::{BlobStorage as _, NewManifest, RemovalOutcome};
use crate::model::access::Caller;
use crate::model::manifest::{Manifest, ManifestPart, PartKind};
use crate::model::{Digest, Repository};
use crate::task;

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

impl RegistryApi {
    pub(super) async fn get_manifest(
        &self,
        repository: &Repository,
        name: &ManifestName,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Response, RegistryErrorResponse> {
        let descriptor = self.find_manifest(repository, name).await?;
        let tag = format!("\"{}\"", descriptor.digest);
        let held = headers.get(IF_NONE_MATCH).and_then(|held| held.to_str().ok());
        let mut response = if held.is_some_and(|held| held == tag || held == "*") {
            empty(StatusCode::NOT_MODIFIED)
        } else if *method == Method::HEAD {
            let mut response = empty(StatusCode::OK);
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(descriptor.size));
            response
        } else {
            let content = self.manifest_content(&descriptor.digest).await?;
            metrics::counter!("hearth_registry_sent_bytes_total").increment(content.len() as u64);
            Response::new(Body::from(content))
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, header_value(&descriptor.media_type)?);
        headers.insert(ETAG, header_value(&tag)?);
        headers.insert(DOCKER_CONTENT_DIGEST, header_value(&descriptor.digest.to_string())?);
        Ok(response)
    }

    async fn find_manifest(
        &self,
        repository: &Repository,
        name: &ManifestName,
    ) -> Result<Descriptor, RegistryErrorResponse> {
        let found = match name {
            ManifestName::Tag(tag) => self.catalog.tag(repository, tag).await?.map(|image| image.manifest),
            ManifestName::Digest(digest) => self.catalog.manifest(repository, digest).await?,
        };
        found.ok_or_else(|| unknown(repository, name))
    }

    pub(super) async fn manifest_content(&self, digest: &Digest) -> Result<Vec<u8>, RegistryErrorResponse> {
        let (blobs, digest) = (self.blobs.clone(), *digest);
        let read = task::blocking("manifest", move || {
            let Some(file) = blobs.open_verified(&digest)? else {
                return Err(std::io::ErrorKind::NotFound.into());
            };
            let mut content = Vec::new();
            file.take(MAX_DOCUMENT_BYTES as u64).read_to_end(&mut content)?;
            Ok::<_, std::io::Error>(content)
        });
        Ok(read.await??)
    }

    pub(super) async fn put_manifest(
        &self,
        caller: &Caller,
        repository: &Repository,
        name: &ManifestName,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, RegistryErrorResponse> {
        let content = self.read_manifest(body).await?;
        metrics::counter!("hearth_registry_received_bytes_total").increment(content.len() as u64);
        let digest = Digest::from_sha256(Sha256::digest(&content).into());
        if let ManifestName::Digest(expected) = name
            && *expected != digest
        {
            return Err(RegistryErrorResponse::bad(
                "DIGEST_INVALID",
                format!("the manifest has digest {digest}, not {expected}"),
            )
            .detail(json!({"expected": expected, "actual": digest})));
        }
        let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let manifest = Manifest::parse(media_type, &content)
            .map_err(|error| RegistryErrorResponse::bad("MANIFEST_INVALID", error.to_string()))?;
        let parts = manifest.parts();
        self.check_size(&parts)?;
        self.check_parts(repository, parts.clone()).await?;

        let size = content.len() as u64;
        let blobs = self.blobs.clone();
        task::blocking("manifest", move || blobs.put(&digest, &mut Cursor::new(content))).await??;
        let descriptor = Descriptor::new(media_type, digest, size);
        let new = NewManifest {
            manifest: descriptor.clone(),
            parts,
            subject: manifest.metadata().subject,
            artifact_type: manifest.metadata().artifact_type.clone(),
        };
        let tag = match name {
            // BuildKit pushes caches by tag only. The daemon names what a build made, once the build has succeeded.
            ManifestName::Tag(_) if caller.is_build() => None,
            ManifestName::Tag(tag) => Some(tag.clone()),
            ManifestName::Digest(_) => None,
        };
        self.catalog.put_manifests(repository, vec![new], tag).await?;
        if let Some(arrivals) = &self.arrivals {
            arrivals.manifest_arrived(&descriptor);
        }

        let mut response = empty(StatusCode::CREATED);
        let headers = response.headers_mut();
        headers.insert(LOCATION, header_value(&format!("/v2/{repository}/manifests/{digest}"))?);
        headers.insert(DOCKER_CONTENT_DIGEST, header_value(&digest.to_string())?);
        if let Some(subject) = manifest.metadata().subject {
            headers.insert(OCI_SUBJECT, header_value(&subject.to_string())?);
        }
        Ok(response)
    }

    fn check_size(&self, parts: &[ManifestPart]) -> Result<(), RegistryErrorResponse> {
        let limit = self.uploads.limits.max_image_bytes;
        let blobs = parts.iter().filter(|part| part.kind == PartKind::Blob);
        let size = blobs.fold(0, |sum: u64, part| sum.saturating_add(part.size));
        if size <= limit {
            return Ok(());
        }
        let message = format!("the image has {size} bytes, and one image may have {limit} in this room");
        Err(RegistryErrorResponse::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
            .detail(json!({"reason": "image_too_large"})))
    }

    async fn read_manifest(&self, body: Body) -> Result<Vec<u8>, RegistryErrorResponse> {
        let stall = self.uploads.limits.stall_timeout;
        let collected = tokio::time::timeout(stall, Limited::new(body, MAX_DOCUMENT_BYTES).collect()).await;
        match collected {
            Err(_) => Err(RegistryErrorResponse::new(
                StatusCode::REQUEST_TIMEOUT,
                "MANIFEST_INVALID",
                format!("the manifest did not come within {} s", stall.as_secs()),
            )),
            Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(RegistryErrorResponse::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "SIZE_INVALID",
                format!("a manifest may have {MAX_DOCUMENT_BYTES} bytes"),
            )),
            Ok(Err(error)) => {
                Err(RegistryErrorResponse::bad("MANIFEST_INVALID", format!("the body was cut off: {error}")))
            }
        }
    }

    /// Checks that everything the manifest references is in the repository and has the stated size. Touching
    /// the blobs protects them from the sweep until the manifest is stored.
    async fn check_parts(
        &self,
        repository: &Repository,
        parts: Vec<ManifestPart>,
    ) -> Result<(), RegistryErrorResponse> {
        let missing = self.catalog.missing(repository, parts.clone()).await?;
        if let Some(first) = missing.first() {
            return Err(part_unknown(repository, first, missing.len()));
        }
        let blobs = self.blobs.clone();
        let wrong = task::blocking("manifest", move || {
            for part in parts {
                match blobs.touch(&part.digest)? {
                    Some(size) if size == part.size => {}
                    found => return Ok(Some((part, found))),
                }
            }
            Ok::<_, std::io::Error>(None)
        });
        match wrong.await?? {
            None => Ok(()),
            Some((part, None)) => Err(part_unknown(repository, &part, 1)),
            Some((part, Some(size))) => Err(RegistryErrorResponse::bad(
                "MANIFEST_INVALID",
                format!("the manifest says that {} has {} bytes; it has {size}", part.digest, part.size),
            )
            .detail(json!({"digest": part.digest, "size": size}))),
        }
    }

    pub(super) async fn delete_manifest(
        &self,
        repository: &Repository,
        name: &ManifestName,
    ) -> Result<Response, RegistryErrorResponse> {
        let removal = match name {
            ManifestName::Tag(tag) if self.catalog.remove_tag(repository, tag).await? => {
                RemovalOutcome::Removed
            }
            ManifestName::Tag(_) => RemovalOutcome::Unknown,
            ManifestName::Digest(digest) => self.catalog.remove_manifest(repository, digest).await?,
        };
        match removal {
            RemovalOutcome::Removed => Ok(empty(StatusCode::ACCEPTED)),
            RemovalOutcome::Unknown => Err(unknown(repository, name)),
            RemovalOutcome::Deployed(service) => Err(RegistryErrorResponse::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "UNSUPPORTED",
                format!(
                    "service `{service}` runs this image, or may go back to it; remove the service first"
                ),
            )),
            RemovalOutcome::NeededBy(index) => Err(RegistryErrorResponse::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "UNSUPPORTED",
                format!("this manifest is part of index {index}; delete that first"),
            )),
        }
    }
}

fn unknown(repository: &Repository, name: &ManifestName) -> RegistryErrorResponse {
    let name = match name {
        ManifestName::Tag(tag) => format!("tag `{tag}`"),
        ManifestName::Digest(digest) => format!("manifest {digest}"),
    };
    RegistryErrorResponse::unknown("MANIFEST_UNKNOWN", format!("repository `{repository}` has no {name}"))
}

fn part_unknown(repository: &Repository, part: &ManifestPart, count: usize) -> RegistryErrorResponse {
    let what = match part.kind {
        PartKind::Blob => "blob",
        PartKind::Manifest => "manifest",
    };
    let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
    let message = format!(
        "the manifest names {what} {}{more}, which repository `{repository}` does not have",
        part.digest
    );
    RegistryErrorResponse::bad("MANIFEST_BLOB_UNKNOWN", message).detail(json!({"digest": part.digest}))
}
