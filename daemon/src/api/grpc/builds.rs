use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use hearth_proto::v1;
use tonic::{Request, Response, Status};

use super::super::audit;
use super::super::convert::{self, SpecContext, build_spec, page_size};
use super::super::error::ApiError;
use super::{caller, check_packs};
use crate::access::policy::{self, CallerAction, decide};
use crate::build::port::BuildQuery;
use crate::build::{BuildError, BuildLogQuery, Handle, SubmitBuild};
use crate::image::ImageStore;
use crate::model::RoomRegistries;
use crate::model::access::{Caller, NamePatterns, StorageVerb};
use crate::model::build::{BuildEventKind, BuildRecipe, BuildRecord, BuildSecrets, BuildSpec, BuildState};
use crate::model::fault::ErrorCode;

const MAX_KEY: usize = 256;
/// Tag of a build that is inspected and not run.
const NOT_BUILT: &str = "not-built";

pub struct BuildsService {
    pub builds: Handle,
    pub rooms: RoomRegistries,
    /// Looks up the owners of packs.
    pub images: ImageStore,
    pub max_timeout: Duration,
}

#[tonic::async_trait]
impl v1::builds_server::Builds for BuildsService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::BuildEvent, Status>> + Send>>;

    async fn submit(
        &self,
        request: Request<v1::SubmitBuildRequest>,
    ) -> Result<Response<v1::SubmitBuildResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        if request.idempotency_key.len() > MAX_KEY {
            let message = format!("a key has at most {MAX_KEY} bytes");
            return Err(ApiError::invalid("idempotency_key", ErrorCode::InvalidKey, message).into());
        }
        let context = self.spec_context(&caller);
        let (spec, secrets) = build_spec(request.spec.unwrap_or_default(), &context)?;
        spec.tags.iter().for_each(audit::record_object);
        policy::may_build(&caller, &spec, &self.rooms).map_err(ApiError::from)?;
        check_packs(&self.images, &caller, &spec.mounts).await?;
        let key = Some(request.idempotency_key).filter(|key| !key.is_empty());
        let submit = submission(caller, spec, secrets, key);
        let submitted = self.builds.submit(submit).await.map_err(ApiError::from)?;
        Ok(Response::new(v1::SubmitBuildResponse {
            build_id: submitted.id.to_string(),
            created: submitted.created,
        }))
    }

    async fn get(&self, request: Request<v1::GetBuildRequest>) -> Result<Response<v1::Build>, Status> {
        let caller = caller(request.extensions())?;
        let record = self.own(&caller, &request.into_inner().build_id).await?;
        let queue = match self.builds.queue_place(&record.id) {
            None => None,
            Some(place) => {
                let wait = self.builds.expected_wait(&place).await;
                let wait = wait.map_err(BuildError::from).map_err(ApiError::from)?;
                Some(convert::queue_place(&place, wait))
            }
        };
        let definition = match &record.spec.recipe {
            BuildRecipe::Llb(bytes) => bytes.clone(),
            BuildRecipe::Dockerfile | BuildRecipe::TreeImage(_) => Vec::new(),
        };
        let build = convert::build(record);
        let spec = build.spec.map(|spec| v1::BuildSpec { definition: definition.into(), ..spec });
        Ok(Response::new(v1::Build { queue, spec, ..build }))
    }

    async fn list(
        &self,
        request: Request<v1::ListBuildsRequest>,
    ) -> Result<Response<v1::ListBuildsResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let size = page_size(request.page_size, 50, 1000);
        let states = request.states().filter_map(convert::build_state_from_wire).collect();
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| {
                ApiError::invalid("page_token", ErrorCode::InvalidPageToken, "not a page token of this call")
            })?),
        };
        let tag = match request.tag.as_str() {
            "" => None,
            text => Some(self.rooms.qualify(convert::tag("tag", text)?).to_string()),
        };
        let submitted_by = policy::listed_owner(&caller).map(str::to_owned);
        let query = BuildQuery { states, tag, submitted_by, after, limit: size };
        let records = self.builds.list(query).await.map_err(ApiError::from)?;
        let full = records.len() == size;
        let last = records.last().map(|record| record.id.to_string()).filter(|_| full);
        Ok(Response::new(v1::ListBuildsResponse {
            builds: records.into_iter().map(convert::build).collect(),
            next_page_token: last.unwrap_or_default(),
        }))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchBuildRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let record = self.own(&caller, &request.build_id).await?;
        let id = record.id.to_string();
        let events = self.builds.watch(&id, request.from_sequence, !request.no_follow).await;
        let builds = self.builds.clone();
        let events = events.map_err(ApiError::from)?.then(move |event| {
            let (builds, id) = (builds.clone(), id.clone());
            async move {
                let event = event.map_err(ApiError::from)?;
                let record = match event.kind {
                    BuildEventKind::Finished { .. } => Some(builds.get(&id).await.map_err(ApiError::from)?),
                    _ => None,
                };
                Ok(convert::event(event, record))
            }
        });
        Ok(Response::new(events.boxed()))
    }

    async fn read_log(
        &self,
        request: Request<v1::ReadBuildLogRequest>,
    ) -> Result<Response<v1::ReadBuildLogResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let record = self.own(&caller, &request.build_id).await?;
        let query = BuildLogQuery {
            from_sequence: request.from_sequence,
            tail: request.tail as usize,
            pattern: convert::line_pattern(&request.contains, &request.matches)?,
            step: Some(request.step).filter(|step| *step > 0),
            since: convert::time("since", request.since)?,
            max_bytes: request.max_bytes as usize,
        };
        let log = self.builds.read_log(record.id.as_str(), query).await.map_err(ApiError::from)?;
        Ok(Response::new(v1::ReadBuildLogResponse {
            lines: log.lines,
            omitted_lines: log.omitted_lines,
            next_sequence: log.next_sequence,
        }))
    }

    async fn read_step_history(
        &self,
        request: Request<v1::ReadStepHistoryRequest>,
    ) -> Result<Response<v1::ReadStepHistoryResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let query = BuildQuery {
            states: BuildState::FINAL.to_vec(),
            tag: Some(self.rooms.qualify(convert::tag("tag", &request.tag)?).to_string()),
            submitted_by: policy::listed_owner(&caller).map(str::to_owned),
            limit: page_size(request.limit, 50, 50),
            ..BuildQuery::default()
        };
        let records = self.builds.list(query).await.map_err(ApiError::from)?;
        let builds = records.into_iter().map(convert::build_steps).collect();
        Ok(Response::new(v1::ReadStepHistoryResponse { builds }))
    }

    async fn why(
        &self,
        request: Request<v1::WhyBuildRequest>,
    ) -> Result<Response<v1::WhyBuildResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let record = self.own(&caller, &request.build_id).await?;
        let compared = match request.compared_build_id.as_str() {
            "" => None,
            id => Some(self.own(&caller, id).await?),
        };
        let explanation = self.builds.why(&record, compared.as_ref()).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::why_response(&record.id, &explanation, request.step)))
    }

    async fn cancel(&self, request: Request<v1::CancelBuildRequest>) -> Result<Response<v1::Build>, Status> {
        let caller = caller(request.extensions())?;
        let record = self.own(&caller, &request.into_inner().build_id).await?;
        let record = self.builds.cancel(record.id.as_str()).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::build(record)))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveBuildRequest>,
    ) -> Result<Response<v1::RemoveBuildResponse>, Status> {
        let caller = caller(request.extensions())?;
        let record = self.own(&caller, &request.into_inner().build_id).await?;
        self.builds.remove(record.id.as_str()).await.map_err(ApiError::from)?;
        Ok(Response::new(v1::RemoveBuildResponse {}))
    }

    async fn inspect(
        &self,
        request: Request<v1::InspectBuildRequest>,
    ) -> Result<Response<v1::InspectBuildResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let question = convert::build_question(request.question())?;
        let mut spec = request.spec.unwrap_or_default();
        // Nothing gets a tag, is pushed, or is read from a cache, so that the caller needs no right to these.
        (spec.also_tags, spec.cache_from, spec.cache_to) = Default::default();
        NOT_BUILT.clone_into(&mut spec.tag);
        let (spec, secrets) = build_spec(spec, &self.spec_context(&caller))?;
        policy::may_mount_in_builds(&caller, &spec.mounts, &self.rooms).map_err(ApiError::from)?;
        check_packs(&self.images, &caller, &spec.mounts).await?;
        let submit = submission(caller, spec, secrets, None);
        let answer = self.builds.inspect(submit, question).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::inspection(answer)?))
    }

    async fn pin(&self, request: Request<v1::PinBuildRequest>) -> Result<Response<v1::Build>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let record = self.own(&caller, &request.build_id).await?;
        let record = self.builds.pin(record.id.as_str(), request.pinned).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::build(record)))
    }

    async fn prune(
        &self,
        request: Request<v1::PruneBuildsRequest>,
    ) -> Result<Response<v1::PruneBuildsResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let selection = convert::prune_selection(&request, policy::listed_owner(&caller))?;
        let removed = self.builds.prune(selection).await.map_err(ApiError::from)?;
        if !request.dry_run {
            removed.iter().for_each(audit::record_object);
        }
        Ok(Response::new(v1::PruneBuildsResponse {
            build_ids: removed.iter().map(ToString::to_string).collect(),
        }))
    }
}

impl BuildsService {
    fn spec_context(&self, caller: &Caller) -> SpecContext<'_> {
        SpecContext {
            rooms: &self.rooms,
            max_timeout: self.max_timeout,
            path_links: caller.symlink_policy(StorageVerb::Read),
        }
    }

    /// Returns a build of the caller's own; admins see all. Another caller's build gives the same error as a
    /// missing one, and an id prefix is only matched among the builds that the caller may see.
    async fn own(&self, caller: &Caller, id: &str) -> Result<BuildRecord, Status> {
        let record = self.builds.find(id, policy::listed_owner(caller)).await.map_err(ApiError::from)?;
        audit::record_object(&record.id);
        if let Err(denied) = decide(caller, &CallerAction::UseBuild { id, owner: &record.submitted_by }) {
            audit::record_hidden_denial(&denied);
            return Err(ApiError::from(BuildError::NotFound { given: id.chars().take(40).collect() }).into());
        }
        Ok(record)
    }
}

fn submission(
    caller: Caller,
    spec: BuildSpec,
    secrets: BuildSecrets,
    idempotency_key: Option<String>,
) -> SubmitBuild {
    SubmitBuild {
        spec,
        secrets,
        may_pull: pull_grant(&caller),
        may_pull_from: pull_from_grant(&caller),
        caller: caller.name,
        domain: caller.domain,
        idempotency_key,
    }
}

fn pull_grant(caller: &Caller) -> NamePatterns {
    caller.scope.containers.as_ref().map(|grant| grant.registry.pull.clone()).unwrap_or_default()
}

fn pull_from_grant(caller: &Caller) -> NamePatterns {
    caller.scope.containers.as_ref().map(|grant| grant.pull.clone()).unwrap_or_default()
}
