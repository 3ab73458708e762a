//! The `Services` service: deploys, watches, changes and removes services of the room.
//!
//! Changes run in a task of their own, so that a disconnecting client does not leave them half done.

mod allow;
mod exec;
mod logs;

use std::time::Duration;

use futures::StreamExt as _;
use hearth_proto::v1;
use tonic::{Request, Response, Status, Streaming};

use super::super::audit;
use super::super::convert::{self, IngressAddress, deploy_spec, duration, page_size};
use super::super::error::ApiError;
use super::caller;
use super::response_stream::ResponseStream;
use crate::deploy::{DeployError, Handle};
use crate::model::RoomRegistries;
use crate::model::deploy::{AcceptedDeploy, DeployAction};
use crate::model::fault::ErrorCode;
use crate::model::service::ServiceName;
use crate::task;

/// Default time between the stop signal and SIGKILL when a service is removed.
const REMOVE_GRACE: Duration = Duration::from_secs(10);
const MAX_REMOVE_GRACE: Duration = Duration::from_secs(600);
/// Time limit for a removal, in addition to the grace time.
const REMOVE_LIMIT: Duration = Duration::from_secs(60);

pub struct ServicesService {
    pub deploys: Handle,
    pub rooms: RoomRegistries,
    pub ingress_address: IngressAddress,
}

#[tonic::async_trait]
impl v1::services_server::Services for ServicesService {
    type WatchStream = ResponseStream<v1::DeployEvent>;
    type LogsStream = ResponseStream<v1::ServiceLogLines>;
    type ExecStream = ResponseStream<v1::ExecResponse>;

    async fn deploy(
        &self,
        request: Request<v1::DeployRequest>,
    ) -> Result<Response<v1::DeployResponse>, Status> {
        let caller = caller(request.extensions())?;
        let v1::DeployRequest { spec, dry_run } = request.into_inner();
        let (request, credentials) = deploy_spec(spec.unwrap_or_default(), &self.rooms)?;
        audit::record_object(&request.image);
        if let Some(name) = &request.name {
            audit::record_object(format_args!("service {name}"));
        }
        allow::check_images(&caller, &request, &self.rooms)?;
        let by = allow::actor(caller, &self.rooms);
        let deploys = self.deploys.clone();
        let answer = run_to_completion("deploy", async move {
            if dry_run {
                let forecast = deploys.dry_run(request, &by, &credentials).await?;
                Ok((forecast.deployed, forecast.actions))
            } else {
                Ok((deploys.deploy(request, &by, &credentials).await?, Vec::new()))
            }
        });
        let (deployed, plan) = answer.await?;
        Ok(Response::new(self.deployed(deployed, &plan)))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchDeployRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let by = allow::actor(caller, &self.rooms);
        let service = self.deploys.changeable(&request.service, "watch", &by).map_err(ApiError::from)?;
        let revision = if request.revision == 0 { service.desired } else { request.revision };
        let events = self.deploys.watch(service.id.as_str(), revision, request.from_sequence);
        let events = events.map_err(ApiError::from)?;
        Ok(Response::new(events.map(|event| Ok(convert::deploy_event(event))).boxed()))
    }

    async fn get(&self, request: Request<v1::GetServiceRequest>) -> Result<Response<v1::Service>, Status> {
        caller(request.extensions())?;
        let state = self.deploys.get(&request.into_inner().service).map_err(ApiError::from)?;
        Ok(Response::new(convert::service(state, self.ingress_address, true)))
    }

    async fn list(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        caller(request.extensions())?;
        let request = request.into_inner();
        let size = page_size(request.page_size, 100, 200);
        let after: Option<ServiceName> = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| {
                ApiError::invalid("page_token", ErrorCode::InvalidPageToken, "not a page token of this call")
            })?),
        };
        let mut states = self.deploys.list();
        states.retain(|state| after.as_ref().is_none_or(|after| state.service.name > *after));
        let more = states.len() > size;
        states.truncate(size);
        let last = states.last().map(|state| state.service.name.to_string()).filter(|_| more);
        let services = states.into_iter().map(|state| convert::service(state, self.ingress_address, false));
        Ok(Response::new(v1::ListServicesResponse {
            services: services.collect(),
            next_page_token: last.unwrap_or_default(),
        }))
    }

    async fn logs(
        &self,
        request: Request<v1::ReadServiceLogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let (source, query) = logs::parse_log_request(&request)?;
        let by = allow::actor(caller, &self.rooms);
        let service = self.deploys.changeable(&request.service, "read the log of", &by);
        let service = service.map_err(ApiError::from)?.id;
        let lines = self.deploys.logs(service.as_str(), source, query).await.map_err(ApiError::from)?;
        Ok(Response::new(logs::batches(lines)))
    }

    async fn restart(
        &self,
        request: Request<v1::RestartServiceRequest>,
    ) -> Result<Response<v1::DeployResponse>, Status> {
        let caller = caller(request.extensions())?;
        let service = request.into_inner().service;
        audit::record_object(format_args!("service {service}"));
        let (deploys, by) = (self.deploys.clone(), allow::actor(caller, &self.rooms));
        let deployed =
            run_to_completion("restart service", async move { deploys.restart(&service, &by).await }).await?;
        Ok(Response::new(self.deployed(deployed, &[])))
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackServiceRequest>,
    ) -> Result<Response<v1::DeployResponse>, Status> {
        let caller = caller(request.extensions())?;
        let v1::RollbackServiceRequest { service, revision } = request.into_inner();
        audit::record_object(format_args!("service {service}"));
        let by = allow::actor(caller, &self.rooms);
        let (deploys, revision) = (self.deploys.clone(), Some(revision).filter(|revision| *revision > 0));
        let rolled =
            run_to_completion(
                "roll back service",
                async move { deploys.rollback(&service, revision, &by).await },
            );
        Ok(Response::new(self.deployed(rolled.await?, &[])))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveServiceRequest>,
    ) -> Result<Response<v1::RemoveServiceResponse>, Status> {
        let caller = caller(request.extensions())?;
        let v1::RemoveServiceRequest { service, grace } = request.into_inner();
        audit::record_object(format_args!("service {service}"));
        let grace = duration("grace", grace)?.unwrap_or(REMOVE_GRACE);
        if grace > MAX_REMOVE_GRACE {
            let message = format!("the grace is at most {} s", MAX_REMOVE_GRACE.as_secs());
            return Err(ApiError::invalid("grace", ErrorCode::InvalidGrace, message).into());
        }
        let deploys = self.deploys.clone();
        let by = allow::actor(caller, &self.rooms);
        let limit = grace + REMOVE_LIMIT;
        let removed =
            run_to_completion(
                "remove service",
                async move { deploys.remove(&service, grace, limit, &by).await },
            );
        let removed = removed.await?;
        Ok(Response::new(v1::RemoveServiceResponse {
            service_id: removed.id.to_string(),
            name: removed.name.to_string(),
        }))
    }

    async fn exec(
        &self,
        request: Request<Streaming<v1::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let caller = caller(request.extensions())?;
        let mut messages = request.into_inner();
        let (service, spec) = exec::begin(&mut messages).await?;
        let name = self.deploys.get(&service).map_err(ApiError::from)?.service.name;
        audit::record_object(format_args!("service {name}"));
        tracing::info!(service.name = %name, caller = caller.name, "exec requested");
        let (deploys, by) = (self.deploys.clone(), allow::actor(caller, &self.rooms));
        let exec = run_to_completion("exec", async move { deploys.exec(&service, spec, &by).await }).await?;
        Ok(Response::new(exec::answers(exec, messages)))
    }

    async fn list_routes(
        &self,
        request: Request<v1::ListRoutesRequest>,
    ) -> Result<Response<v1::ListRoutesResponse>, Status> {
        caller(request.extensions())?;
        let routes = self.deploys.routes();
        Ok(Response::new(v1::ListRoutesResponse {
            routes: routes.iter().map(|route| convert::route(route, self.ingress_address)).collect(),
        }))
    }

    async fn remove_route(
        &self,
        request: Request<v1::RemoveRouteRequest>,
    ) -> Result<Response<v1::RemoveRouteResponse>, Status> {
        let caller = caller(request.extensions())?;
        let domain = convert::domain("domain", &request.into_inner().domain)?;
        audit::record_object(&domain);
        let (deploys, given, name) = (self.deploys.clone(), domain.clone(), caller.name.clone());
        let by = allow::actor(caller, &self.rooms);
        let service =
            run_to_completion("remove route", async move { deploys.remove_route(&given, &by).await }).await?;
        tracing::info!(%domain, service.name = %service, caller = name, "route removed");
        Ok(Response::new(v1::RemoveRouteResponse { service: service.to_string() }))
    }
}

impl ServicesService {
    fn deployed(&self, deployed: AcceptedDeploy, plan: &[DeployAction]) -> v1::DeployResponse {
        let service = deployed.service;
        let spec = service.revision(deployed.revision).map(|revision| revision.spec.clone());
        let domains = spec.iter().flat_map(|spec| &spec.domains);
        v1::DeployResponse {
            service_id: service.id.to_string(),
            name: service.name.to_string(),
            revision: deployed.revision,
            created: deployed.created,
            notes: deployed.notes,
            plan: plan.iter().map(convert::action).collect(),
            urls: domains.filter_map(|domain| self.ingress_address.url(domain)).collect(),
            spec: spec.map(convert::service_spec),
        }
    }
}

/// Runs work to its end, even if the client disconnects.
async fn run_to_completion<T: Send + 'static>(
    name: &'static str,
    work: impl Future<Output = Result<T, DeployError>> + Send + 'static,
) -> Result<T, Status> {
    let done = task::spawn(name, work).await.unwrap_or(Err(DeployError::ShuttingDown));
    done.map_err(|error| ApiError::from(error).into())
}

#[cfg(test)]
mod tests;
