//! Context of a build: its files and its Dockerfile.
//!
//! Errors found here fail the build before anything is sent to BuildKit.

use super::super::dockerfile;
use super::super::presence;
use super::super::service::BuildRuntime;
use super::ContextPrefetch;
use super::network::network_fault;
use crate::context::port::ContextFiles;
use crate::model::MountTarget;
use crate::model::build::{BuildRecord, ContextIdentity};
use crate::model::fault::{DockerfileRange, Fault, FaultStage};
use crate::task;

/// Build argument that overrides a `# syntax=` line.
pub(super) const FRONTEND_ARGUMENT: &str = "BUILDKIT_SYNTAX";

/// Files of a build, and the results of the analysis of its Dockerfile.
pub(super) struct BuildContext {
    pub(super) files: ContextFiles,
    pub(super) identity: ContextIdentity,
    pub(super) dockerfile: MountTarget,
    /// Dockerfile as sent to the builder.
    pub(super) dockerfile_text: Vec<u8>,
}

impl BuildRuntime {
    /// Waits for the context prefetch and checks its result.
    pub(super) async fn prepared_context(
        &self,
        early: ContextPrefetch,
        record: &BuildRecord,
    ) -> Result<BuildContext, Fault> {
        let spec = &record.spec;
        let prepared = early.prepared().await?;
        let path = prepared.dockerfile_path().clone();
        let refused =
            |refused: dockerfile::FrontendRefused| frontend_fault(&refused, &path, prepared.dockerfile());
        let settled = dockerfile::settle_frontend(prepared.dockerfile().to_vec()).map_err(refused)?;
        if let Some(image) = spec.build_args.get(FRONTEND_ARGUMENT) {
            dockerfile::settle_frontend_argument(image).map_err(refused)?;
        }
        if let Some(fault) = network_fault(&settled, spec, &path) {
            return Err(fault);
        }
        let identity = prepared.identity();
        let copied = dockerfile::context_copies(&settled, &spec.build_args, spec.target.as_deref());
        let files = prepared.into_files(settled.clone());
        if let Some(fault) = find_missing_source(&files, copied, &path).await {
            return Err(fault);
        }
        Ok(BuildContext { files, identity, dockerfile: path, dockerfile_text: settled })
    }
}

/// Checks that the files that COPY and ADD name exist among the files that will be sent.
async fn find_missing_source(
    files: &ContextFiles,
    copied: Vec<dockerfile::ContextCopy>,
    path: &MountTarget,
) -> Option<Fault> {
    if copied.is_empty() {
        return None;
    }
    let (files, path) = (files.clone(), path.clone());
    let look = move || presence::missing_source_fault(&files, &copied, &path);
    task::blocking("build.presence", look).await.unwrap_or_else(|error| {
        // BuildKit reports missing files as well.
        tracing::error!(%error, "check for missing context files panicked");
        None
    })
}

fn frontend_fault(refused: &dockerfile::FrontendRefused, path: &MountTarget, dockerfile: &[u8]) -> Fault {
    let mut fault = Fault::new(FaultStage::Context, "frontend_not_allowed", refused.to_string())
        .hint("leave the `# syntax=` line out, or write `# syntax=docker/dockerfile:1`");
    if refused.line > 0 {
        let text = String::from_utf8_lossy(dockerfile);
        let line = text.lines().nth(refused.line as usize - 1).unwrap_or_default();
        fault.dockerfile = Some(DockerfileRange {
            path: path.clone(),
            start_line: refused.line,
            end_line: refused.line,
            text: line.chars().take(500).collect(),
        });
    }
    fault
}
