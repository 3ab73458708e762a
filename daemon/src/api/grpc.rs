//! The `hearth.v1` services, one file each.

mod builds;
mod images;
mod storage;
mod system;
mod upload;

use axum::body::Body;
use axum::extract::Request;
use http_body_util::BodyExt as _;
use tonic::{Extensions, Status};

use super::error::Refusal;
use crate::model::access::Caller;

pub use builds::BuildsService;
pub use images::ImagesService;
pub use storage::StorageService;
pub use system::SystemService;

/// The caller that [`super::auth`] put there. Without one nothing is done.
fn caller(extensions: &Extensions) -> Result<Caller, Status> {
    extensions.get::<Caller>().cloned().ok_or_else(|| {
        Refusal::internal("the request was not authenticated", "no caller in its extensions").into()
    })
}

/// Makes a request body that was cut off an error for its reader. tonic takes a stream that the
/// client has cancelled for one that has ended well, so that a part of an upload would be kept as
/// the whole; it does so for the status `cancelled` only.
pub async fn cut_off_is_an_error(request: Request) -> Request {
    request.map(|body| {
        Body::new(body.map_err(|error| Status::aborted(format!("the request was cut off: {error}"))))
    })
}

/// Denies with the verb's name unless it is allowed.
fn require(allowed: bool, what: impl std::fmt::Display) -> Result<(), Status> {
    if allowed { Ok(()) } else { Err(Refusal::denied(what).into()) }
}
