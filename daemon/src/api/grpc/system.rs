use std::sync::Arc;
use std::time::Duration;

use hearth_proto::v1;
use jiff::Timestamp;
use tonic::{Request, Response, Status};

use super::super::audit;
use super::super::convert::{duration, timestamp};
use super::super::error::ApiError;
use super::super::http::ReadinessCheck;
use super::caller;
use super::response_stream::ResponseStream;
use super::usage::DiskUsage;
use super::verify_content::{quarantined, verify_all};
use crate::access::{KeyChangeError, TokenAuthority, TokenRevocation, policy};
use crate::audit::{AuditOutcome, AuditQuery, AuditRecord, AuditTrail, MAX_RECORDS};
use crate::context::StorageRoot;
use crate::deploy::Handle;
use crate::model::RoomRegistries;
use crate::model::access::{SERVICE_NAME, USER_NAME};
use crate::model::builder::{BuilderState, BuilderStatus};
use crate::model::fault::ErrorCode;
use crate::model::image::Platform;
use crate::registry::blobs::BlobStore;
use crate::task;

const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Default grace time of tokens signed with the previous secret.
const DEFAULT_GRACE: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_RECORDS: usize = 100;
/// Time limit for a search in the audit trail.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// Returns the current state of the builders.
pub type BuilderList = Arc<dyn Fn() -> Vec<BuilderStatus> + Send + Sync>;

pub struct SystemService {
    pub room: String,
    pub room_registries: RoomRegistries,
    pub readiness: ReadinessCheck,
    pub builders: BuilderList,
    pub access: Arc<TokenAuthority>,
    pub usage: DiskUsage,
    pub room_storage: StorageRoot,
    pub trail: AuditTrail,
    pub blobs: BlobStore,
    /// Issues new tokens to services after a rotation.
    pub deploys: Handle,
}

#[tonic::async_trait]
impl v1::system_server::System for SystemService {
    type VerifyContentStream = ResponseStream<v1::VerifyContentResponse>;

    async fn verify_content(
        &self,
        request: Request<v1::VerifyContentRequest>,
    ) -> Result<Response<Self::VerifyContentStream>, Status> {
        caller(request.extensions())?;
        let store = self.blobs.clone();
        let listed = task::blocking("list blobs", move || store.digests()).await;
        let digests = listed.map_err(std::io::Error::other).flatten();
        let digests = digests.map_err(|error| ApiError::internal("the blobs cannot be listed", error))?;
        Ok(Response::new(verify_all(self.blobs.clone(), digests)))
    }

    async fn get_info(
        &self,
        request: Request<v1::GetInfoRequest>,
    ) -> Result<Response<v1::GetInfoResponse>, Status> {
        // Any participant of the room may call this.
        caller(request.extensions())?;
        let components = (self.readiness)();
        let quarantined = quarantined(&self.blobs).await?;
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
            room_storage: self.room_storage(),
            quarantined_blobs: u32::try_from(quarantined.len()).unwrap_or(u32::MAX),
        }))
    }

    async fn get_disk_usage(
        &self,
        request: Request<v1::GetDiskUsageRequest>,
    ) -> Result<Response<v1::GetDiskUsageResponse>, Status> {
        let caller = caller(request.extensions())?;
        let only = policy::listed_owner(&caller);
        Ok(Response::new(self.usage.report(only).await?))
    }

    async fn mint_token(
        &self,
        request: Request<v1::MintTokenRequest>,
    ) -> Result<Response<v1::MintTokenResponse>, Status> {
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        audit::record_object(format_args!("token of {}", request.name));
        let name = if request.name.is_empty() { "participant" } else { &request.name };
        let ttl = duration("ttl", request.ttl)?.unwrap_or(DEFAULT_TTL);
        let domain = Some(request.domain.as_str()).filter(|domain| !domain.is_empty());
        let minted = self.access.mint_into(domain, name, &request.scope, ttl);
        let (token, expires) = minted.map_err(ApiError::from)?;
        tracing::info!(caller = caller.name, token.name = name, token.domain = domain, "token minted");
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

    async fn rotate_token_secret(
        &self,
        request: Request<v1::RotateTokenSecretRequest>,
    ) -> Result<Response<v1::RotateTokenSecretResponse>, Status> {
        let caller = caller(request.extensions())?;
        let grace = duration("grace", request.into_inner().grace)?.unwrap_or(DEFAULT_GRACE);
        let until = self.change_keys(move |access| access.rotate(grace)).await?;
        tracing::info!(caller = caller.name, %until, "room secret rotated");
        let deploys = self.deploys.clone();
        // The restarts run to their end, even if the client disconnects.
        let renewed =
            task::spawn("renew tokens of services", async move { deploys.renew_tokens().await }).await;
        let renewed = renewed.map_err(|error| ApiError::internal("services were not restarted", error))?;
        let (mut services, mut not_restarted) = (Vec::new(), Vec::new());
        for (name, restarted) in renewed {
            match restarted {
                Ok(()) => services.push(name.to_string()),
                Err(error) => {
                    tracing::warn!(service.name = %name, %error, "failed to restart a service; it keeps a token signed with the previous secret");
                    not_restarted.push(name.to_string());
                }
            }
        }
        let accepted_until = Some(timestamp(until));
        Ok(Response::new(v1::RotateTokenSecretResponse { accepted_until, services, not_restarted }))
    }

    async fn revoke_tokens(
        &self,
        request: Request<v1::RevokeTokensRequest>,
    ) -> Result<Response<v1::TokenRevocation>, Status> {
        let caller = caller(request.extensions())?;
        let name = request.into_inner().name;
        audit::record_object(format_args!("tokens of {name}"));
        let (of, by) = (name.clone(), caller.name.clone());
        let revocation = self.change_keys(move |access| access.revoke(&of, &by)).await?;
        tracing::info!(caller = caller.name, token.name = name, "tokens revoked");
        let note = self.revocation_note(&name).await;
        Ok(Response::new(v1::TokenRevocation { note, ..revocation_to_wire(name, revocation) }))
    }

    async fn list_token_revocations(
        &self,
        request: Request<v1::ListTokenRevocationsRequest>,
    ) -> Result<Response<v1::ListTokenRevocationsResponse>, Status> {
        caller(request.extensions())?;
        let revocations = self.access.revocations().into_iter();
        let revocations = revocations.map(|(name, revocation)| revocation_to_wire(name, revocation));
        Ok(Response::new(v1::ListTokenRevocationsResponse { revocations: revocations.collect() }))
    }

    async fn list_audit_records(
        &self,
        request: Request<v1::ListAuditRecordsRequest>,
    ) -> Result<Response<v1::ListAuditRecordsResponse>, Status> {
        caller(request.extensions())?;
        let v1::ListAuditRecordsRequest { since, caller, action, denied_only, limit } = request.into_inner();
        let since = since.map(|time| {
            Timestamp::new(time.seconds, time.nanos).map_err(|_| {
                ApiError::invalid("since", ErrorCode::InvalidTime, "not a time that there can be")
            })
        });
        let limit = if limit == 0 { DEFAULT_RECORDS } else { limit as usize };
        let query = AuditQuery { since: since.transpose()?, caller, action, denied_only, limit };
        let read = tokio::time::timeout(READ_LIMIT, self.trail.read(query)).await;
        let records =
            read.map_err(|_| ApiError::internal("the audit trail could not be read", "it takes too long"))?;
        let records =
            records.map_err(|error| ApiError::internal("the audit trail could not be read", error))?;
        Ok(Response::new(v1::ListAuditRecordsResponse {
            records: records.into_iter().map(record_to_wire).collect(),
        }))
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

impl SystemService {
    fn room_storage(&self) -> Option<v1::DirectoryIdentity> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let found = boot_id.and_then(|boot_id| Ok((boot_id, self.room_storage.identity()?)));
        let (boot_id, (device, inode)) =
            found.inspect_err(|error| tracing::warn!(%error, "failed to identify the room storage")).ok()?;
        Some(v1::DirectoryIdentity { boot_id: boot_id.trim().to_owned(), device, inode })
    }

    /// Returns a note if a name seems to be unknown. The daemon keeps no list of issued tokens, so participants
    /// are only known from the audit trail.
    async fn revocation_note(&self, name: &str) -> String {
        if let Some(id) = name.strip_prefix(SERVICE_NAME) {
            let known = self.deploys.list().iter().any(|state| state.service.id.as_str() == id);
            return if known { String::new() } else { format!("there is no service with the id `{id}`") };
        }
        if name.starts_with(USER_NAME) {
            return "callers on the unix socket have no token".to_owned();
        }
        let of_caller = AuditQuery { caller: name.to_owned(), limit: 1, ..AuditQuery::default() };
        let action = "System.MintToken".to_owned();
        let mints = AuditQuery { action, limit: MAX_RECORDS, ..AuditQuery::default() };
        let known = async {
            let calls = self.trail.read(of_caller).await?;
            let minted = format!("token of {name}");
            let is_known = |record: &AuditRecord| record.caller == name || record.object == minted;
            Ok::<_, std::io::Error>(
                calls.iter().any(is_known) || self.trail.read(mints).await?.iter().any(is_known),
            )
        };
        match tokio::time::timeout(READ_LIMIT, known).await {
            Ok(Ok(false)) => {}
            // A failed search is no reason to doubt the name.
            _ => return String::new(),
        }
        match self.deploys.get(name) {
            Ok(state) => format!(
                "no caller `{name}` is known; the tokens of service `{name}` are those of `{SERVICE_NAME}{}`",
                state.service.id
            ),
            Err(_) => format!("no caller `{name}` is known, and no token was made here for that name"),
        }
    }

    /// Changes keys or revocations on a blocking thread.
    async fn change_keys<T: Send + 'static>(
        &self,
        change: impl FnOnce(&TokenAuthority) -> Result<T, KeyChangeError> + Send + 'static,
    ) -> Result<T, Status> {
        let access = Arc::clone(&self.access);
        let changed = task::blocking("tokens", move || change(&access)).await;
        let changed = changed.map_err(|error| ApiError::internal("tokens could not be changed", error))?;
        changed.map_err(|error| ApiError::from(error).into())
    }
}

fn revocation_to_wire(name: String, revocation: TokenRevocation) -> v1::TokenRevocation {
    let before = prost_types::Timestamp { seconds: revocation.before, nanos: 0 };
    v1::TokenRevocation { name, before: Some(before), revoked_by: revocation.by, note: String::new() }
}

fn record_to_wire(record: AuditRecord) -> v1::AuditRecord {
    let outcome = match record.outcome {
        AuditOutcome::Done => v1::AuditOutcome::Done,
        AuditOutcome::Failed => v1::AuditOutcome::Failed,
        AuditOutcome::Denied => v1::AuditOutcome::Denied,
    };
    v1::AuditRecord {
        at: Some(timestamp(record.at)),
        caller: record.caller,
        action: record.action,
        object: record.object,
        outcome: outcome.into(),
        detail: record.detail,
        source: record.source,
        more: record.more,
    }
}
