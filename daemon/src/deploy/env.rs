//! Environment of an instance: the variables that the user set, with tokens and secrets resolved, which override those
//! that the daemon adds (see [`super`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::port::{SecretReader, TokenMinter};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::secret::Secret;
use crate::model::service::{EnvValue, InstanceLabel, ServiceRevision};

/// Source of the environment variables of all instances.
pub(super) struct InstanceEnvironment {
    /// Name of the room.
    pub(super) room: String,
    /// Address of the daemon for instances.
    pub(super) address: String,
    pub(super) tokens: Arc<dyn TokenMinter>,
    pub(super) secrets: Arc<dyn SecretReader>,
}

impl InstanceEnvironment {
    /// Builds the environment for one start: tokens are freshly minted, secrets have their current values.
    pub(super) async fn variables(
        &self,
        label: &InstanceLabel,
        revision: &ServiceRevision,
    ) -> Result<BTreeMap<String, Secret<String>>, Fault> {
        let mut env: BTreeMap<String, Secret<String>> = [
            ("HEARTH_ADDR", self.address.clone()),
            ("MESHAGENT_API_URL", self.address.clone()),
            ("HEARTH_ROOM", self.room.clone()),
            ("MESHAGENT_ROOM", self.room.clone()),
            ("HEARTH_SERVICE", label.name.to_string()),
            ("HEARTH_REVISION", revision.number.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Secret::new(value)))
        .collect();
        for (variable, value) in &revision.spec.env {
            env.insert(variable.clone(), self.resolve_value(label, revision, variable, value).await?);
        }
        Ok(env)
    }

    /// Returns the tokens and secrets for an additional process of an instance: tokens are freshly minted, secrets have
    /// their current values. A variable that cannot be resolved is left out, since people look into instances that have
    /// trouble.
    pub(super) async fn confidential_variables(
        &self,
        label: &InstanceLabel,
        revision: &ServiceRevision,
    ) -> BTreeMap<String, Secret<String>> {
        let mut env = BTreeMap::new();
        for (variable, value) in revision.spec.confidential() {
            match self.resolve_value(label, revision, variable, value).await {
                Ok(value) => drop(env.insert(variable.clone(), value)),
                Err(fault) => {
                    let (service, error) = (&label.name, &fault.message);
                    tracing::warn!(service.name = %service, variable, error, "failed to resolve a process variable");
                }
            }
        }
        env
    }

    async fn resolve_value(
        &self,
        label: &InstanceLabel,
        revision: &ServiceRevision,
        variable: &str,
        value: &EnvValue,
    ) -> Result<Secret<String>, Fault> {
        match value {
            EnvValue::Plain(text) => Ok(Secret::new(text.clone())),
            EnvValue::Token { scope } => {
                let identity = revision.spec.identity.as_deref().unwrap_or(label.name.as_str());
                self.tokens.mint(&label.service, identity, scope).map_err(|reason| {
                    let message = format!("variable `{variable}`: its token cannot be made: {reason}");
                    Fault::new(FaultStage::Deploy, ErrorCode::TokenNotMade, message)
                })
            }
            EnvValue::Secret { name } => self.resolve_secret(variable, name).await,
        }
    }

    async fn resolve_secret(&self, variable: &str, name: &str) -> Result<Secret<String>, Fault> {
        match self.secrets.reveal(name).await {
            Ok(Some(value)) => Ok(value),
            Ok(None) => {
                let message = format!("variable `{variable}`: the room has no secret `{name}`");
                let hint = format!("set it with: hearth secrets set {name}");
                Err(Fault::new(FaultStage::Deploy, ErrorCode::SecretNotFound, message).hint(hint))
            }
            Err(reason) => {
                let message = format!("variable `{variable}`: secret `{name}`: {reason}");
                Err(Fault::new(FaultStage::Deploy, ErrorCode::SecretUnreadable, message))
            }
        }
    }
}
