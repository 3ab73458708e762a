//! Questions about a Dockerfile that BuildKit's frontend answers: warnings, outline, targets. Nothing is built, and no
//! record is kept.
//!
//! A question takes the way of a build up to the solve. Of the context, only the ignore file is read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::context::{dockerfile_fault, settled_spec};
use super::faults::{stopped_fault, with_dockerfile_path};
use super::images::BuildImages;
use crate::build::credentials::{BuildCredentials, RegistryAccess};
use crate::build::event_log::EventLog;
use crate::build::mask::SecretMask;
use crate::build::port::{
    CredentialProvider, SolveAnswer, SolveCaches, SolveError, SolveProgram, SolveQuestion, SolveRequest,
};
use crate::build::publisher::EventPublisher;
use crate::build::recipe::RunningRecipe;
use crate::build::service::{ActiveBuild, BuildRuntime, Handle};
use crate::build::submit::{SubmitBuild, SubmitError, new_record, packs_of};
use crate::model::build::{BuildRecipe, BuildRecord};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::id::BuildId;
use crate::task;

/// Time limit for one question, with the transfer of base images and the wait for other questions.
const INSPECT_LIMIT: Duration = Duration::from_secs(300);
/// Maximum number of questions that are answered at the same time.
pub(in crate::build) const CONCURRENT_QUESTIONS: usize = 4;

impl Handle {
    /// Answers a question about the Dockerfile of a build that is not run.
    pub async fn inspect(
        &self,
        request: SubmitBuild,
        question: SolveQuestion,
    ) -> Result<SolveAnswer, SubmitError> {
        let shared = Arc::clone(&self.shared);
        let id = BuildId::random();
        let (directory, of) = (shared.options.log_dir.clone(), id.clone());
        let log = task::blocking("build log", move || EventLog::create(&directory, &of)).await;
        let log = Arc::new(log.map_err(|_| SubmitError::Ending)??);
        let packs = packs_of(&request.spec);
        let active =
            ActiveBuild::new(id, request.caller.clone(), log, packs).with_secrets(request.secrets.clone());
        // A caller that disconnects ends the question; what it holds is released by its task.
        let _stop = active.stop.clone().drop_guard();
        let answered = task::spawn("inspect Dockerfile", async move {
            let answered = shared.inspect(&active, request, question).await;
            let (directory, of) = (shared.options.log_dir.clone(), active.id.clone());
            let removed = task::blocking("build log", move || EventLog::remove(&directory, &of)).await;
            if !matches!(removed, Ok(Ok(()))) {
                tracing::warn!("failed to remove the log of a question; retrying at the next start");
            }
            answered
        });
        answered.await.unwrap_or(Err(SubmitError::Ending))
    }
}

impl BuildRuntime {
    async fn inspect(
        &self,
        active: &ActiveBuild,
        request: SubmitBuild,
        question: SolveQuestion,
    ) -> Result<SolveAnswer, SubmitError> {
        let record = new_record(&active.id, &request, 0);
        let refused = |fault| SubmitError::Refused(Box::new(fault));
        if record.spec.recipe != BuildRecipe::Dockerfile {
            return Err(refused(no_dockerfile()));
        }
        self.hold_packs(&active.packs, &request.caller).await.map_err(refused)?;
        let answer = Box::pin(self.answer(active, &record, &request, question));
        let answered = timeout(INSPECT_LIMIT, answer).await;
        self.release_packs(&active.packs).await;
        match answered {
            Ok(answered) => answered.map_err(refused),
            Err(_) => Err(refused(too_slow())),
        }
    }

    async fn answer(
        &self,
        active: &ActiveBuild,
        record: &BuildRecord,
        request: &SubmitBuild,
        question: SolveQuestion,
    ) -> Result<SolveAnswer, Fault> {
        let prepare = async {
            let turn = self.questions.acquire().await;
            let credentials = &request.secrets.credentials;
            let prepared = self
                .ports
                .contexts
                .prepare_dockerfile(&record.spec, &record.submitted_by, credentials)
                .await?;
            Ok::<_, Fault>((turn, prepared))
        };
        let (_turn, prepared) = tokio::select! {
            prepared = prepare => prepared?,
            () = active.stop.cancelled() => return Err(stopped_fault()),
        };
        if let Some(fault) = dockerfile_fault(&prepared, &record.spec) {
            return Err(fault);
        }
        let path = &prepared.dockerfile_path;
        // Targets follow from the Dockerfile alone.
        let images = if question == SolveQuestion::Targets {
            BuildImages::default()
        } else {
            let mut publisher = EventPublisher::new(Arc::clone(&active.log), SecretMask::default(), 0);
            let recipe = (&RunningRecipe::Dockerfile, &*prepared.dockerfile);
            Box::pin(self.supply_images(active, record, recipe, path, &mut publisher)).await?
        };
        let pull = images.sources.iter().map(|image| image.repository.clone()).collect();
        let credentials = BuildCredentials::new(
            record.id.clone(),
            self.options.registry.clone(),
            RegistryAccess { push: None, pull },
            Arc::clone(&self.options.registry_credential),
        );
        let Some(tag) = record.spec.tags.first() else {
            return Err(Fault::new(FaultStage::Request, ErrorCode::InvalidTag, "the build has no tag"));
        };
        let solve = SolveRequest {
            build: record.id.clone(),
            program: SolveProgram::Dockerfile,
            domain: record.trust_domain(),
            spec: settled_spec(&record.spec),
            files: prepared.files.clone(),
            secrets: BTreeMap::new(),
            converts_layers: false,
            images: images.sources.clone(),
            downloads: Vec::new(),
            repositories: Vec::new(),
            foreign_runs: Vec::new(),
            caches: SolveCaches::default(),
            registry: self.options.registry.clone(),
            repository: tag.repository.clone(),
            credentials: Arc::new(credentials) as Arc<dyn CredentialProvider>,
        };
        match self.ports.solver.ask(solve, question, active.stop.child_token()).await {
            Ok(answer) => Ok(answer),
            Err(SolveError::Cancelled) => Err(stopped_fault()),
            Err(SolveError::Failed(fault)) => Err(with_dockerfile_path(*fault, path)),
            Err(SolveError::Unavailable(reason)) => {
                Err(Fault::new(FaultStage::Solve, ErrorCode::BuilderUnavailable, reason).retryable())
            }
        }
    }
}

fn too_slow() -> Fault {
    let message = format!("the question about the Dockerfile took longer than {} s", INSPECT_LIMIT.as_secs());
    Fault::new(FaultStage::Solve, ErrorCode::Timeout, message).retryable()
}

fn no_dockerfile() -> Fault {
    let message = "only a build with a Dockerfile can be checked, outlined or asked for its targets";
    Fault::new(FaultStage::Request, ErrorCode::InvalidRequest, message)
}
