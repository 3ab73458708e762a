//! Conversion and validation of mounts of builds, contexts and services.

use std::collections::BTreeSet;

use hearth_proto::v1;
use hearth_proto::value::{DEFAULT_TARGET, storage_path};

use super::super::error::ApiError;
use crate::model::fault::ErrorCode;
use crate::model::id::PackId;
use crate::model::{MountAccess, MountSource, MountSpec};

/// Far above practical use.
const MAX_MOUNTS: usize = 64;
/// Maximum sizes in bytes of a file that is given by its text, and of all such files of a service: every
/// revision of the service stores them.
const MAX_TEXT: usize = 64 << 10;
const MAX_TEXTS: usize = 256 << 10;

/// Purpose of mounts, which decides the allowed kinds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MountUse {
    /// Requires at least one mount; a single source without a target is mounted at `/context`.
    Build { needs: &'static str },
    /// Any number of mounts, each with its target, and no packs.
    Service,
}

/// Converts mounts. `field` is the name of the list in errors.
pub(super) fn mounts(wire: Vec<v1::Mount>, field: &str, used: MountUse) -> Result<Vec<MountSpec>, ApiError> {
    if let MountUse::Build { needs } = used
        && wire.is_empty()
    {
        return Err(ApiError::invalid(field, ErrorCode::NoMounts, needs));
    }
    if wire.len() > MAX_MOUNTS {
        return Err(ApiError::invalid(field, ErrorCode::TooMany, format!("at most {MAX_MOUNTS} mounts")));
    }
    let mut targets = BTreeSet::new();
    let mut mounts = Vec::with_capacity(wire.len());
    for (i, mount) in wire.into_iter().enumerate() {
        let mount = self::mount(mount, &format!("{field}[{i}]"), used)?;
        if !targets.insert(mount.target.clone()) {
            return Err(ApiError::invalid(
                format!("{field}[{i}].target"),
                ErrorCode::DuplicateTarget,
                format!("mount target `{}` is used twice; each target can be mounted once", mount.target),
            ));
        }
        mounts.push(mount);
    }
    let texts: usize = mounts.iter().map(|mount| text_of(&mount.source).map_or(0, str::len)).sum();
    if texts > MAX_TEXTS {
        let message = format!("the texts of files have {texts} bytes; at most {MAX_TEXTS} together");
        return Err(ApiError::invalid(field, ErrorCode::TooLarge, message).hint(FILES_HINT));
    }
    Ok(mounts)
}

const FILES_HINT: &str = "put large files in room storage, and mount them from there";

fn text_of(source: &MountSource) -> Option<&str> {
    match source {
        MountSource::File(text) => Some(text),
        _ => None,
    }
}

fn mount(wire: v1::Mount, field: &str, used: MountUse) -> Result<MountSpec, ApiError> {
    use v1::mount::Source;
    let invalid = |part: &str, message: String| {
        ApiError::invalid(format!("{field}{part}"), ErrorCode::InvalidMount, message)
    };
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
        Some(Source::File(_)) if !of_service => {
            return Err(invalid(".file", "a file given by its text is for services only".to_owned()));
        }
        Some(Source::File(v1::FileSource { text })) if text.len() > MAX_TEXT => {
            let message = format!("the text of a file has {} bytes; at most {MAX_TEXT}", text.len());
            return Err(ApiError::invalid(format!("{field}.file.text"), ErrorCode::TooLarge, message)
                .hint(FILES_HINT));
        }
        Some(Source::File(v1::FileSource { text })) => MountSource::File(text),
    };
    let target = match wire.target.as_str() {
        "" if of_service => return Err(invalid(".target", "the mount has no target".to_owned())),
        "" => DEFAULT_TARGET,
        target => target,
    };
    let target = target.parse().map_err(|error| invalid(".target", format!("{error}")))?;
    let mode = match (v1::MountMode::try_from(wire.mode), &source) {
        (Ok(v1::MountMode::ReadOnly), _) => MountAccess::ReadOnly,
        (Ok(v1::MountMode::ReadWrite), _)
        | (Ok(v1::MountMode::Unspecified), MountSource::Room(_) | MountSource::EmptyDir) => {
            MountAccess::ReadWrite
        }
        (Ok(v1::MountMode::Unspecified), _) => MountAccess::ReadOnly,
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
            MountSource::File(text) => Source::File(v1::FileSource { text }),
        }),
        target: mount.target.to_string(),
        mode: match mount.mode {
            MountAccess::ReadOnly => v1::MountMode::ReadOnly,
            MountAccess::ReadWrite => v1::MountMode::ReadWrite,
        }
        .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_texts(lengths: &[usize], mode: v1::MountMode) -> Result<Vec<MountSpec>, ApiError> {
        let file = |(number, length): (usize, &usize)| {
            let file = v1::FileSource { text: "x".repeat(*length) };
            let source = Some(v1::mount::Source::File(file));
            v1::Mount { source, target: format!("/etc/{number}"), mode: mode.into() }
        };
        let wire = lengths.iter().enumerate().map(file).collect();
        mounts(wire, "spec.mounts", MountUse::Service)
    }

    #[test]
    fn files_that_are_given_by_their_text_are_small_and_read_only_unless_they_say_otherwise() {
        use v1::MountMode::{ReadWrite, Unspecified};
        let taken = of_texts(&[MAX_TEXT; 4], Unspecified).unwrap();
        assert!(taken.iter().all(|mount| mount.mode == MountAccess::ReadOnly));
        assert_eq!(text_of(&taken[3].source).map(str::len), Some(MAX_TEXT));
        assert_eq!(of_texts(&[1], ReadWrite).unwrap()[0].mode, MountAccess::ReadWrite);
        let refused = |lengths: &[usize]| tonic::Status::from(of_texts(lengths, Unspecified).unwrap_err());
        let one = refused(&[1, MAX_TEXT + 1]);
        assert!(one.message().contains("has 65537 bytes; at most 65536"), "{one:?}");
        let all = refused(&[MAX_TEXT, MAX_TEXT, MAX_TEXT, MAX_TEXT, 1]);
        assert!(all.message().contains("have 262145 bytes; at most 262144 together"), "{all:?}");
    }
}
