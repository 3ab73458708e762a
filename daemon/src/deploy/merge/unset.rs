//! Settings that a request takes away from the live revision, so that they have their defaults again.

use super::{MergeError, is_variable_name};
use crate::model::ServiceMountSource;
use crate::model::deploy::{DeployRequest, ServiceSetting};
use crate::model::service::ServiceSpec;

/// Refuses a request that sets and takes away the same setting.
pub(super) fn check(request: &DeployRequest) -> Result<(), MergeError> {
    for name in &request.unset_env {
        if !is_variable_name(name) {
            return Err(MergeError::EnvName(name.chars().take(100).collect()));
        }
        if request.env.contains_key(name) {
            return Err(MergeError::EnvSetAndUnset(name.clone()));
        }
    }
    match request.unset.iter().find(|setting| is_set(request, **setting)) {
        Some(setting) => Err(MergeError::SetAndUnset(flag(*setting))),
        None => Ok(()),
    }
}

fn is_set(request: &DeployRequest, setting: ServiceSetting) -> bool {
    match setting {
        ServiceSetting::Liveness => request.liveness.is_some(),
        ServiceSetting::Command => request.command.is_some(),
        ServiceSetting::WorkingDir => request.workdir.is_some(),
        ServiceSetting::Memory => request.memory_bytes.is_some(),
        ServiceSetting::Cpus => request.cpu_millis.is_some(),
        ServiceSetting::Ports => request.ports.is_some(),
        kind => request.mounts.iter().any(|mount| mounts_of(&mount.source) == kind),
    }
}

/// Returns the setting that a mount of this source belongs to.
const fn mounts_of(source: &ServiceMountSource) -> ServiceSetting {
    match source {
        ServiceMountSource::Room(_) => ServiceSetting::RoomMounts,
        ServiceMountSource::Project(_) => ServiceSetting::ProjectMounts,
        ServiceMountSource::Image { .. } => ServiceSetting::ImageMounts,
        ServiceMountSource::EmptyDir => ServiceSetting::EmptyDirMounts,
        ServiceMountSource::File(_) => ServiceSetting::FileMounts,
    }
}

/// Returns the command-line flag that takes a setting away.
const fn flag(setting: ServiceSetting) -> &'static str {
    match setting {
        ServiceSetting::Liveness => "--no-liveness",
        ServiceSetting::Command => "--no-command",
        ServiceSetting::WorkingDir => "--no-workdir",
        ServiceSetting::Memory => "--no-memory",
        ServiceSetting::Cpus => "--no-cpus",
        ServiceSetting::Ports => "--no-ports",
        ServiceSetting::RoomMounts => "--no-mounts room",
        ServiceSetting::ProjectMounts => "--no-mounts project",
        ServiceSetting::ImageMounts => "--no-mounts image",
        ServiceSetting::EmptyDirMounts => "--no-mounts empty-dir",
        ServiceSetting::FileMounts => "--no-mounts file",
    }
}

/// Returns the part of a specification that a request keeps. A variable that is not there is named in a note.
pub(super) fn remainder(spec: &ServiceSpec, request: &DeployRequest, notes: &mut Vec<String>) -> ServiceSpec {
    let mut spec = spec.clone();
    for name in &request.unset_env {
        if spec.env.remove(name).is_none() {
            notes.push(format!("variable {name} is not set, so that there is nothing to take away"));
        }
    }
    for setting in &request.unset {
        match setting {
            ServiceSetting::Liveness => spec.health.path = None,
            ServiceSetting::Command => spec.command = None,
            ServiceSetting::WorkingDir => spec.workdir = None,
            ServiceSetting::Memory => spec.limits.memory_bytes = None,
            ServiceSetting::Cpus => spec.limits.cpu_millis = None,
            ServiceSetting::Ports => spec.ports.clear(),
            kind => spec.mounts.retain(|mount| mounts_of(&mount.source) != *kind),
        }
    }
    spec
}
