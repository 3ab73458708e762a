//! Converts the mounts of a manifest.

use std::collections::BTreeSet;

use hearth_proto::v1::{EmptyDirSource, FileSource, ImageSource, Mount, MountMode, mount::Source};
use hearth_proto::value::{MountTarget, Reference, storage_path};

use super::super::{EmptyDirMount, ImageMount, InlineFile, ManifestStorage, RoomMount, StorageMount};
use super::{FieldError, field_error};

pub(super) fn mounts(storage: ManifestStorage) -> Result<Vec<Mount>, FieldError> {
    const FIELD: &str = "container.storage";
    let mut seen = BTreeSet::new();
    let mut mounts = Vec::new();
    let mut add = |kind: &str, path: &str, read_only: Option<bool>, create: bool, source| {
        let target =
            path.parse::<MountTarget>().map_err(|error| field_error(format!("{FIELD}.{kind}"), &error))?;
        if !seen.insert(target.clone()) {
            return Err(field_error(
                format!("{FIELD}.{kind}"),
                &format!("`{target}` is used twice; each target can be mounted once"),
            ));
        }
        let mode = match read_only {
            None => MountMode::Unspecified,
            Some(true) => MountMode::ReadOnly,
            Some(false) => MountMode::ReadWrite,
        };
        mounts.push(Mount { source: Some(source), target: target.to_string(), mode: mode.into(), create });
        Ok(())
    };
    let below = |kind: &str, subpath: Option<String>| {
        storage_path(&subpath.unwrap_or_default())
            .map_err(|error| field_error(format!("{FIELD}.{kind}"), &error))
    };
    for RoomMount { path, subpath, read_only, create } in storage.room {
        add("room", &path, read_only, create, Source::RoomPath(below("room", subpath)?))?;
    }
    for StorageMount { path, subpath, read_only } in storage.project {
        add("project", &path, read_only, false, Source::ProjectPath(below("project", subpath)?))?;
    }
    for ImageMount { image, path, subpath, read_only } in storage.images {
        let reference =
            image.parse::<Reference>().map_err(|error| field_error(format!("{FIELD}.images"), &error))?;
        let source = ImageSource { reference: reference.to_string(), subpath: below("images", subpath)? };
        add("images", &path, read_only, false, Source::Image(source))?;
    }
    for InlineFile { path, text, read_only } in storage.files {
        add("files", &path, read_only, false, Source::File(FileSource { text }))?;
    }
    for EmptyDirMount { path, read_only } in storage.empty_dirs {
        add("empty_dirs", &path, read_only, false, Source::EmptyDir(EmptyDirSource {}))?;
    }
    Ok(mounts)
}

pub(super) fn storage(mounts: &[Mount]) -> ManifestStorage {
    let mut storage = ManifestStorage::default();
    for mount in mounts {
        let path = mount.target.clone();
        let read_only = match mount.mode() {
            MountMode::Unspecified => None,
            MountMode::ReadOnly => Some(true),
            MountMode::ReadWrite => Some(false),
        };
        let part = |subpath: &String| Some(subpath.clone()).filter(|subpath| !subpath.is_empty());
        match &mount.source {
            Some(Source::RoomPath(subpath)) => {
                let create = mount.create;
                storage.room.push(RoomMount { path, subpath: part(subpath), read_only, create });
            }
            Some(Source::ProjectPath(subpath)) => {
                storage.project.push(StorageMount { path, subpath: part(subpath), read_only });
            }
            Some(Source::Image(ImageSource { reference, subpath })) => {
                let image = reference.clone();
                storage.images.push(ImageMount { image, path, subpath: part(subpath), read_only });
            }
            Some(Source::File(FileSource { text })) => {
                storage.files.push(InlineFile { path, text: text.clone(), read_only });
            }
            Some(Source::EmptyDir(_)) => storage.empty_dirs.push(EmptyDirMount { path, read_only }),
            // Services have no pack mounts.
            Some(Source::PackId(_)) | None => {}
        }
    }
    storage
}
