//! Transfers of images between the room and other registries.
//!
//! A transfer sends progress events, which also keep its connection alive. When the client disconnects, the
//! transfer is dropped: it creates no name, and the sweep removes content that nothing references.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use hearth_proto::v1;
use hearth_registry::full_name;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::super::audit;
use super::super::convert;
use super::super::error::ApiError;
use super::check_access;
use super::images::{ImagesService, reference};
use super::response_stream::ResponseStream;
use crate::access::policy::CallerAction;
use crate::image::{ImageDestination, ImagePull, PlatformSelection, TransferProgress};
use crate::model::access::Caller;
use crate::model::fault::ErrorCode;
use crate::model::image::Platform;
use crate::model::{Reference, RoomRegistries};
use crate::task;

/// Interval between two progress events.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
const EVENT_CAPACITY: usize = 4;

impl ImagesService {
    pub(super) fn start_pull(
        &self,
        caller: &Caller,
        request: v1::PullImageRequest,
    ) -> Result<ResponseStream<v1::TransferEvent>, Status> {
        let source = reference("reference", &request.reference)?;
        require_remote("reference", &source, self.images.room_registries())?;
        let tag = match request.tag.as_str() {
            "" if source.tag.is_none() && source.digest.is_some() => {
                let message = "an image that is named by its digest needs a tag in the room";
                return Err(ApiError::invalid("tag", ErrorCode::TagNeeded, message).into());
            }
            "" => {
                let tag = source.tag_or_latest();
                Reference { registry: None, repository: source.repository.clone(), tag, digest: None }
            }
            text => convert::tag("tag", text)?,
        };
        audit::record_object(&source);
        audit::record_object(&tag);
        check_access(caller, &CallerAction::PullRemoteImage(&full_name(&source)))?;
        check_access(caller, &CallerAction::WriteRepository(&tag.repository))?;
        let platforms = match (request.all_platforms, request.platform.as_str()) {
            (true, _) => PlatformSelection::All,
            (false, "") => PlatformSelection::One(Platform::host()),
            (false, text) => PlatformSelection::One(Platform::parse_requested(text).ok_or_else(|| {
                let message =
                    format!("platform `{text}`: expected `os/arch[/variant]` with a known architecture, such as `linux/arm64`");
                ApiError::invalid("platform", ErrorCode::InvalidPlatform, message)
            })?),
        };
        let remote = self.remote_registries.remote(&convert::registry_credentials(
            "credentials",
            request.credentials,
            &source,
            self.images.room_registries(),
        )?);
        let remote = remote.map_err(|error| ApiError::from(crate::image::ImageError::from(error)))?;
        let (images, transfer) = (self.images.clone(), Arc::new(TransferProgress::default()));
        let (shown, caller) = (Arc::clone(&transfer), caller.name.clone());
        let span = tracing::info_span!("image", operation = "pull", image.name = full_name(&source));
        let work = async move {
            let name = images.room_registries().qualify(tag.clone()).to_string();
            let destination = ImageDestination::Tag(tag);
            let (remote, reference, caller) = (&remote, &source, caller.as_str());
            let pull = ImagePull { remote, reference, caller, platforms, destination };
            let pulled = images.pull(pull, &transfer).await?;
            tracing::info!(image.digest = %pulled.manifest.digest, target = name, "image pulled");
            Ok(v1::TransferDone {
                digest: pulled.manifest.digest.to_string(),
                reference: name,
                sent_bytes: transfer.snapshot().bytes.saturating_sub(pulled.reused_bytes),
                reused_bytes: pulled.reused_bytes,
            })
        };
        Ok(span.in_scope(|| events(shown, work)))
    }

    pub(super) fn start_push(
        &self,
        caller: &Caller,
        request: v1::PushImageRequest,
    ) -> Result<ResponseStream<v1::TransferEvent>, Status> {
        let source = reference("reference", &request.reference)?;
        let target = convert::tag("target", &request.target)?;
        require_remote("target", &target, self.images.room_registries())?;
        audit::record_object(&source);
        audit::record_object(&target);
        check_access(caller, &CallerAction::PullRepository(&source.repository))?;
        check_access(caller, &CallerAction::PushRemoteImage(&full_name(&target)))?;
        let remote = self.remote_registries.remote(&convert::registry_credentials(
            "credentials",
            request.credentials,
            &target,
            self.images.room_registries(),
        )?);
        let remote = remote.map_err(|error| ApiError::from(crate::image::ImageError::from(error)))?;
        let (images, transfer) = (self.images.clone(), Arc::new(TransferProgress::default()));
        let shown = Arc::clone(&transfer);
        let span = tracing::info_span!("image", operation = "push", image.name = %source);
        let work = async move {
            let (manifest, sent) = images.push(&remote, &source, &target, &transfer).await?;
            tracing::info!(image.digest = %manifest.digest, target = full_name(&target), "image pushed");
            Ok(v1::TransferDone {
                digest: manifest.digest.to_string(),
                reference: target.to_string(),
                sent_bytes: sent.sent_bytes,
                reused_bytes: sent.reused_bytes,
            })
        };
        Ok(span.in_scope(|| events(shown, work)))
    }
}

/// Refuses a reference to this room where one to another registry is required.
fn require_remote(field: &str, reference: &Reference, rooms: &RoomRegistries) -> Result<(), ApiError> {
    if !rooms.owns_source(reference) {
        return Ok(());
    }
    let message = format!("`{reference}` is in this room's registry, not in another");
    Err(ApiError::invalid(field, ErrorCode::RoomRegistry, message))
}

/// Streams the progress of a transfer, and then its result.
fn events(
    transfer: Arc<TransferProgress>,
    work: impl Future<Output = Result<v1::TransferDone, crate::image::ImageError>> + Send + 'static,
) -> ResponseStream<v1::TransferEvent> {
    use v1::transfer_event::Event;
    let (send, receive) = mpsc::channel(EVENT_CAPACITY);
    let event = |event| v1::TransferEvent { event: Some(event) };
    task::spawn("image-transfer", async move {
        let mut work = Box::pin(work);
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                result = &mut work => {
                    let last = result.map(|done| event(Event::Done(done)));
                    // The client may have disconnected.
                    let _ = send.send(last.map_err(|error| ApiError::from(error).into())).await;
                    return;
                }
                () = send.closed() => {
                    tracing::info!("cancelled an image transfer; the client disconnected");
                    return;
                }
                _ = tick.tick() => {
                    let stand = transfer.snapshot();
                    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
                    // A progress event that cannot be sent now would be outdated later, so it is dropped.
                    let _ = send.try_send(Ok(event(Event::Progress(v1::TransferProgress {
                        blobs: small(stand.blobs),
                        total_blobs: small(stand.total_blobs),
                        bytes: stand.bytes,
                        total_bytes: stand.total_bytes,
                    }))));
                }
            }
        }
    });
    ReceiverStream::new(receive).boxed()
}
