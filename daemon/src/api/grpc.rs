//! The `hearth.v1` services, one file each.

mod builds;
mod contexts;
mod images;
mod load;
mod packs;
mod secrets;
mod services;
mod storage;
mod system;
mod transfer;
mod upload;

use std::path::PathBuf;

use axum::body::Body;
use axum::extract::Request;
use http_body_util::BodyExt as _;
use tonic::{Extensions, Status};

use super::error::Refusal;
use crate::access::policy::{Action, decide};
use crate::context::storage::Root;
use crate::model::access::{Caller, StorageVerb};

pub use super::convert::Entrance;
pub use builds::BuildsService;
pub use contexts::ContextsService;
pub use images::ImagesService;
pub use packs::PacksService;
pub use secrets::SecretsService;
pub use services::ServicesService;
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

/// Denies what the caller's grants do not cover.
fn ask(caller: &Caller, action: &Action<'_>) -> Result<(), Status> {
    decide(caller, action).map_err(|denied| Refusal::from(denied).into())
}

/// A storage and a path in it, as the caller may use them: what the grants do not cover is denied, and no link leads
/// out of a part of it.
fn storage_for(
    caller: &Caller,
    verb: StorageVerb,
    root: &Root,
    field: &str,
    path: &str,
) -> Result<(Root, PathBuf), Status> {
    let path = hearth_proto::value::storage_path(path)
        .map_err(|error| Refusal::invalid(field, "invalid_path", error.to_string()))?;
    match verb {
        StorageVerb::Read => ask(caller, &Action::ReadStorage(&path))?,
        StorageVerb::Write => ask(caller, &Action::WriteStorage(&path))?,
    }
    Ok((root.with_links(caller.path_links(verb)), path.into()))
}
