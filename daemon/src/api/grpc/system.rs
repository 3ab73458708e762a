use std::sync::Arc;
use std::time::Duration;

use hearth_proto::v1;
use tonic::{Request, Response, Status};

use super::super::convert::{duration, timestamp};
use super::super::http::Readiness;
use super::caller;
use super::usage::DiskUsage;
use crate::access::{Access, policy};
use crate::model::RoomRegistries;
use crate::model::builder::{BuilderState, BuilderStatus};
use crate::model::image::Platform;

const DEFAULT_TTL: Duration = Duration::from_secs(3600);

/// Reads how the builders stand at this moment.
pub type BuilderList = Arc<dyn Fn() -> Vec<BuilderStatus> + Send + Sync>;

pub struct SystemService {
    pub room: String,
    pub room_registries: RoomRegistries,
    pub readiness: Readiness,
    pub builders: BuilderList,
    pub access: Arc<Access>,
    pub usage: DiskUsage,
}

#[tonic::async_trait]
impl v1::system_server::System for SystemService {
    async fn get_info(
        &self,
        request: Request<v1::GetInfoRequest>,
    ) -> Result<Response<v1::GetInfoResponse>, Status> {
        // Any participant of the room may ask.
        caller(request.extensions())?;
        let components = (self.readiness)();
        Ok(Response::new(v1::GetInfoResponse {
            room: self.room.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            room_registries: self.room_registries.names().iter().map(ToString::to_string).collect(),
            ready: components.iter().all(|component| component.ready),
            components: components
                .into_iter()
                .map(|component| v1::Component {
                    name: component.name.to_owned(),
                    ready: component.ready,
                    detail: component.detail,
                })
                .collect(),
            platform: Platform::host().as_str().to_owned(),
        }))
    }

    async fn get_disk_usage(
        &self,
        request: Request<v1::GetDiskUsageRequest>,
    ) -> Result<Response<v1::GetDiskUsageResponse>, Status> {
        let caller = caller(request.extensions())?;
        let only = policy::listed_owner(&caller);
        Ok(Response::new(self.usage.of(only).await?))
    }

    async fn mint_token(
        &self,
        request: Request<v1::MintTokenRequest>,
    ) -> Result<Response<v1::MintTokenResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let name = if request.name.is_empty() { "participant" } else { &request.name };
        let ttl = duration("ttl", request.ttl)?.unwrap_or(DEFAULT_TTL);
        let domain = Some(request.domain.as_str()).filter(|domain| !domain.is_empty());
        let minted = self.access.mint_into(domain, name, &request.scope, ttl);
        let (token, expires) = minted.map_err(super::super::error::Refusal::from)?;
        tracing::info!(by = caller.name, name, domain, "token minted");
        Ok(Response::new(v1::MintTokenResponse { token, expires_at: Some(timestamp(expires)) }))
    }

    async fn list_builders(
        &self,
        request: Request<v1::ListBuildersRequest>,
    ) -> Result<Response<v1::ListBuildersResponse>, Status> {
        let caller = caller(request.extensions())?;
        let only = policy::listed_domain(&caller);
        let is_shown = |one: &BuilderStatus| only.is_none_or(|domain| one.domain.as_ref() == Some(domain));
        let builders = (self.builders)().into_iter().filter(is_shown).map(builder).collect();
        Ok(Response::new(v1::ListBuildersResponse { builders }))
    }
}

fn builder(status: BuilderStatus) -> v1::Builder {
    let state = match status.state {
        BuilderState::Ready => v1::BuilderState::Ready,
        BuilderState::NotReady => v1::BuilderState::NotReady,
        BuilderState::Stopped => v1::BuilderState::Stopped,
    };
    v1::Builder {
        domain: status.domain.map(String::from).unwrap_or_default(),
        address: status.address.unwrap_or_default(),
        state: state.into(),
        detail: status.detail,
        disk_bytes: status.disk,
        last_used_at: status.last_used.map(timestamp),
        running_builds: u32::try_from(status.builds).unwrap_or(u32::MAX),
    }
}
