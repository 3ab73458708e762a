//! Mounts of builds, contexts and services.

use std::collections::BTreeSet;

use hearth_proto::v1;
use hearth_proto::value::{DEFAULT_TARGET, storage_path};

use super::super::error::Refusal;
use crate::model::id::PackId;
use crate::model::{MountMode, MountSource, MountSpec};

/// Far above what people use.
const MAX_MOUNTS: usize = 64;

/// What mounts are for, and so what they may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MountUse {
    /// At least one; a source alone is mounted at `/context`.
    Build { needs: &'static str },
    /// Any number, each with its target, and no packs.
    Service,
}

/// `field` is how errors name the list.
pub(super) fn mounts(wire: Vec<v1::Mount>, field: &str, used: MountUse) -> Result<Vec<MountSpec>, Refusal> {
    if let MountUse::Build { needs } = used
        && wire.is_empty()
    {
        return Err(Refusal::invalid(field, "no_mounts", needs)
            .hint("name files of the room (--mount-room-path apps/my-app) or send some (--pack ./my-app)"));
    }
    if wire.len() > MAX_MOUNTS {
        return Err(Refusal::invalid(field, "too_many", format!("at most {MAX_MOUNTS} mounts")));
    }
    let mut targets = BTreeSet::new();
    let mut mounts = Vec::with_capacity(wire.len());
    for (i, mount) in wire.into_iter().enumerate() {
        let mount = self::mount(mount, &format!("{field}[{i}]"), used)?;
        if !targets.insert(mount.target.clone()) {
            return Err(Refusal::invalid(
                format!("{field}[{i}].target"),
                "duplicate_target",
                format!("mount target `{}` is used twice; each target can be mounted once", mount.target),
            ));
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

fn mount(wire: v1::Mount, field: &str, used: MountUse) -> Result<MountSpec, Refusal> {
    use v1::mount::Source;
    let invalid =
        |part: &str, message: String| Refusal::invalid(format!("{field}{part}"), "invalid_mount", message);
    let path = |text: &str, part: &str| {
        storage_path(text).map_err(|error| invalid(part, format!("mount source {error}")))
    };
    let of_service = used == MountUse::Service;
    let source = match wire.source {
        None => return Err(invalid("", "the mount has no source".to_owned())),
        Some(Source::RoomPath(text)) => MountSource::Room(path(&text, ".room_path")?),
        Some(Source::ProjectPath(text)) => MountSource::Project(path(&text, ".project_path")?),
        Some(Source::Image(image)) => MountSource::Image {
            reference: image
                .reference
                .parse()
                .map_err(|error| invalid(".image.reference", format!("mount image {error}")))?,
            subpath: path(&image.subpath, ".image.subpath")?,
        },
        Some(Source::PackId(_)) if of_service => {
            return Err(invalid(".pack_id", "a pack cannot be mounted into a service".to_owned()));
        }
        Some(Source::PackId(id)) => {
            let id: PackId =
                id.parse().map_err(|error| invalid(".pack_id", format!("pack `{id}`: {error}")))?;
            MountSource::Pack(id.to_string())
        }
        Some(Source::EmptyDir(_)) if of_service => MountSource::EmptyDir,
        Some(Source::EmptyDir(_)) => {
            return Err(invalid(".empty_dir", "an empty directory is for services only".to_owned()));
        }
    };
    let target = match wire.target.as_str() {
        "" if of_service => return Err(invalid(".target", "the mount has no target".to_owned())),
        "" => DEFAULT_TARGET,
        target => target,
    };
    let target = target.parse().map_err(|error| invalid(".target", format!("{error}")))?;
    let mode = match (v1::MountMode::try_from(wire.mode), &source) {
        (Ok(v1::MountMode::ReadOnly), _) => MountMode::ReadOnly,
        (Ok(v1::MountMode::ReadWrite), _)
        | (Ok(v1::MountMode::Unspecified), MountSource::Room(_) | MountSource::EmptyDir) => {
            MountMode::ReadWrite
        }
        (Ok(v1::MountMode::Unspecified), _) => MountMode::ReadOnly,
        (Err(_), _) => return Err(invalid(".mode", "unknown mode".to_owned())),
    };
    Ok(MountSpec { source, target, mode })
}

pub fn mount_to_wire(mount: MountSpec) -> v1::Mount {
    use v1::mount::Source;
    v1::Mount {
        source: Some(match mount.source {
            MountSource::Room(path) => Source::RoomPath(path),
            MountSource::Project(path) => Source::ProjectPath(path),
            MountSource::Image { reference, subpath } => {
                Source::Image(v1::ImageSource { reference: reference.to_string(), subpath })
            }
            MountSource::Pack(id) => Source::PackId(id),
            MountSource::EmptyDir => Source::EmptyDir(v1::EmptyDirSource {}),
        }),
        target: mount.target.to_string(),
        mode: match mount.mode {
            MountMode::ReadOnly => v1::MountMode::ReadOnly,
            MountMode::ReadWrite => v1::MountMode::ReadWrite,
        }
        .into(),
    }
}
