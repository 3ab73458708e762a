//! Conversion and validation of mounts of builds, contexts and services.

use std::collections::BTreeSet;

use hearth_proto::v1::{self, mount::Source};
use hearth_proto::value::{DEFAULT_TARGET, MountSpec, storage_path};

use super::super::error::ApiError;
use crate::model::fault::ErrorCode;
use crate::model::id::PackId;
use crate::model::{
    BuildMount, BuildMountSource, MountAccess, MountSource, Reference, ServiceMount, ServiceMountSource,
};

/// Far above practical use.
const MAX_MOUNTS: usize = 64;
/// Maximum sizes in bytes of a file that is given by its text, and of all such files of a service: every
/// revision of the service stores them.
const MAX_TEXT: usize = 64 << 10;
const MAX_TEXTS: usize = 256 << 10;

/// Converts the mounts of a build or a context; `needs` is the message of the error when there are none. A source
/// without a target is mounted at `/context`.
pub(super) fn build_mounts(
    wire: Vec<v1::Mount>,
    field: &str,
    needs: &'static str,
) -> Result<Vec<BuildMount>, ApiError> {
    if wire.is_empty() {
        return Err(ApiError::invalid(field, ErrorCode::NoMounts, needs));
    }
    mounts(wire, field, Some(DEFAULT_TARGET), build_source)
}

/// Converts the mounts of a service: any number, each with its target.
pub(super) fn service_mounts(wire: Vec<v1::Mount>, field: &str) -> Result<Vec<ServiceMount>, ApiError> {
    let mounts = mounts(wire, field, None, service_source)?;
    let texts: usize = mounts.iter().map(|mount| text_of(&mount.source).map_or(0, str::len)).sum();
    if texts > MAX_TEXTS {
        let message = format!("the texts of files have {texts} bytes; at most {MAX_TEXTS} together");
        return Err(ApiError::invalid(field, ErrorCode::TooLarge, message));
    }
    Ok(mounts)
}

/// Converts mounts with distinct targets. `field` is the name of the list in errors.
fn mounts<S: MountSource>(
    wire: Vec<v1::Mount>,
    field: &str,
    default_target: Option<&str>,
    source: impl Fn(Source, &str) -> Result<S, ApiError>,
) -> Result<Vec<MountSpec<S>>, ApiError> {
    if wire.len() > MAX_MOUNTS {
        return Err(ApiError::invalid(field, ErrorCode::TooMany, format!("at most {MAX_MOUNTS} mounts")));
    }
    let mut targets = BTreeSet::new();
    let mut mounts = Vec::with_capacity(wire.len());
    for (i, mount) in wire.into_iter().enumerate() {
        let mount = self::mount(mount, &format!("{field}[{i}]"), default_target, &source)?;
        if !targets.insert(mount.target.clone()) {
            return Err(ApiError::invalid(
                format!("{field}[{i}].target"),
                ErrorCode::DuplicateTarget,
                format!("mount target `{}` is used twice; each target can be mounted once", mount.target),
            ));
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

fn text_of(source: &ServiceMountSource) -> Option<&str> {
    match source {
        ServiceMountSource::File(text) => Some(text),
        _ => None,
    }
}

fn mount<S: MountSource>(
    wire: v1::Mount,
    field: &str,
    default_target: Option<&str>,
    source: impl Fn(Source, &str) -> Result<S, ApiError>,
) -> Result<MountSpec<S>, ApiError> {
    let invalid = |part: &str, message: String| invalid(field, part, message);
    let Some(given) = wire.source else { return Err(invalid("", "the mount has no source".to_owned())) };
    let source = source(given, field)?;
    let target = match (wire.target.as_str(), default_target) {
        ("", None) => return Err(invalid(".target", "the mount has no target".to_owned())),
        ("", Some(target)) | (target, _) => target,
    };
    let target = target.parse().map_err(|error| invalid(".target", format!("{error}")))?;
    let mode = match v1::MountMode::try_from(wire.mode) {
        Ok(v1::MountMode::ReadOnly) => MountAccess::ReadOnly,
        Ok(v1::MountMode::ReadWrite) => MountAccess::ReadWrite,
        Ok(v1::MountMode::Unspecified) => source.default_mode(),
        Err(_) => return Err(invalid(".mode", "unknown mode".to_owned())),
    };
    if wire.create && !source.can_be_made() {
        return Err(invalid(".create", "only a room path of a service can be made".to_owned()));
    }
    Ok(MountSpec { source, target, mode, create: wire.create })
}

fn build_source(wire: Source, field: &str) -> Result<BuildMountSource, ApiError> {
    Ok(match wire {
        Source::RoomPath(text) => BuildMountSource::Room(source_path(&text, field, ".room_path")?),
        Source::ProjectPath(text) => BuildMountSource::Project(source_path(&text, field, ".project_path")?),
        Source::Image(image) => {
            let (reference, subpath) = source_image(&image, field)?;
            BuildMountSource::Image { reference, subpath }
        }
        Source::PackId(id) => {
            let id: PackId =
                id.parse().map_err(|error| invalid(field, ".pack_id", format!("pack `{id}`: {error}")))?;
            BuildMountSource::Pack(id.to_string())
        }
        Source::EmptyDir(_) => {
            return Err(invalid(field, ".empty_dir", "an empty directory is for services only".to_owned()));
        }
        Source::File(_) => {
            return Err(invalid(field, ".file", "a file given by its text is for services only".to_owned()));
        }
    })
}

fn service_source(wire: Source, field: &str) -> Result<ServiceMountSource, ApiError> {
    Ok(match wire {
        Source::RoomPath(text) => ServiceMountSource::Room(source_path(&text, field, ".room_path")?),
        Source::ProjectPath(text) => ServiceMountSource::Project(source_path(&text, field, ".project_path")?),
        Source::Image(image) => {
            let (reference, subpath) = source_image(&image, field)?;
            ServiceMountSource::Image { reference, subpath }
        }
        Source::PackId(_) => {
            return Err(invalid(field, ".pack_id", "a pack cannot be mounted into a service".to_owned()));
        }
        Source::EmptyDir(_) => ServiceMountSource::EmptyDir,
        Source::File(v1::FileSource { text }) if text.len() > MAX_TEXT => {
            let message = format!("the text of a file has {} bytes; at most {MAX_TEXT}", text.len());
            return Err(ApiError::invalid(format!("{field}.file.text"), ErrorCode::TooLarge, message));
        }
        Source::File(v1::FileSource { text }) => ServiceMountSource::File(text),
    })
}

fn source_path(text: &str, field: &str, part: &str) -> Result<String, ApiError> {
    storage_path(text).map_err(|error| invalid(field, part, format!("mount source {error}")))
}

fn source_image(image: &v1::ImageSource, field: &str) -> Result<(Reference, String), ApiError> {
    let reference = image.reference.parse();
    let reference =
        reference.map_err(|error| invalid(field, ".image.reference", format!("mount image {error}")))?;
    Ok((reference, source_path(&image.subpath, field, ".image.subpath")?))
}

fn invalid(field: &str, part: &str, message: String) -> ApiError {
    ApiError::invalid(format!("{field}{part}"), ErrorCode::InvalidMount, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_texts(lengths: &[usize], mode: v1::MountMode) -> Result<Vec<ServiceMount>, ApiError> {
        let file = |(number, length): (usize, &usize)| {
            let file = v1::FileSource { text: "x".repeat(*length) };
            let source = Some(v1::mount::Source::File(file));
            v1::Mount { source, target: format!("/etc/{number}"), mode: mode.into(), create: false }
        };
        let wire = lengths.iter().enumerate().map(file).collect();
        service_mounts(wire, "spec.mounts")
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
