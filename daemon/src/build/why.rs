//! Explains why steps of a build ran again, by comparing it with an earlier build of its tag.
//!
//! ```text
//! solve begins --> inputs of the steps, listing of the context --> state.db      (beside the solve)
//! build ends   --> outcomes of the steps                       --> record of the build
//! request      --> both builds read back, compared             --> causes
//! ```
//!
//! Equal contexts share one listing. A build that is removed takes its inputs with it, and the listing that no other
//! build has.

mod causes;
mod listing;
mod pairs;
mod step_name;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::dockerfile::RunOptions;
use super::driver::normalized_name;
use super::port::{BuildQuery, PreparedContext, StoreError, StoredInputs};
use super::service::{BuildError, BuildRuntime, Handle};
use crate::context::{FileKind, FileTree};
use crate::model::build::{BuildNetwork, BuildRecipe, BuildRecord};
use crate::model::build_inputs::{BuildInputs, FileChange, StepInputs};
use crate::model::id::BuildId;
use crate::task;

pub use causes::ExplainedStep;
use causes::{RecordedBuild, explain};
use listing::{FileListing, encode_listing};

/// Number of earlier builds of a tag among which one with recorded inputs is searched.
const EARLIER_BUILDS: usize = 20;

/// Time limit of the recording, which a build waits for when its solve is shorter.
const RECORD_LIMIT: Duration = Duration::from_secs(10);

/// Difference of one file between two contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedFile {
    /// Path relative to the context.
    pub path: String,
    pub change: FileChange,
}

/// Answer to the question why steps of a build ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildExplanation {
    /// Build with which the build is compared; `None` if there is none whose inputs are recorded.
    pub compared: Option<BuildId>,
    /// Steps that ran. Empty without a build to compare with.
    pub steps: Vec<ExplainedStep>,
    pub inputs: BuildInputs,
    /// The files of both contexts were compared.
    pub compared_files: bool,
}

impl Handle {
    /// Explains why steps of a build ran. Without `compared`, the build is compared with the latest earlier one of its
    /// tag and submitter.
    pub async fn why(
        &self,
        record: &BuildRecord,
        compared: Option<&BuildRecord>,
    ) -> Result<BuildExplanation, BuildError> {
        if let Some(running) =
            [Some(record), compared].into_iter().flatten().find(|one| !one.state.is_final())
        {
            return Err(BuildError::NotEnded { id: running.id.clone() });
        }
        let store = &self.shared.ports.inputs;
        let missing = |id: &BuildId| BuildError::NoInputs { id: id.clone() };
        let stored = store.stored_inputs(&record.id).await?.ok_or_else(|| missing(&record.id))?;
        let earlier = match compared {
            Some(compared) => {
                let earlier =
                    store.stored_inputs(&compared.id).await?.ok_or_else(|| missing(&compared.id))?;
                Some((compared.clone(), earlier))
            }
            None => self.earlier_build(record).await?,
        };
        let Some((compared, earlier)) = earlier else {
            let inputs = stored.inputs;
            return Ok(BuildExplanation { compared: None, steps: Vec::new(), inputs, compared_files: false });
        };
        let files = self.changed_files(&earlier, &stored).await?;
        let before = RecordedBuild { inputs: earlier.inputs, outcomes: compared.steps };
        let after = RecordedBuild { inputs: stored.inputs, outcomes: record.steps.clone() };
        let steps = explain(&before, &after, files.as_deref().unwrap_or_default());
        let compared_files = files.is_some();
        Ok(BuildExplanation { compared: Some(compared.id), steps, inputs: after.inputs, compared_files })
    }

    async fn earlier_build(
        &self,
        record: &BuildRecord,
    ) -> Result<Option<(BuildRecord, StoredInputs)>, BuildError> {
        let Some(tag) = record.spec.tags.first() else { return Ok(None) };
        let query = BuildQuery {
            tag: Some(tag.to_string()),
            submitted_by: Some(record.submitted_by.clone()),
            after: Some(record.id.clone()),
            limit: EARLIER_BUILDS,
            ..BuildQuery::default()
        };
        for earlier in self.shared.ports.store.list(query).await? {
            if earlier.state.is_final()
                && let Some(stored) = self.shared.ports.inputs.stored_inputs(&earlier.id).await?
            {
                return Ok(Some((earlier, stored)));
            }
        }
        Ok(None)
    }

    /// Returns the files that differ; `None` if the files of one of the builds are not recorded.
    async fn changed_files(
        &self,
        before: &StoredInputs,
        after: &StoredInputs,
    ) -> Result<Option<Vec<ChangedFile>>, BuildError> {
        if before.context == after.context {
            return Ok(Some(Vec::new()));
        }
        let store = &self.shared.ports.inputs;
        let listings = (store.listing(&before.context).await?, store.listing(&after.context).await?);
        let (Some(before), Some(after)) = listings else { return Ok(None) };
        let compare = move || Ok(FileListing::decode(&before)?.changes(&FileListing::decode(&after)?));
        let compared = task::blocking("compare contexts", compare).await;
        Ok(Some(compared.map_err(std::io::Error::other).flatten().map_err(StoreError)?))
    }
}

impl BuildRuntime {
    /// Records the inputs of a build. A failure is logged only: the build itself does not need them.
    pub(super) async fn record_inputs(&self, record: &BuildRecord, context: &PreparedContext) {
        if record.spec.recipe != BuildRecipe::Dockerfile {
            return;
        }
        match timeout(RECORD_LIMIT, self.store_inputs(record, context)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "failed to record the inputs of a build; its steps cannot be explained later");
            }
            Err(_) => {
                tracing::warn!(limit = ?RECORD_LIMIT, "gave up recording the inputs of a build; its steps cannot be explained later");
            }
        }
    }

    async fn store_inputs(&self, record: &BuildRecord, context: &PreparedContext) -> Result<(), StoreError> {
        let inputs = build_inputs(record, context);
        if inputs.steps.is_empty() {
            return Ok(());
        }
        let digest = context.identity.digest.to_string();
        let store = &self.ports.inputs;
        if store.put_inputs(&record.id, inputs, &digest).await? {
            return Ok(());
        }
        let files = Arc::clone(&context.files.context);
        let encoded = task::blocking("list context", move || encode_listing(&*files)).await;
        match encoded.map_err(std::io::Error::other).flatten().map_err(StoreError)? {
            Some(listing) => store.put_listing(&digest, listing).await,
            None => Ok(()),
        }
    }
}

fn build_inputs(record: &BuildRecord, context: &PreparedContext) -> BuildInputs {
    let spec = &record.spec;
    let platforms: Vec<String> =
        spec.result_platforms().iter().map(|platform| platform.as_str().to_owned()).collect();
    let network = match spec.network {
        BuildNetwork::Default => "default",
        BuildNetwork::None => "none",
    };
    let options = RunOptions { platform: &platforms.join(","), network };
    let digest_of = |name: &str| {
        let normalized = name.parse().ok().map(|reference| normalized_name(&reference));
        let is_it = |given: &str| given == name || Some(given) == normalized.as_deref();
        let source = record.sources.iter().find(|source| is_it(&source.name))?;
        Some((source.name.clone(), source.digest?.to_string()))
    };
    let mut steps = context.dockerfile.step_inputs(&spec.build_args, options, &digest_of);
    widen_linked_paths(&mut steps, &*context.files.context);
    BuildInputs { no_cache: spec.no_cache.clone(), steps }
}

/// Replaces each path that leads through a symbolic link by the whole context: the link may lead anywhere in it.
fn widen_linked_paths(steps: &mut [StepInputs], context: &dyn FileTree) {
    let is_link = |path: &str| {
        let entry = context.find(path.as_bytes()).map(|index| context.entry(index));
        entry.is_some_and(|entry| matches!(entry.kind, FileKind::Symlink(_)))
    };
    for path in steps.iter_mut().flat_map(|step| &mut step.files) {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        if ends.into_iter().any(|end| is_link(&path[..end])) {
            path.clear();
        }
    }
}
