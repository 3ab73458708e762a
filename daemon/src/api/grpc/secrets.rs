use hearth_proto::v1;
use tonic::{Request, Response, Status};

use super::super::audit;
use super::super::convert::timestamp;
use super::super::error::ApiError;
use super::caller;
use crate::access::policy::{CallerAction, decide};
use crate::deploy::Handle;
use crate::model::fault::ErrorCode;
use crate::model::secret::{Secret, SecretName, SecretView};
use crate::model::service::{EnvValue, ServiceRecord};
use crate::secrets::RoomSecrets;

pub struct SecretsService {
    pub secrets: RoomSecrets,
    /// Looks up which services use a secret.
    pub deploys: Handle,
}

#[tonic::async_trait]
impl v1::secrets_server::Secrets for SecretsService {
    async fn set(
        &self,
        request: Request<v1::SetSecretRequest>,
    ) -> Result<Response<v1::SetSecretResponse>, Status> {
        let caller = caller(request.extensions())?;
        let v1::SetSecretRequest { name, value } = request.into_inner();
        let name = self::name(&name)?;
        audit::record_object(&name);
        let value = String::from_utf8(value.into()).map_err(|_| {
            let message = format!("the value of secret `{name}` is not UTF-8 text");
            ApiError::invalid("value", ErrorCode::InvalidSecretValue, message)
        })?;
        let set = self.secrets.set(&name, Secret::new(value)).await.map_err(ApiError::from)?;
        tracing::info!(secret.name = %name, caller = caller.name, "secret set");
        Ok(Response::new(v1::SetSecretResponse { secret: Some(shown(&set)) }))
    }

    async fn list(
        &self,
        request: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        caller(request.extensions())?;
        let secrets = self.secrets.list().await.map_err(ApiError::from)?;
        Ok(Response::new(v1::ListSecretsResponse { secrets: secrets.iter().map(shown).collect() }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveSecretRequest>,
    ) -> Result<Response<v1::RemoveSecretResponse>, Status> {
        let caller = caller(request.extensions())?;
        let name = name(&request.into_inner().name)?;
        audit::record_object(&name);
        self.secrets.remove(&name).await.map_err(ApiError::from)?;
        tracing::info!(secret.name = %name, caller = caller.name, "secret removed");
        let may_see_users = decide(&caller, &CallerAction::SeeSecretUsers).is_ok();
        let used_by = if may_see_users { self.used_by(&name) } else { Vec::new() };
        Ok(Response::new(v1::RemoveSecretResponse { used_by }))
    }
}

impl SecretsService {
    fn used_by(&self, secret: &SecretName) -> Vec<String> {
        let uses = |service: &ServiceRecord| {
            service.target_revision().is_some_and(|revision| {
                revision
                    .spec
                    .env
                    .values()
                    .any(|value| matches!(value, EnvValue::Secret { name } if name == secret.as_str()))
            })
        };
        let services = self.deploys.list().into_iter().map(|state| state.service);
        services.filter(uses).map(|service| service.name.to_string()).collect()
    }
}

fn name(text: &str) -> Result<SecretName, ApiError> {
    text.parse().map_err(|error| ApiError::invalid("name", ErrorCode::InvalidSecretName, format!("{error}")))
}

fn shown(secret: &SecretView) -> v1::Secret {
    v1::Secret {
        name: secret.name.to_string(),
        created_at: Some(timestamp(secret.created_at)),
        changed_at: Some(timestamp(secret.changed_at)),
    }
}

#[cfg(test)]
mod tests;
