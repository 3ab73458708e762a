//! Splits builds and services into actions of the policy. A service never gets more rights than its deployer
//! has: settings that are kept from an earlier revision are checked again like those in the request.

use hearth_registry::full_name;

use super::{AccessDenied, CallerAction, decide};
use crate::access::parse_scope;
use crate::model::access::{Caller, StorageVerb};
use crate::model::build::BuildSpec;
use crate::model::service::{EnvValue, ServiceRecord, ServiceSpec};
use crate::model::{
    BuildMount, CacheExport, CacheLocation, MountAccess, MountOrigin, MountSource as _, Reference,
    RoomRegistries, ServiceMount,
};

/// Checks that the caller may read and write everything that a build reads and writes.
pub fn may_build(caller: &Caller, spec: &BuildSpec, rooms: &RoomRegistries) -> Result<(), AccessDenied> {
    for tag in &spec.tags {
        if !rooms.owns_tag(tag) {
            decide(caller, &CallerAction::PushRemoteImage(&full_name(tag)))?;
        }
        // A result for another registry is first stored in this room's registry.
        decide(caller, &CallerAction::WriteRepository(&tag.repository))?;
    }
    spec.cache_from.iter().try_for_each(|import| may_read_cache(caller, &import.location, rooms))?;
    spec.cache_to.iter().try_for_each(|export| match export {
        // It is a part of the image.
        CacheExport::Inline => Ok(()),
        CacheExport::To { location, .. } => may_write_cache(caller, location, rooms),
    })?;
    for name in spec.room_secrets.values() {
        decide(caller, &CallerAction::UseSecret(name.as_str()))?;
    }
    may_mount_in_builds(caller, &spec.mounts, rooms)
}

fn may_read_cache(
    caller: &Caller,
    location: &CacheLocation,
    rooms: &RoomRegistries,
) -> Result<(), AccessDenied> {
    match location {
        CacheLocation::Registry(reference) => may_read_image(caller, reference, rooms),
        CacheLocation::Directory { path, .. } => {
            decide(caller, &CallerAction::MountStorage { verb: StorageVerb::Read, path })
        }
        CacheLocation::Archive { path } => decide(caller, &CallerAction::ReadStorage(path)),
    }
}

fn may_write_cache(
    caller: &Caller,
    location: &CacheLocation,
    rooms: &RoomRegistries,
) -> Result<(), AccessDenied> {
    match location {
        CacheLocation::Registry(reference) if rooms.owns_tag(reference) => {
            decide(caller, &CallerAction::WriteRepository(&reference.repository))
        }
        CacheLocation::Registry(reference) => {
            decide(caller, &CallerAction::PushRemoteImage(&full_name(reference)))
        }
        CacheLocation::Directory { path, .. } => {
            decide(caller, &CallerAction::MountStorage { verb: StorageVerb::Write, path })
        }
        CacheLocation::Archive { path } => decide(caller, &CallerAction::WriteStorage(path)),
    }
}

/// Checks that the caller may read the sources that a build mounts, or that a context request reads.
pub fn may_mount_in_builds(
    caller: &Caller,
    mounts: &[BuildMount],
    rooms: &RoomRegistries,
) -> Result<(), AccessDenied> {
    mounts.iter().try_for_each(|mount| match mount.source.origin() {
        MountOrigin::Storage(path) => decide(caller, &CallerAction::ReadStorage(path)),
        MountOrigin::Image(reference) => may_read_image(caller, reference, rooms),
        // Packs are checked where their owner is known (`CallerAction::UsePack`).
        MountOrigin::Pack(_) | MountOrigin::Nothing => Ok(()),
    })
}

/// Checks that the caller may run the image of a service, and use its mounts, secrets and token scopes.
pub fn may_run(caller: &Caller, spec: &ServiceSpec, rooms: &RoomRegistries) -> Result<(), AccessDenied> {
    may_run_image(caller, &spec.image, rooms)?;
    spec.mounts.iter().try_for_each(|mount| may_mount_in_service(caller, mount, rooms))?;
    spec.env.values().try_for_each(|value| match value {
        EnvValue::Plain(_) => Ok(()),
        EnvValue::Secret { name } => decide(caller, &CallerAction::UseSecret(name)),
        // An invalid scope is reported later, when the token is minted.
        EnvValue::Token { scope } => match parse_scope(scope) {
            Ok(scope) => decide(caller, &CallerAction::DelegateToken(&scope)),
            Err(_) => Ok(()),
        },
    })
}

pub fn may_run_image(caller: &Caller, image: &Reference, rooms: &RoomRegistries) -> Result<(), AccessDenied> {
    let name = full_name(image);
    decide(caller, &run_action(image, rooms, &name))?;
    if rooms.owns_tag(image) { Ok(()) } else { decide(caller, &CallerAction::PullRemoteImage(&name)) }
}

pub fn may_mount_in_service(
    caller: &Caller,
    mount: &ServiceMount,
    rooms: &RoomRegistries,
) -> Result<(), AccessDenied> {
    match mount.source.origin() {
        MountOrigin::Storage(path) => {
            let verb = match mount.mode {
                MountAccess::ReadOnly if !mount.create => StorageVerb::Read,
                MountAccess::ReadOnly | MountAccess::ReadWrite => StorageVerb::Write,
            };
            decide(caller, &CallerAction::MountStorage { verb, path })
        }
        MountOrigin::Image(reference) => may_read_image(caller, reference, rooms),
        MountOrigin::Pack(_) | MountOrigin::Nothing => Ok(()),
    }
}

fn may_read_image(caller: &Caller, image: &Reference, rooms: &RoomRegistries) -> Result<(), AccessDenied> {
    if rooms.owns_tag(image) {
        decide(caller, &CallerAction::PullRepository(&image.repository))
    } else {
        decide(caller, &CallerAction::PullRemoteImage(&full_name(image)))
    }
}

/// Checks that the caller may change a service and read its log: the caller deployed it first, or may run its
/// image. `what` is a verb with its object, such as "remove service `web`".
pub fn may_change(
    caller: &Caller,
    service: &ServiceRecord,
    what: &str,
    rooms: &RoomRegistries,
) -> Result<(), AccessDenied> {
    let revision = service.target_revision().or_else(|| service.revisions.last());
    let name = revision.map(|revision| full_name(&revision.spec.image)).unwrap_or_default();
    let run = match revision {
        Some(revision) => run_action(&revision.spec.image, rooms, &name),
        None => CallerAction::RunRoomImage { repository: &service.repository, name: &name },
    };
    decide(caller, &CallerAction::ChangeService { what, owner: &service.created_by, run: &run })
}

/// Returns the action of running an image. `name` is the image's full name.
fn run_action<'a>(image: &'a Reference, rooms: &RoomRegistries, name: &'a str) -> CallerAction<'a> {
    if rooms.owns_tag(image) {
        CallerAction::RunRoomImage { repository: &image.repository, name }
    } else {
        CallerAction::RunRemoteImage(name)
    }
}
