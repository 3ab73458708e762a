//! Who may do what with services. A service gets no more than who deploys it has: what is kept of an earlier revision
//! is asked for again, as what is mentioned. Who may run something may look inside.

use hearth_pack::remote::full_name;
use tonic::Status;

use super::super::super::error::Refusal;
use crate::access::parse_scope;
use crate::deploy::By;
use crate::model::access::{Caller, Denied, RegistryVerb, StorageVerb};
use crate::model::deploy::DeployRequest;
use crate::model::service::{EnvValue, ServiceSpec};
use crate::model::{MountMode, MountSource, MountSpec, Reference, RoomRegistries};

/// Denies with what was wanted and the grant that it takes.
fn require(allowed: bool, what: impl std::fmt::Display, grant: &str) -> Result<(), Denied> {
    if allowed { Ok(()) } else { Err(Denied { what: what.to_string(), grant: grant.to_owned() }) }
}

fn told(denied: Result<(), Denied>) -> Result<(), Status> {
    denied.map_err(|denied| Refusal::denied(denied).into())
}

pub(super) fn services(caller: &Caller, what: &str) -> Result<(), Status> {
    told(require(caller.may_use_services(), what, "services"))
}

pub(super) fn logs(caller: &Caller, what: &str) -> Result<(), Status> {
    told(require(caller.may_use_services() || caller.may_read_logs(), what, "containers.logs"))
}

/// What is asked for before images are looked up, which may take a pull.
pub(super) fn images(caller: &Caller, request: &DeployRequest, rooms: &RoomRegistries) -> Result<(), Status> {
    let mounted = || {
        let images = request.mounts.iter().filter(|mount| matches!(mount.source, MountSource::Image { .. }));
        images.into_iter().try_for_each(|image| mount(caller, image, rooms))
    };
    told(run(caller, &request.image, rooms).and_then(|()| mounted()))
}

/// The caller, with what they may have run.
pub(super) fn by(caller: Caller, rooms: &RoomRegistries) -> By {
    let rooms = rooms.clone();
    By::new(caller.name.clone(), move |spec| whole(&caller, spec, &rooms))
}

fn whole(caller: &Caller, spec: &ServiceSpec, rooms: &RoomRegistries) -> Result<(), Denied> {
    run(caller, &spec.image, rooms)?;
    spec.mounts.iter().try_for_each(|one| mount(caller, one, rooms))?;
    spec.env.values().try_for_each(|value| env(caller, value))
}

fn run(caller: &Caller, image: &Reference, rooms: &RoomRegistries) -> Result<(), Denied> {
    let name = full_name(image);
    if rooms.owns_tag(image) {
        let allowed = caller.may_run(&image.repository, &name);
        return require(allowed, format_args!("run `{}`", image.repository), "containers.run");
    }
    require(caller.may_run_from(&name), format_args!("run `{name}`"), "containers.run")?;
    pull_from(caller, image)
}

fn pull_from(caller: &Caller, image: &Reference) -> Result<(), Denied> {
    let name = full_name(image);
    let what = format_args!("pull `{name}` from its registry");
    require(caller.may_pull_from(&name), what, "containers.pull")
}

fn mount(caller: &Caller, mount: &MountSpec, rooms: &RoomRegistries) -> Result<(), Denied> {
    match &mount.source {
        MountSource::Room(path) | MountSource::Project(path) => {
            let (verb, how) = match mount.mode {
                MountMode::ReadOnly => (StorageVerb::Read, "read"),
                MountMode::ReadWrite => (StorageVerb::Write, "write"),
            };
            let what = format_args!("mount `/{path}` of storage to {how} it");
            require(caller.may_mount(verb, path), what, "storage.paths")
        }
        MountSource::Image { reference, .. } if rooms.owns_tag(reference) => {
            let repository = &reference.repository;
            let allowed = caller.may_use_repository(RegistryVerb::Pull, repository);
            require(allowed, format_args!("mount image `{repository}`"), "containers.registry.pull")
        }
        MountSource::Image { reference, .. } => pull_from(caller, reference),
        MountSource::Pack(_) | MountSource::EmptyDir | MountSource::File(_) => Ok(()),
    }
}

fn env(caller: &Caller, value: &EnvValue) -> Result<(), Denied> {
    match value {
        EnvValue::Plain(_) => Ok(()),
        EnvValue::Token { scope } => {
            // One that is no scope is refused as such, where it is tried.
            let lacking = parse_scope(scope).ok().and_then(|scope| caller.lacks(&scope));
            let what = "use a service whose token may do more than this one";
            lacking.map_or(Ok(()), |grant| require(false, what, grant))
        }
        EnvValue::Secret { name } => {
            let what = format_args!("use a service that has the secret `{name}`");
            require(caller.may_use_secrets(), what, "secrets")
        }
    }
}
