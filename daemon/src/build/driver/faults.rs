//! Faults of builds, other than those of their solves.

use crate::build::port::StoreError;
use crate::disk::is_disk_full;
use crate::model::MountTarget;
use crate::model::Reference;
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::image::VerifiedImage;

/// Reports whether a solve failed because its files changed after they were scanned.
pub(super) fn is_context_change(fault: &Fault) -> bool {
    matches!(fault.code.known(), Some(ErrorCode::ContextChanged | ErrorCode::ContextSelection))
}

/// Placeholder fault for a build that was stopped: the verdict recorded earlier says how the build ends.
pub(super) fn stopped_fault() -> Fault {
    Fault::new(FaultStage::Solve, ErrorCode::Stopped, "the build was stopped")
}

pub(in crate::build) fn interrupted_fault(why: &str) -> Fault {
    Fault::new(
        FaultStage::Solve,
        ErrorCode::Interrupted,
        format!("the daemon ended while the build was not done, {why}"),
    )
    .hint("submit the build again")
    .retryable()
}

pub(super) fn log_fault(error: &std::io::Error) -> Fault {
    let code = if is_disk_full(error) { ErrorCode::NoSpace } else { ErrorCode::LogUnwritable };
    Fault::new(FaultStage::Solve, code, format!("the build's log cannot be written: {error}"))
}

pub(super) fn store_fault(error: &StoreError) -> Fault {
    let code = if is_disk_full(&error.0) { ErrorCode::NoSpace } else { ErrorCode::StateUnavailable };
    Fault::new(FaultStage::Request, code, error.to_string())
}

pub(super) fn logged_log_fault(error: &std::io::Error) -> Fault {
    tracing::error!(%error, "failed to write a build log");
    log_fault(error)
}

/// Replaces the solver's own name of the Dockerfile by its path.
pub(super) fn with_dockerfile_path(mut fault: Fault, path: &MountTarget) -> Fault {
    if let Some(range) = &mut fault.dockerfile {
        range.path = path.clone();
    }
    fault
}

/// Adds to a push fault how to repeat only the push: the image is complete and kept for an hour.
pub(super) fn push_fault(mut fault: Fault, image: &VerifiedImage, targets: &[Reference]) -> Fault {
    let (repository, digest) = (&image.repository, image.manifest.digest);
    let again: Vec<String> =
        targets.iter().map(|target| format!("hearth images push {repository}@{digest} {target}")).collect();
    let kept = format!("the image is kept for an hour; push it again with: {}", again.join("; "));
    fault.message = format!("the image was built and could not be pushed: {}", fault.message);
    fault.hint = Some(fault.hint.map_or_else(|| kept.clone(), |hint| format!("{hint}; {kept}")));
    fault
}
