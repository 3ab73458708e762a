//! Who may do what with services, where more than the call itself is asked about. Who may run something may look inside.

use tonic::Status;

use super::super::super::error::Refusal;
use crate::access::policy::{self, Denied};
use crate::deploy::{By, Permits};
use crate::model::access::Caller;
use crate::model::deploy::DeployRequest;
use crate::model::service::{Service, ServiceSpec};
use crate::model::{MountSource, RoomRegistries};

/// What is asked for before images are looked up, which may take a pull.
pub(super) fn images(caller: &Caller, request: &DeployRequest, rooms: &RoomRegistries) -> Result<(), Status> {
    let mounted = || {
        let images = request.mounts.iter().filter(|mount| matches!(mount.source, MountSource::Image { .. }));
        images.into_iter().try_for_each(|image| policy::may_mount_in_service(caller, image, rooms))
    };
    let allowed = policy::may_run_image(caller, &request.image, rooms).and_then(|()| mounted());
    allowed.map_err(|denied| Refusal::from(denied).into())
}

/// The caller, with what they may do to services.
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
