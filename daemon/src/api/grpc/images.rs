use std::io::{Seek as _, SeekFrom};

use hearth_proto::v1;
use tonic::{Request, Response, Status, Streaming};

use super::super::audit;
use super::super::convert::{self, page_size};
use super::super::error::ApiError;
use super::response_stream::{ResponseStream, read_chunk, stream_batches};
use super::{caller, check_access, share_owner};
use crate::access::policy::{CallerAction, decide, listed_owner};
use crate::context::StorageRoots;
use crate::disk::DiskLedger;
use crate::image::port::TagQuery;
use crate::image::port::cached::ImageRight;
use crate::image::{ImageStore, InspectedImage, OpenBlob, RemoteRegistries};
use crate::model::fault::ErrorCode;
use crate::model::{Digest, Reference, Repository, Tag};

pub struct ImagesService {
    pub images: ImageStore,
    pub storage: StorageRoots,
    pub remote_registries: RemoteRegistries,
    pub disk: DiskLedger,
}

#[tonic::async_trait]
impl v1::images_server::Images for ImagesService {
    type ReadBlobStream = ResponseStream<v1::ReadBlobResponse>;
    type PullStream = ResponseStream<v1::TransferEvent>;
    type PushStream = ResponseStream<v1::TransferEvent>;

    async fn list(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let size = page_size(request.page_size, 100, 1000);
        let repository = match request.repository.as_str() {
            "" => None,
            text => Some(text.parse::<Repository>().map_err(|error| {
                ApiError::invalid("repository", ErrorCode::InvalidRepository, error.to_string())
            })?),
        };
        let mut query = TagQuery { repository, after: page(&request.page_token)?, limit: size };
        let mut images = Vec::new();
        // Images that the caller may not list do not count towards the page size.
        loop {
            let found = self.images.list(query.clone()).await.map_err(ApiError::from)?;
            let more = found.len() == query.limit;
            query.after = found.last().map(|last| (last.repository.clone(), last.tag.clone()));
            let allowed = found
                .into_iter()
                .filter(|image| decide(&caller, &CallerAction::ListRepository(&image.repository)).is_ok());
            images.extend(allowed);
            if images.len() >= size || !more {
                let mut next_page_token = String::new();
                if images.len() > size || more {
                    images.truncate(size);
                    if let Some(last) = images.last() {
                        next_page_token = format!("{}:{}", last.repository, last.tag);
                    }
                }
                let rooms = self.images.room_registries();
                let digests = images.iter().map(|image| image.manifest.digest).collect();
                let marks = self.images.marks(digests).await.map_err(ApiError::from)?;
                let mut images: Vec<_> = images.iter().map(|image| convert::image(image, rooms)).collect();
                convert::add_marks(&mut images, &marks);
                return Ok(Response::new(v1::ListImagesResponse { images, next_page_token }));
            }
        }
    }

    async fn list_cached(
        &self,
        request: Request<v1::ListCachedImagesRequest>,
    ) -> Result<Response<v1::ListCachedImagesResponse>, Status> {
        let caller = caller(request.extensions())?;
        let mut images = self.images.cached_images().await.map_err(ApiError::from)?;
        let owner = listed_owner(&caller);
        images.retain(|image| {
            let of_another = |name: &&str| matches!(&image.key.right, ImageRight::Caller(own) if own != name);
            let may_pull =
                || decide(&caller, &CallerAction::PullRemoteImage(image.key.registry_name())).is_ok();
            owner.is_none_or(|name| !of_another(&name) && may_pull())
        });
        let images = images.into_iter().rev().map(convert::cached_image).collect();
        Ok(Response::new(v1::ListCachedImagesResponse { images }))
    }

    async fn inspect(
        &self,
        request: Request<v1::InspectImageRequest>,
    ) -> Result<Response<v1::InspectImageResponse>, Status> {
        let caller = caller(request.extensions())?;
        let reference = reference("reference", &request.into_inner().reference)?;
        check_access(&caller, &CallerAction::PullRepository(&reference.repository))?;
        let inspected = self.images.inspect(&reference).await.map_err(ApiError::from)?;
        let marks = self.images.marks(vec![inspected.manifest.digest]).await.map_err(ApiError::from)?;
        let mut response = self.inspected(inspected);
        convert::add_marks(response.image.as_mut_slice(), &marks);
        Ok(Response::new(response))
    }

    async fn list_attestations(
        &self,
        request: Request<v1::ListAttestationsRequest>,
    ) -> Result<Response<v1::ListAttestationsResponse>, Status> {
        let caller = caller(request.extensions())?;
        let reference = reference("reference", &request.into_inner().reference)?;
        check_access(&caller, &CallerAction::PullRepository(&reference.repository))?;
        let found = self.images.attestations(&reference).await.map_err(ApiError::from)?;
        let attestations = found.into_iter().map(convert::attestation).collect();
        Ok(Response::new(v1::ListAttestationsResponse { attestations }))
    }

    async fn tag(&self, request: Request<v1::TagImageRequest>) -> Result<Response<v1::Image>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let source = reference("reference", &request.reference)?;
        let tag = convert::tag("tag", &request.tag)?;
        audit::record_object(&tag);
        check_access(&caller, &CallerAction::PullRepository(&source.repository))?;
        check_access(&caller, &CallerAction::WriteRepository(&tag.repository))?;
        let image = self.images.tag(&source, &tag).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::image(&image, self.images.room_registries())))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let caller = caller(request.extensions())?;
        let reference = reference("reference", &request.into_inner().reference)?;
        audit::record_object(&reference);
        check_access(&caller, &CallerAction::WriteRepository(&reference.repository))?;
        self.images.remove(&reference).await.map_err(ApiError::from)?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn load(
        &self,
        request: Request<Streaming<v1::LoadImageRequest>>,
    ) -> Result<Response<v1::LoadImageResponse>, Status> {
        let caller = caller(request.extensions())?;
        let owner = share_owner(request.extensions())?;
        Ok(Response::new(self.take_archive(&caller, &owner, request.into_inner()).await?))
    }

    async fn pull(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let caller = caller(request.extensions())?;
        Ok(Response::new(self.start_pull(&caller, request.into_inner())?))
    }

    async fn push(
        &self,
        request: Request<v1::PushImageRequest>,
    ) -> Result<Response<Self::PushStream>, Status> {
        let caller = caller(request.extensions())?;
        Ok(Response::new(self.start_push(&caller, request.into_inner())?))
    }

    async fn read_blob(
        &self,
        request: Request<v1::ReadBlobRequest>,
    ) -> Result<Response<Self::ReadBlobStream>, Status> {
        use v1::read_blob_response::Message;
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let reference = reference("reference", &request.reference)?;
        check_access(&caller, &CallerAction::PullRepository(&reference.repository))?;
        let digest =
            match request.digest.as_str() {
                "" => None,
                text => Some(text.parse::<Digest>().map_err(|error| {
                    ApiError::invalid("digest", ErrorCode::InvalidDigest, error.to_string())
                })?),
            };
        let OpenBlob { blob, file } =
            self.images.open_blob(&reference, digest).await.map_err(ApiError::from)?;
        let head = v1::BlobHead {
            digest: blob.digest.to_string(),
            size_bytes: blob.size,
            media_type: blob.media_type,
        };
        Ok(Response::new(stream_batches((Some(head), file), move |(head, file)| {
            let next = match head.take() {
                Some(head) => file.seek(SeekFrom::Start(request.offset)).map(|_| Some(Message::Head(head))),
                None => read_chunk(file).map(|chunk| chunk.map(Message::Chunk)),
            };
            let next = next.map_err(|error| ApiError::internal("the blob could not be read", error))?;
            Ok(next.map(|message| v1::ReadBlobResponse { message: Some(message) }).into_iter().collect())
        })))
    }
}

impl ImagesService {
    fn inspected(&self, inspected: InspectedImage) -> v1::InspectImageResponse {
        let rooms = self.images.room_registries();
        let image = match inspected.tag {
            Some(tag) => convert::image(&tag, rooms),
            None => v1::Image {
                reference: format!("{}@{}", inspected.repository, inspected.manifest.digest),
                repository: inspected.repository.to_string(),
                digest: inspected.manifest.digest.to_string(),
                size_bytes: inspected.size_bytes,
                ..v1::Image::default()
            },
        };
        let layer = |layer: hearth_oci::Descriptor| v1::Layer {
            digest: layer.digest.to_string(),
            media_type: layer.media_type,
            size_bytes: layer.size,
        };
        v1::InspectImageResponse {
            image: Some(image),
            media_type: inspected.manifest.media_type,
            platform: inspected.platform.unwrap_or_default(),
            layers: inspected.layers.into_iter().map(layer).collect(),
            manifest_json: String::from_utf8_lossy(&inspected.manifest_json).into_owned(),
            config_json: String::from_utf8_lossy(&inspected.config_json).into_owned(),
        }
    }
}

pub(super) fn reference(field: &str, text: &str) -> Result<Reference, ApiError> {
    text.parse::<Reference>()
        .map_err(|error| ApiError::invalid(field, ErrorCode::InvalidReference, error.to_string()))
}

/// Parses a page token: `repository:tag` of the last image of the page before.
fn page(token: &str) -> Result<Option<(Repository, Tag)>, ApiError> {
    if token.is_empty() {
        return Ok(None);
    }
    let invalid =
        || ApiError::invalid("page_token", ErrorCode::InvalidPageToken, "not a page token of this call");
    let (repository, tag) = token.rsplit_once(':').ok_or_else(invalid)?;
    Ok(Some((repository.parse().map_err(|_| invalid())?, tag.parse().map_err(|_| invalid())?)))
}
