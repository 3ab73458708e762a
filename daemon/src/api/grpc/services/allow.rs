//! Checks of a caller's rights on services, beyond the check of the method. A caller who may run an image may
//! also exec into the service.

use tonic::Status;

use super::super::super::error::ApiError;
use crate::access::policy::{self, AccessDenied};
use crate::deploy::{Actor, CallerPermissions};
use crate::model::access::Caller;
use crate::model::deploy::DeployRequest;
use crate::model::service::{ServiceRecord, ServiceSpec};
use crate::model::{MountOrigin, MountSource as _, RoomRegistries};

/// Checks the images of a deploy before they are resolved, which may take a pull.
pub(super) fn check_images(
    caller: &Caller,
    request: &DeployRequest,
    rooms: &RoomRegistries,
) -> Result<(), Status> {
    let mounted = || {
        let images =
            request.mounts.iter().filter(|mount| matches!(mount.source.origin(), MountOrigin::Image(_)));
        images.into_iter().try_for_each(|image| policy::may_mount_in_service(caller, image, rooms))
    };
    let allowed = policy::may_run_image(caller, &request.image, rooms).and_then(|()| mounted());
    allowed.map_err(|denied| ApiError::from(denied).into())
}

/// Returns the caller as an actor, with its rights on services.
pub(super) fn actor(caller: Caller, rooms: &RoomRegistries) -> Actor {
    Actor::new(caller.name.clone(), ServicePermissions { caller, rooms: rooms.clone() })
}

struct ServicePermissions {
    caller: Caller,
    rooms: RoomRegistries,
}

impl CallerPermissions for ServicePermissions {
    fn check_run(&self, spec: &ServiceSpec) -> Result<(), AccessDenied> {
        policy::may_run(&self.caller, spec, &self.rooms)
    }

    fn check_change(&self, service: &ServiceRecord, what: &str) -> Result<(), AccessDenied> {
        policy::may_change(&self.caller, service, what, &self.rooms)
    }
}
