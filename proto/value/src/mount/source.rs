//! Kinds of mount sources of builds and of services, with the grammar of their flags, their default modes, and what a
//! mount of each kind gives access to.

use super::{DEFAULT_TARGET, MountAccess, MountError, MountOptions, storage_path};
use crate::Reference;

/// Source of a mount of a build or of a context.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildMountSource {
    /// Path below room storage; empty means the whole storage.
    Room(String),
    /// Path below project storage; empty means the whole storage.
    Project(String),
    /// An image, or the part of it below `subpath`.
    Image { reference: Reference, subpath: String },
    /// A pack: a local path on a command line, on the wire the id that an upload returned.
    Pack(String),
}

/// Source of a mount of a service.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceMountSource {
    /// Path below room storage; empty means the whole storage.
    Room(String),
    /// Path below project storage; empty means the whole storage.
    Project(String),
    /// An image, or the part of it below `subpath`.
    Image { reference: Reference, subpath: String },
    /// A private directory of each instance, which starts with the image's files at the target.
    EmptyDir,
    /// A file with this text.
    File(String),
}

/// Origin of the files of a source, which determines the permission that a mount of it needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MountOrigin<'a> {
    /// A path of room or project storage.
    Storage(&'a str),
    Image(&'a Reference),
    /// A pack, which belongs to a caller.
    Pack(&'a str),
    /// The source reads nothing from outside the mount.
    Nothing,
}

pub trait MountSource {
    /// Returns the mode of a mount whose flag has no mode.
    fn default_mode(&self) -> MountAccess;
    fn origin(&self) -> MountOrigin<'_>;

    /// Reports whether a mount may ask for a missing source to be made.
    fn can_be_made(&self) -> bool {
        false
    }
}

impl MountSource for BuildMountSource {
    fn default_mode(&self) -> MountAccess {
        match self {
            Self::Room(_) => MountAccess::ReadWrite,
            Self::Project(_) | Self::Image { .. } | Self::Pack(_) => MountAccess::ReadOnly,
        }
    }

    fn origin(&self) -> MountOrigin<'_> {
        match self {
            Self::Room(path) | Self::Project(path) => MountOrigin::Storage(path),
            Self::Image { reference, .. } => MountOrigin::Image(reference),
            Self::Pack(id) => MountOrigin::Pack(id),
        }
    }
}

impl MountSource for ServiceMountSource {
    fn default_mode(&self) -> MountAccess {
        match self {
            Self::Room(_) | Self::EmptyDir => MountAccess::ReadWrite,
            Self::Project(_) | Self::Image { .. } | Self::File(_) => MountAccess::ReadOnly,
        }
    }

    fn origin(&self) -> MountOrigin<'_> {
        match self {
            Self::Room(path) | Self::Project(path) => MountOrigin::Storage(path),
            Self::Image { reference, .. } => MountOrigin::Image(reference),
            Self::EmptyDir | Self::File(_) => MountOrigin::Nothing,
        }
    }

    fn can_be_made(&self) -> bool {
        matches!(self, Self::Room(_))
    }
}

/// Kinds of mount flags, each with its grammar (contract, "Mounts").
pub trait MountKind: Copy {
    type Source: MountSource;
    /// Target of a mount whose flag has no target. `None` if the flag must have one.
    const DEFAULT_TARGET: Option<&'static str>;

    /// Returns the grammar of the flag, for error messages.
    fn grammar(self) -> &'static str;

    /// Reports whether the flag may end with a mode.
    fn has_mode(self) -> bool {
        true
    }

    /// Returns the character between source and target. `None` if the flag has no source.
    fn separator(self) -> Option<char>;

    /// Refuses options that this kind does not have. The error is the option.
    fn check_options(self, options: &MountOptions) -> Result<(), String>;

    /// Parses the source. `given` is the whole text, for error messages.
    fn source(self, given: &str, source: &str, options: &MountOptions) -> Result<Self::Source, MountError>;
}

/// Kinds of mount flags of builds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildMountKind {
    Room,
    Project,
    Image,
    Pack,
}

/// Kinds of mount flags of services.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceMountKind {
    Room,
    Project,
    Image,
    EmptyDir,
}

impl MountKind for BuildMountKind {
    type Source = BuildMountSource;
    const DEFAULT_TARGET: Option<&'static str> = Some(DEFAULT_TARGET);

    fn grammar(self) -> &'static str {
        match self {
            Self::Room | Self::Project => "<source>[:<mount>[:ro|rw]]",
            Self::Image => "<image>[=<mount>[:ro|rw]][,subpath=<path>]",
            Self::Pack => "<path>[:<mount>]",
        }
    }

    fn has_mode(self) -> bool {
        self != Self::Pack
    }

    fn separator(self) -> Option<char> {
        Some(if self == Self::Image { '=' } else { ':' })
    }

    fn check_options(self, options: &MountOptions) -> Result<(), String> {
        options.check(self == Self::Image, false)
    }

    fn source(self, given: &str, source: &str, options: &MountOptions) -> Result<Self::Source, MountError> {
        Ok(match self {
            Self::Room => BuildMountSource::Room(storage_path(source)?),
            Self::Project => BuildMountSource::Project(storage_path(source)?),
            Self::Pack if source.is_empty() => {
                return Err(MountError::Grammar { given: given.to_owned(), grammar: self.grammar() });
            }
            Self::Pack => BuildMountSource::Pack(source.to_owned()),
            Self::Image => {
                let (reference, subpath) = image_source(given, source, options)?;
                BuildMountSource::Image { reference, subpath }
            }
        })
    }
}

impl MountKind for ServiceMountKind {
    type Source = ServiceMountSource;
    const DEFAULT_TARGET: Option<&'static str> = None;

    fn grammar(self) -> &'static str {
        match self {
            Self::Room => "<source>:<mount>[:ro|rw][,create]",
            Self::Project => "<source>:<mount>[:ro|rw]",
            Self::Image => "<image>=<mount>[:ro|rw][,subpath=<path>]",
            Self::EmptyDir => "<mount>[:ro|rw]",
        }
    }

    fn separator(self) -> Option<char> {
        match self {
            Self::Room | Self::Project => Some(':'),
            Self::Image => Some('='),
            Self::EmptyDir => None,
        }
    }

    fn check_options(self, options: &MountOptions) -> Result<(), String> {
        options.check(self == Self::Image, self == Self::Room)
    }

    fn source(self, given: &str, source: &str, options: &MountOptions) -> Result<Self::Source, MountError> {
        Ok(match self {
            Self::Room => ServiceMountSource::Room(storage_path(source)?),
            Self::Project => ServiceMountSource::Project(storage_path(source)?),
            Self::EmptyDir => ServiceMountSource::EmptyDir,
            Self::Image => {
                let (reference, subpath) = image_source(given, source, options)?;
                ServiceMountSource::Image { reference, subpath }
            }
        })
    }
}

impl MountOptions {
    /// Refuses the options that a kind does not have. The error is the option.
    fn check(&self, has_subpath: bool, has_create: bool) -> Result<(), String> {
        match &self.subpath {
            Some(path) if !has_subpath => Err(format!("subpath={path}")),
            _ if self.create && !has_create => Err("create".to_owned()),
            _ => Ok(()),
        }
    }
}

fn image_source(given: &str, image: &str, options: &MountOptions) -> Result<(Reference, String), MountError> {
    let reference = image.parse().map_err(|source| MountError::Image { given: given.to_owned(), source })?;
    Ok((reference, storage_path(options.subpath.as_deref().unwrap_or_default())?))
}
