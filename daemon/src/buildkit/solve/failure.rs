//! Derives the fault of a failed build from BuildKit's status.
//!
//! The classification uses the typed details where BuildKit gives any (exit code, step, location in the Dockerfile),
//! then the status code, then the fixed parts of BuildKit's own messages.

use std::time::Instant;

use tonic::{Code, Status};

use super::details::{self, ErrorDetails};
use super::policy;
use super::progress::SolveProgress;
use super::step_hints::step_hint;
use crate::model::fault::{ErrorCode, Fault, FaultStage};

pub(super) fn no_digest() -> Fault {
    Fault::new(
        FaultStage::Export,
        ErrorCode::NoDigest,
        "BuildKit finished the build and named no image digest",
    )
}

/// Returns the start time of the failed step.
pub(super) fn failed_step_start(status: &Status, progress: &SolveProgress) -> Option<Instant> {
    progress.started_at(details::decode(status.details()).vertex.as_deref()?)
}

/// Reports whether another step ran, or may have run, a command at the same time as the failed one.
pub(super) fn ran_beside_another(status: &Status, progress: &SolveProgress) -> bool {
    let vertex = details::decode(status.details()).vertex;
    vertex.is_none_or(|vertex| progress.ran_beside_another(&vertex))
}

/// Returns the fault. `out_of_memory` tells whether steps of this builder ran out of memory while the build ran.
pub(in crate::buildkit) fn fault_of_status(
    status: &Status,
    progress: &SolveProgress,
    out_of_memory: bool,
) -> Fault {
    let details = details::decode(status.details());
    let message = message(status);
    let mut fault = classify(status.code(), &message, &details, out_of_memory);
    if let Some(source) = &details.source {
        fault.dockerfile = progress.dockerfile_range(&source.dockerfile, source.lines);
    }
    if let Some((name, tail)) =
        details.vertex.as_deref().and_then(|vertex| progress.step_name_and_tail(vertex))
    {
        fault.step = Some(name);
        if fault.code == ErrorCode::StepFailed
            && let Some(hint) = step_hint(&tail)
        {
            fault = fault.hint(hint);
        }
        fault.log_tail = tail;
    }
    fault
}

/// Returns the message without the prefixes that only BuildKit's own code needs.
fn message(status: &Status) -> String {
    let mut text = status.message();
    while let Some(rest) = text.strip_prefix("failed to solve: ").or_else(|| text.strip_prefix("rpc error: "))
    {
        text = rest;
    }
    text.to_owned()
}

/// Fault for a source that the daemon did not find in the Dockerfile, and so did not fetch.
fn unresolved_source_fault(source: &str) -> Fault {
    let code =
        if source.contains("://") { ErrorCode::SourceNotResolved } else { ErrorCode::ImageNotResolved };
    let message =
        format!("`{source}` was not fetched for this build: how the Dockerfile names it is not understood");
    Fault::new(FaultStage::Solve, code, message)
}

fn classify(code: Code, message: &str, details: &ErrorDetails, out_of_memory: bool) -> Fault {
    let has = |text: &str| message.contains(text);
    if let Some(exit) = details.exit_code {
        return step_failed(exit, message, out_of_memory);
    }
    if let Some(fault) = context_file(message) {
        return fault;
    }
    if let Some(source) = policy::denied_source(message) {
        return unresolved_source_fault(source);
    }
    if code == Code::ResourceExhausted || has("no space left on device") {
        return Fault::new(FaultStage::Solve, ErrorCode::NoSpace, message)
            .hint("the builder's disk is full; free space or lower the cache quota")
            .retryable();
    }
    if has("dockerfile parse error") || has("unknown instruction") || has("file with no instructions") {
        return Fault::new(FaultStage::Solve, ErrorCode::DockerfileParseError, message);
    }
    if has("target stage") && has("could not be found") {
        return Fault::new(FaultStage::Solve, ErrorCode::UnknownStage, message);
    }
    if has("network.host is not allowed") {
        return Fault::new(
            FaultStage::Solve,
            ErrorCode::HostNetworkRefused,
            "`RUN --network=host`: no step has the machine's network",
        );
    }
    if has("CNI setup error") {
        return Fault::new(FaultStage::Solve, ErrorCode::StepNetworkUnavailable, message);
    }
    if has("failed to calculate checksum") && has("not found") {
        return Fault::new(FaultStage::Solve, ErrorCode::CopySourceMissing, copy_source(message));
    }
    if has("failed to push") || has("error from registry") && has("push") {
        return Fault::new(FaultStage::Export, ErrorCode::PushFailed, message).retryable();
    }
    if has("git stderr:") {
        let fault = Fault::new(FaultStage::Solve, ErrorCode::RepositoryNotFetched, message);
        // The daemon's git proxy answers 502 for a host that does not respond.
        let away = has("error: 502") || has("HTTP code 502");
        return if away { fault.retryable() } else { fault };
    }
    if has("failed to resolve source metadata")
        || has("failed to load cache key")
        || has("failed to copy: httpReadSeeker")
    {
        return base_image(code, message);
    }
    if code == Code::DeadlineExceeded || has("no active session") {
        return Fault::new(FaultStage::Solve, ErrorCode::BuilderTimeout, message);
    }
    if details.source.is_some() && details.vertex.is_none() {
        return Fault::new(FaultStage::Solve, ErrorCode::DockerfileError, message);
    }
    Fault::new(FaultStage::Solve, ErrorCode::SolveFailed, message)
}

/// Extracts an error of the daemon's own side of a transfer, which BuildKit returns inside its own message.
fn context_file(message: &str) -> Option<Fault> {
    let from = |mark: &str| message.find(mark).map(|at| &message[at..]);
    if let Some(text) = from("context selection: `") {
        return Some(Fault::new(FaultStage::Context, ErrorCode::ContextSelection, text));
    }
    let text = from("context file `")?;
    let changed = ["changed while it was read", "it shrank while", "it grew while"];
    Some(if changed.iter().any(|words| text.contains(words)) {
        Fault::new(FaultStage::Context, ErrorCode::ContextChanged, text)
    } else {
        Fault::new(FaultStage::Context, ErrorCode::ContextUnreadable, text)
            .hint("make the file readable for the daemon, or leave it out with the ignore file")
    })
}

fn step_failed(exit: u32, message: &str, out_of_memory: bool) -> Fault {
    // BuildKit uses the kernel's count of OOM kills of the step's control group, where the kernel keeps one. The count
    // of the builder covers all of its steps, so a killed step is assumed to be one of the OOM kills.
    let mentions_memory = message.contains("cannot allocate memory") || message.contains("out of memory");
    let mut fault = if mentions_memory || (out_of_memory && exit == 137) {
        Fault::new(FaultStage::Solve, ErrorCode::OutOfMemory, message)
            .hint("give the steps of builders more memory (`step_memory_bytes` of the daemon), or let the step use less")
    } else {
        let next = match exit {
            126 => "the program of this step cannot be executed",
            127 => "a program of this step was not found in its image",
            137 => "the step was killed; if memory ran out, let it use less",
            _ if out_of_memory => {
                "processes of this builder's steps were killed because memory ran out; see the last lines of the step's log"
            }
            _ => "see the last lines of the step's log",
        };
        Fault::new(FaultStage::Solve, ErrorCode::StepFailed, message).hint(next)
    };
    fault.exit_code = i32::try_from(exit).ok();
    fault
}

/// Rewrites `... failed to calculate checksum of ref a::b: "/nope": not found` as a sentence about the path.
fn copy_source(message: &str) -> String {
    match message.rsplit_once(": not found").and_then(|(start, _)| start.rsplit_once(": ")) {
        Some((_, path)) if path.starts_with('"') => {
            format!("{path} is not in the build context or stage it is copied from")
        }
        _ => message.to_owned(),
    }
}

fn base_image(code: Code, message: &str) -> Fault {
    let has = |text: &str| message.contains(text);
    let denied = [
        "401 Unauthorized",
        "403 Forbidden",
        "authorization failed",
        "pull access denied",
        "insufficient_scope",
    ];
    if denied.iter().any(|text| has(text)) || matches!(code, Code::PermissionDenied | Code::Unauthenticated) {
        return Fault::new(FaultStage::Solve, ErrorCode::BaseImageDenied, message);
    }
    if code == Code::NotFound || message.ends_with(": not found") {
        return Fault::new(FaultStage::Solve, ErrorCode::BaseImageNotFound, message);
    }
    Fault::new(FaultStage::Solve, ErrorCode::RegistryUnreachable, message)
        .hint("the registry of the image cannot be reached from the builder; check its name and the network")
        .retryable()
}

#[cfg(test)]
mod tests;
