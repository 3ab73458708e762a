//! Conversion of mounts to their wire form. The opposite direction is in the daemon, which validates what it
//! receives.

use crate::v1::mount::Source;
use crate::v1::{EmptyDirSource, FileSource, ImageSource, Mount, MountMode};
use crate::value::{BuildMountSource, MountAccess, MountSpec, Reference, ServiceMountSource};

impl From<BuildMountSource> for Source {
    fn from(source: BuildMountSource) -> Self {
        match source {
            BuildMountSource::Room(path) => Self::RoomPath(path),
            BuildMountSource::Project(path) => Self::ProjectPath(path),
            BuildMountSource::Image { reference, subpath } => image(&reference, subpath),
            BuildMountSource::Pack(id) => Self::PackId(id),
        }
    }
}

impl From<ServiceMountSource> for Source {
    fn from(source: ServiceMountSource) -> Self {
        match source {
            ServiceMountSource::Room(path) => Self::RoomPath(path),
            ServiceMountSource::Project(path) => Self::ProjectPath(path),
            ServiceMountSource::Image { reference, subpath } => image(&reference, subpath),
            ServiceMountSource::EmptyDir => Self::EmptyDir(EmptyDirSource {}),
            ServiceMountSource::File(text) => Self::File(FileSource { text }),
        }
    }
}

fn image(reference: &Reference, subpath: String) -> Source {
    Source::Image(ImageSource { reference: reference.to_string(), subpath })
}

impl<S: Into<Source>> From<MountSpec<S>> for Mount {
    fn from(mount: MountSpec<S>) -> Self {
        let mode = match mount.mode {
            MountAccess::ReadOnly => MountMode::ReadOnly,
            MountAccess::ReadWrite => MountMode::ReadWrite,
        };
        Self {
            source: Some(mount.source.into()),
            target: mount.target.to_string(),
            mode: mode.into(),
            create: mount.create,
        }
    }
}
