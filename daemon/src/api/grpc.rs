//! The `hearth.v1` services, one file each.

mod builds;
mod images;
mod storage;
mod system;
mod upload;

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

/// Denies with the verb's name unless it is allowed.
fn require(allowed: bool, what: impl std::fmt::Display) -> Result<(), Status> {
    if allowed { Ok(()) } else { Err(Refusal::denied(what).into()) }
}
