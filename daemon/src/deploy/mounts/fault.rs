use std::fmt::Display;
use std::io;

use crate::context::ContextError;
use crate::context::storage::StorageError;
use crate::deploy::port::MountFault;
use crate::image::ImageError;
use crate::model::MountTarget;

pub(super) fn new(target: &impl Display, code: &'static str, reason: impl Into<String>) -> MountFault {
    MountFault { target: target.to_string(), code, reason: reason.into() }
}

pub(super) fn ending() -> MountFault {
    new(&"/", "draining", "the daemon is ending")
}

pub(super) fn of_io(target: &impl Display, error: &io::Error) -> MountFault {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "no_space",
        _ => "mount_failed",
    };
    new(target, code, error.to_string())
}

pub(super) fn of_storage(target: &MountTarget, storage: &str, error: &StorageError) -> MountFault {
    let code = match error {
        StorageError::NotFound { .. } => "mount_source_missing",
        StorageError::Escapes { .. } | StorageError::LinkLoop { .. } => "mount_source_outside_storage",
        StorageError::NoSpace { .. } => "no_space",
        _ => "mount_source_unusable",
    };
    new(target, code, format!("{storage} storage: {error}"))
}

pub(super) fn of_image(target: &MountTarget, error: &ImageError) -> MountFault {
    new(target, error.code(), error.to_string())
}

pub(super) fn of_context(target: &MountTarget, error: &ContextError) -> MountFault {
    let (code, reason) = match error {
        ContextError::SubpathNotFound { subpath, .. } => {
            ("mount_source_missing", format!("`{subpath}` is not in the image"))
        }
        error => (error.code(), error.to_string()),
    };
    new(target, code, reason)
}
