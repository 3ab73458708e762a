//! The `hearth.v1` gRPC services, one file each.

mod builds;
mod contexts;
mod images;
mod load;
mod packs;
mod response_stream;
mod secrets;
mod services;
mod storage;
mod system;
mod transfer;
mod upload;
mod usage;
mod verify_content;

use std::path::PathBuf;

use tonic::{Extensions, Status};

use super::error::ApiError;
use crate::access::policy::{CallerAction, decide};
use crate::context::StorageRoot;
use crate::image::ImageStore;
use crate::model::access::{Caller, StorageVerb};
use crate::model::fault::ErrorCode;
use crate::model::id::PackId;
use crate::model::share_owner::ShareOwner;
use crate::model::{BuildMount, BuildMountSource};

pub use super::convert::IngressAddress;
pub use builds::BuildsService;
pub use contexts::ContextsService;
pub use images::ImagesService;
pub use packs::PacksService;
pub use response_stream::WalkThreads;
pub use secrets::SecretsService;
pub use services::ServicesService;
pub use storage::StorageService;
pub use system::{BuilderList, SystemService};
pub use usage::DiskUsage;

pub(super) use upload::FileError;

/// Returns the caller that [`super::auth`] put into the extensions. A request without one fails.
fn caller(extensions: &Extensions) -> Result<Caller, Status> {
    extensions.get::<Caller>().cloned().ok_or_else(|| {
        ApiError::internal("the request was not authenticated", "no caller in its extensions").into()
    })
}

/// Returns the owner whose share of the disk the request uses.
fn share_owner(extensions: &Extensions) -> Result<ShareOwner, Status> {
    match extensions.get::<ShareOwner>() {
        Some(owner) => Ok(owner.clone()),
        None => Ok(ShareOwner(caller(extensions)?.name)),
    }
}

/// Checks that the caller's grants cover an action.
fn check_access(caller: &Caller, action: &CallerAction<'_>) -> Result<(), Status> {
    decide(caller, action).map_err(|denied| ApiError::from(denied).into())
}

/// Checks the packs among mounts. A pack of another caller gives the same error as a missing one, when the pack
/// is opened by its owner and id; the denial is only recorded in the audit trail.
async fn check_packs(images: &ImageStore, caller: &Caller, mounts: &[BuildMount]) -> Result<(), Status> {
    for mount in mounts {
        let BuildMountSource::Pack(text) = &mount.source else { continue };
        let Ok(id) = text.parse::<PackId>() else { continue };
        let Some(owner) = images.pack_owner(&id).await.map_err(ApiError::from)? else { continue };
        if let Err(denied) = decide(caller, &CallerAction::UsePack { id: text, owner: &owner }) {
            super::audit::record_hidden_denial(&denied);
        }
    }
    Ok(())
}

/// Checks that the caller may use a path of a storage, and returns the storage and the path. No symbolic link
/// leads out of the part that the grants cover.
fn authorized_storage_path(
    caller: &Caller,
    verb: StorageVerb,
    root: &StorageRoot,
    field: &str,
    path: &str,
) -> Result<(StorageRoot, PathBuf), Status> {
    let path = hearth_proto::value::storage_path(path)
        .map_err(|error| ApiError::invalid(field, ErrorCode::InvalidPath, error.to_string()))?;
    match verb {
        StorageVerb::Read => check_access(caller, &CallerAction::ReadStorage(&path))?,
        StorageVerb::Write => check_access(caller, &CallerAction::WriteStorage(&path))?,
    }
    Ok((root.with_links(caller.symlink_policy(verb)), path.into()))
}
