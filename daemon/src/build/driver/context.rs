//! Checks of a prepared build context: the Dockerfile frontend, the network use, and the sources of COPY and ADD.
//!
//! A failed check ends the build before anything is sent to BuildKit.

use super::super::dockerfile::{ContextCopy, Dockerfile, FrontendRefused, settle_frontend_argument};
use super::super::port::PreparedContext;
use super::super::presence;
use super::super::service::BuildRuntime;
use super::ContextPrefetch;
use super::network::network_fault;
use crate::context::ContextFiles;
use crate::model::MountTarget;
use crate::model::build::{BuildRecord, BuildSpec, NoCache};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::task;

/// Build argument that overrides the `# syntax=` line of a Dockerfile.
const FRONTEND_ARGUMENT: &str = "BUILDKIT_SYNTAX";
/// Maximum length in characters of the Dockerfile line in a fault about the frontend.
const MAX_SHOWN_CHARS: usize = 500;

impl BuildRuntime {
    /// Waits for the context prefetch and checks its result.
    pub(super) async fn prepared_context(
        &self,
        prefetch: ContextPrefetch,
        record: &BuildRecord,
    ) -> Result<PreparedContext, Fault> {
        let spec = &record.spec;
        let prepared = prefetch.prepared().await?;
        if let Some(fault) = dockerfile_fault(&prepared, spec) {
            return Err(fault);
        }
        let PreparedContext { files, dockerfile, dockerfile_path: path, .. } = &prepared;
        if let Some(fault) = network_fault(dockerfile, spec, path) {
            return Err(fault);
        }
        let copied = dockerfile.context_copies(&spec.build_args, spec.target.as_deref());
        match find_missing_source(files, copied, path).await {
            Some(fault) => Err(fault),
            None => Ok(prepared),
        }
    }
}

/// Returns the fault of a Dockerfile with a frontend that the daemon does not support, or without a stage that the
/// request names.
pub(super) fn dockerfile_fault(prepared: &PreparedContext, spec: &BuildSpec) -> Option<Fault> {
    let PreparedContext { dockerfile, dockerfile_path: path, .. } = prepared;
    if let Some(refused) = dockerfile.refused_frontend() {
        return Some(frontend_fault(refused, path, dockerfile));
    }
    let argument = spec.build_args.get(FRONTEND_ARGUMENT);
    if let Some(Err(refused)) = argument.map(|image| settle_frontend_argument(image)) {
        return Some(frontend_fault(&refused, path, dockerfile));
    }
    let stages = dockerfile.stage_names();
    let unknown = unknown_target_fault(&stages, spec.target.as_deref());
    unknown.or_else(|| unknown_stage_fault(&stages, &spec.no_cache))
}

/// Returns the spec for the solver: without the build argument that selects the frontend, which was checked.
pub(super) fn settled_spec(spec: &BuildSpec) -> BuildSpec {
    let mut spec = spec.clone();
    spec.build_args.remove(FRONTEND_ARGUMENT);
    spec
}

/// Returns a fault if a source of COPY or ADD is missing from the files that will be sent to BuildKit.
async fn find_missing_source(
    files: &ContextFiles,
    copied: Vec<ContextCopy>,
    path: &MountTarget,
) -> Option<Fault> {
    if copied.is_empty() {
        return None;
    }
    let (files, path) = (files.clone(), path.clone());
    let check = move || presence::missing_source_fault(&files, &copied, &path);
    task::blocking("build.presence", check).await.unwrap_or_else(|error| {
        // The build continues, because BuildKit reports missing files as well.
        tracing::error!(%error, "check for missing context files panicked");
        None
    })
}

/// Returns the fault of `--no-cache STAGE` with a stage that the Dockerfile does not have. BuildKit ignores it.
fn unknown_stage_fault(stages: &[String], no_cache: &NoCache) -> Option<Fault> {
    let NoCache::Stages(asked) = no_cache else { return None };
    let unknown = asked.iter().find(|asked| !stages.iter().any(|stage| stage.eq_ignore_ascii_case(asked)))?;
    let message =
        format!("the Dockerfile has no stage `{unknown}`, whose steps are to run again; {}", listed(stages));
    Some(Fault::new(FaultStage::Context, ErrorCode::UnknownStage, message))
}

/// Returns the fault of a target stage that the Dockerfile does not have. BuildKit's own error does not say which
/// there are. It decides about numbers, and about the names that it gives to stages without one.
fn unknown_target_fault(stages: &[String], target: Option<&str>) -> Option<Fault> {
    let target = target.filter(|target| target.parse::<u32>().is_err())?;
    if stages.is_empty() || stages.iter().any(|stage| stage.eq_ignore_ascii_case(target)) {
        return None;
    }
    let message = format!("the Dockerfile has no target stage `{target}`; {}", listed(stages));
    Some(Fault::new(FaultStage::Context, ErrorCode::UnknownStage, message))
}

fn listed(stages: &[String]) -> String {
    let stages: Vec<String> = stages.iter().map(|stage| format!("`{stage}`")).collect();
    format!("its stages are {}", stages.join(", "))
}

fn frontend_fault(refused: &FrontendRefused, path: &MountTarget, dockerfile: &Dockerfile) -> Fault {
    let mut fault = Fault::new(FaultStage::Context, ErrorCode::FrontendNotAllowed, refused.to_string());
    if refused.line > 0 {
        let mut range = dockerfile.excerpt(refused.line, refused.line).range(path);
        range.text = range.text.chars().take(MAX_SHOWN_CHARS).collect();
        fault.dockerfile = Some(range);
    }
    fault
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_stage_is_named_with_those_that_there_are() {
        let dockerfile = Dockerfile::parse(b"FROM a AS Deps\nRUN x\nFROM b\nFROM deps as out\n".to_vec());
        let stages = dockerfile.stage_names();
        assert_eq!(stages, ["Deps", "stage-1", "out"]);
        let asked = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            unknown_stage_fault(&stages, &NoCache::Stages(names))
        };
        assert!(asked(&["deps", "out", "stage-1"]).is_none());
        assert!(unknown_stage_fault(&stages, &NoCache::Everything).is_none());
        let fault = asked(&["out", "dep"]).unwrap();
        assert_eq!(fault.code, ErrorCode::UnknownStage);
        assert!(
            fault.message.contains("no stage `dep`") && fault.message.ends_with("`Deps`, `stage-1`, `out`")
        );
        let target = |target| unknown_target_fault(&stages, target);
        assert!([None, Some("deps"), Some("OUT"), Some("1")].into_iter().all(|name| target(name).is_none()));
        let fault = target(Some("nope")).unwrap();
        assert_eq!(
            fault.message,
            "the Dockerfile has no target stage `nope`; its stages are `Deps`, `stage-1`, `out`"
        );
    }
}
