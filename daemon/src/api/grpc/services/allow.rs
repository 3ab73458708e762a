//! Who may do what with services. What a request mentions must be the caller's to use; what is kept of the revision
//! before is the service's own.

use hearth_pack::remote::full_name;
use tonic::Status;

use super::super::super::error::Refusal;
use crate::access::parse_scope;
use crate::model::access::{Caller, RegistryVerb, StorageVerb};
use crate::model::deploy::DeployRequest;
use crate::model::service::{EnvValue, Service};
use crate::model::{MountMode, MountSource, MountSpec, Reference, RoomRegistries};

/// Denies with what was wanted and the grant that it takes.
fn require(allowed: bool, what: impl std::fmt::Display, grant: &str) -> Result<(), Status> {
    if allowed {
        return Ok(());
    }
    Err(Refusal::denied(format_args!("{what}: that takes the grant `{grant}`")).into())
}

pub(super) fn services(caller: &Caller, what: &str) -> Result<(), Status> {
    require(caller.may_use_services(), what, "services")
}

pub(super) fn logs(caller: &Caller, what: &str) -> Result<(), Status> {
    require(caller.may_use_services() || caller.may_read_logs(), what, "containers.logs")
}

pub(super) fn deploy(caller: &Caller, request: &DeployRequest, rooms: &RoomRegistries) -> Result<(), Status> {
    run(caller, &request.image, rooms)?;
    if !rooms.owns_tag(&request.image) {
        pull_from(caller, &request.image)?;
    }
    for spec in &request.mounts {
        mount(caller, spec, rooms)?;
    }
    for (variable, value) in &request.env {
        env(caller, variable, value)?;
    }
    Ok(())
}

/// What ran once is run again.
pub(super) fn run_again(caller: &Caller, service: &Service, rooms: &RoomRegistries) -> Result<(), Status> {
    // The images of all revisions are of one repository.
    match service.revision(service.desired) {
        Some(revision) => run(caller, &revision.spec.image, rooms),
        None => Ok(()),
    }
}

fn run(caller: &Caller, image: &Reference, rooms: &RoomRegistries) -> Result<(), Status> {
    let name = full_name(image);
    if rooms.owns_tag(image) {
        let allowed = caller.may_run(&image.repository, &name);
        return require(allowed, format_args!("run `{}`", image.repository), "containers.run");
    }
    require(caller.may_run_from(&name), format_args!("run `{name}`"), "containers.run")
}

fn pull_from(caller: &Caller, image: &Reference) -> Result<(), Status> {
    let name = full_name(image);
    let what = format_args!("pull `{name}` from its registry");
    require(caller.may_pull_from(&name), what, "containers.pull")
}

fn mount(caller: &Caller, mount: &MountSpec, rooms: &RoomRegistries) -> Result<(), Status> {
    match &mount.source {
        MountSource::Room(path) | MountSource::Project(path) => {
            let (verb, how) = match mount.mode {
                MountMode::ReadOnly => (StorageVerb::Read, "read"),
                MountMode::ReadWrite => (StorageVerb::Write, "write"),
            };
            let what = format_args!("mount `/{path}` of storage to {how} it");
            require(caller.may_use_storage(verb, path), what, "storage.paths")
        }
        MountSource::Image { reference, .. } if rooms.owns_tag(reference) => {
            let repository = &reference.repository;
            let allowed = caller.may_use_repository(RegistryVerb::Pull, repository);
            require(allowed, format_args!("mount image `{repository}`"), "containers.registry.pull")
        }
        MountSource::Image { reference, .. } => pull_from(caller, reference),
        MountSource::Pack(_) | MountSource::EmptyDir => Ok(()),
    }
}

/// A service gets no more than who deploys it has.
fn env(caller: &Caller, variable: &str, value: &EnvValue) -> Result<(), Status> {
    match value {
        EnvValue::Plain(_) => Ok(()),
        EnvValue::Token { scope } => {
            let scope = parse_scope(scope).map_err(|error| {
                Refusal::invalid(format!("spec.env.{variable}"), "invalid_scope", error.to_string())
                    .hint("write userDefault, agentDefault, full or a JSON object")
            })?;
            match caller.lacks(&scope) {
                None => Ok(()),
                Some(grant) => {
                    let what = "give a service a token that may do more than itself";
                    require(false, what, grant)
                }
            }
        }
        EnvValue::Secret { name } => {
            let what = format_args!("give a service the secret `{name}`");
            require(caller.may_use_secrets(), what, "secrets")
        }
    }
}
