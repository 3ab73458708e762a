//! Classification of mount failures: a problem of the machine may pass and is retried; a wrong request is permanent.

use std::fmt::Display;
use std::io;

use rustix::io::Errno;

use crate::context::{ContextError, LayerError, StorageError};
use crate::deploy::port::{MountFault, MountFaultKind};
use crate::image::ImageError;
use crate::model::MountTarget;
use crate::model::fault::ErrorCode;

pub(super) fn permanent(target: &impl Display, code: ErrorCode, reason: impl Into<String>) -> MountFault {
    new(target, code, reason, MountFaultKind::Permanent)
}

fn new(
    target: &impl Display,
    code: ErrorCode,
    reason: impl Into<String>,
    kind: MountFaultKind,
) -> MountFault {
    MountFault { target: target.to_string(), code, reason: reason.into(), kind }
}

/// Returns the fault for a mount that the daemon's shutdown interrupts. The next run of the daemon retries the mount.
pub(super) fn ending() -> MountFault {
    new(&"/", ErrorCode::Draining, "the daemon is ending", MountFaultKind::Unavailable)
}

pub(super) fn of_io(target: &impl Display, error: &io::Error) -> MountFault {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
        _ => ErrorCode::MountFailed,
    };
    new(target, code, error.to_string(), kind_of_io(error))
}

pub(super) fn of_storage(target: &MountTarget, storage: &str, error: &StorageError) -> MountFault {
    let code = match error {
        StorageError::NotFound { .. } => ErrorCode::MountSourceMissing,
        StorageError::Escapes { .. } | StorageError::LinkLoop { .. } => ErrorCode::MountSourceOutsideStorage,
        StorageError::IsLink { .. } => ErrorCode::MountSourceIsLink,
        StorageError::NoSpace { .. } => ErrorCode::NoSpace,
        _ => ErrorCode::MountSourceUnusable,
    };
    new(target, code, format!("{storage} storage: {error}"), kind_of_storage(error))
}

pub(super) fn of_image(target: &MountTarget, error: &ImageError) -> MountFault {
    let kind = match error {
        ImageError::Read { source, .. } => kind_of_io(source),
        ImageError::Catalog(_) => MountFaultKind::Transient,
        ImageError::Ending => MountFaultKind::Unavailable,
        _ => MountFaultKind::Permanent,
    };
    new(target, error.code(), error.to_string(), kind)
}

pub(super) fn of_context(target: &MountTarget, error: &ContextError) -> MountFault {
    let (code, reason) = match error {
        ContextError::SubpathNotFound { subpath, .. } => {
            (ErrorCode::MountSourceMissing, format!("`{subpath}` is not in the image"))
        }
        error => (error.code(), error.to_string()),
    };
    let kind = match error {
        ContextError::Source { source, .. } => kind_of_storage(source),
        ContextError::Layer { source: LayerError::Io(source), .. } | ContextError::Io { source, .. } => {
            kind_of_io(source)
        }
        ContextError::Changed { .. } => MountFaultKind::Transient,
        ContextError::ShuttingDown => MountFaultKind::Unavailable,
        _ => MountFaultKind::Permanent,
    };
    new(target, code, reason, kind)
}

fn kind_of_storage(error: &StorageError) -> MountFaultKind {
    match error {
        StorageError::Io { source, .. } => kind_of_io(source),
        StorageError::Changed { .. } => MountFaultKind::Transient,
        _ => MountFaultKind::Permanent,
    }
}

/// Classifies an I/O error. An error that is not known to be temporary is permanent, because the kernel would refuse
/// the same mount again.
fn kind_of_io(error: &io::Error) -> MountFaultKind {
    match Errno::from_io_error(error) {
        Some(
            Errno::NOTCONN
            | Errno::STALE
            | Errno::TIMEDOUT
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::CONNREFUSED
            | Errno::CONNRESET
            | Errno::CONNABORTED
            | Errno::SHUTDOWN
            | Errno::REMOTEIO,
        ) => MountFaultKind::Unavailable,
        Some(
            Errno::IO
            | Errno::AGAIN
            | Errno::INTR
            | Errno::BUSY
            | Errno::NOMEM
            | Errno::MFILE
            | Errno::NFILE
            | Errno::NOBUFS
            | Errno::NOLCK,
        ) => MountFaultKind::Transient,
        None if error.kind() == io::ErrorKind::ResourceBusy => MountFaultKind::Transient,
        _ => MountFaultKind::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_of_the_machine_is_tried_again_and_what_was_asked_for_is_not() {
        let io = |errno: Errno| io::Error::from(errno);
        for (errno, kind) in [
            (Errno::IO, MountFaultKind::Transient),
            (Errno::NFILE, MountFaultKind::Transient),
            (Errno::STALE, MountFaultKind::Unavailable),
            (Errno::NOTCONN, MountFaultKind::Unavailable),
            (Errno::NOENT, MountFaultKind::Permanent),
            (Errno::PERM, MountFaultKind::Permanent),
            (Errno::NOSPC, MountFaultKind::Permanent),
        ] {
            assert_eq!(of_io(&"/a", &io(errno)).kind, kind, "{errno}");
            let target: MountTarget = "/a".parse().unwrap();
            let storage = StorageError::Io { path: "a".into(), source: io(errno) };
            assert_eq!(of_storage(&target, "room", &storage).kind, kind, "{errno}");
            let layer = ContextError::Layer {
                digest: crate::model::Digest::from_sha256([1; 32]),
                source: LayerError::Io(io(errno)),
            };
            assert_eq!(of_context(&target, &layer).kind, kind, "{errno}");
            let image =
                ImageError::Read { digest: crate::model::Digest::from_sha256([1; 32]), source: io(errno) };
            assert_eq!(of_image(&target, &image).kind, kind, "{errno}");
        }
        assert_eq!(of_io(&"/a", &io::ErrorKind::ResourceBusy.into()).kind, MountFaultKind::Transient);
        assert_eq!(of_io(&"/a", &io::Error::other("x")).kind, MountFaultKind::Permanent);
        assert_eq!(ending().kind, MountFaultKind::Unavailable);
    }

    #[test]
    fn a_source_that_is_missing_or_leads_out_is_not_tried_again() {
        let target: MountTarget = "/a".parse().unwrap();
        for error in [StorageError::NotFound { path: "a".into() }, StorageError::Escapes { path: "a".into() }]
        {
            assert_eq!(of_storage(&target, "room", &error).kind, MountFaultKind::Permanent, "{error}");
        }
        let error = StorageError::Changed { path: "a".into() };
        assert_eq!(of_storage(&target, "room", &error).kind, MountFaultKind::Transient);
    }
}
