//! Checks of a caller's rights on services, beyond the check of the method. A caller who may run an image may
//! also exec into the service.

use tonic::Status;

use super::super::super::error::Refusal;
use crate::access::policy::{self, Denied};
use crate::deploy::{By, Permits};
use crate::model::access::Caller;
use crate::model::deploy::DeployRequest;
use crate::model::service::{Service, ServiceSpec};
use crate::model::{MountSource, RoomRegistries};

/// Checks the images of a deploy before they are resolved, which may take a pull.
pub(super) fn images(caller: &Caller, request: &DeployRequest, rooms: &RoomRegistries) -> Result<(), Status> {
    let mounted = || {
        let images = request.mounts.iter().filter(|mount| matches!(mount.source, MountSource::Image { .. }));
        images.into_iter().try_for_each(|image| policy::may_mount_in_service(caller, image, rooms))
    };
    let allowed = policy::may_run_image(caller, &request.image, rooms).and_then(|()| mounted());
    allowed.map_err(|denied| Refusal::from(denied).into())
}

/// Returns the caller as an actor, with its rights on services.
pub(super) fn by(caller: Caller, rooms: &RoomRegistries) -> By {
    By::new(caller.name.clone(), Grants { caller, rooms: rooms.clone() })
}

struct Grants {
    caller: Caller,
    rooms: RoomRegistries,
}

impl Permits for Grants {
    fn run(&self, spec: &ServiceSpec) -> Result<(), Denied> {
        policy::may_run(&self.caller, spec, &self.rooms)
    }

    fn change(&self, service: &Service, what: &str) -> Result<(), Denied> {
        policy::may_change(&self.caller, service, what, &self.rooms)
    }
}
