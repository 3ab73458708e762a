//! The `hearth.v1` services, one file each.

mod answers;
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
mod usage;

use std::path::PathBuf;

use tonic::{Extensions, Status};

use super::error::Refusal;
use crate::access::policy::{CallerAction, decide};
use crate::context::storage::Root;
use crate::image::Images;
use crate::model::access::{Caller, StorageVerb};
use crate::model::id::PackId;
use crate::model::share_owner::ShareOwner;
use crate::model::{MountSource, MountSpec};

pub use super::convert::Entrance;
pub use answers::Walks;
pub use builds::BuildsService;
pub use contexts::ContextsService;
pub use images::ImagesService;
pub use packs::PacksService;
pub use secrets::SecretsService;
pub use services::ServicesService;
pub use storage::StorageService;
pub use system::{BuilderList, SystemService};
pub use usage::DiskUsage;

/// The caller that [`super::auth`] put there. Without one nothing is done.
fn caller(extensions: &Extensions) -> Result<Caller, Status> {
    extensions.get::<Caller>().cloned().ok_or_else(|| {
        Refusal::internal("the request was not authenticated", "no caller in its extensions").into()
    })
}

/// Whose share of the disk the request takes.
fn share_owner(extensions: &Extensions) -> Result<ShareOwner, Status> {
    match extensions.get::<ShareOwner>() {
        Some(owner) => Ok(owner.clone()),
        None => Ok(ShareOwner(caller(extensions)?.name)),
    }
}

/// Denies what the caller's grants do not cover.
fn ask(caller: &Caller, action: &CallerAction<'_>) -> Result<(), Status> {
    decide(caller, action).map_err(|denied| Refusal::from(denied).into())
}

/// Asks about the packs among mounts. Another's pack and none are the same answer, which comes from where it is opened
/// by its owner and id; that it was denied is in the audit trail.
async fn ask_for_packs(images: &Images, caller: &Caller, mounts: &[MountSpec]) -> Result<(), Status> {
    for mount in mounts {
        let MountSource::Pack(text) = &mount.source else { continue };
        let Ok(id) = text.parse::<PackId>() else { continue };
        let Some(owner) = images.pack_owner(&id).await.map_err(Refusal::from)? else { continue };
        if let Err(denied) = decide(caller, &CallerAction::UsePack { id: text, owner: &owner }) {
            super::audit::hides(&denied);
        }
    }
    Ok(())
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
        StorageVerb::Read => ask(caller, &CallerAction::ReadStorage(&path))?,
        StorageVerb::Write => ask(caller, &CallerAction::WriteStorage(&path))?,
    }
    Ok((root.with_links(caller.path_links(verb)), path.into()))
}
