//! The environment of an instance: what the user set, with tokens and secrets in their places, over what the daemon
//! adds (see [`super`]).

use std::collections::BTreeMap;

use super::service::Shared;
use crate::model::fault::{Fault, Stage};
use crate::model::secret::Secret;
use crate::model::service::{EnvValue, InstanceLabel, Revision};

impl Shared {
    /// Made for one start: tokens are fresh, secrets as they are now.
    pub(super) async fn environment(
        &self,
        label: &InstanceLabel,
        revision: &Revision,
    ) -> Result<BTreeMap<String, Secret<String>>, Fault> {
        let (options, name) = (&self.options, &label.name);
        let mut env: BTreeMap<String, Secret<String>> = [
            ("HEARTH_ADDR", options.address.clone()),
            ("MESHAGENT_API_URL", options.address.clone()),
            ("HEARTH_ROOM", options.room.clone()),
            ("MESHAGENT_ROOM", options.room.clone()),
            ("HEARTH_SERVICE", name.to_string()),
            ("HEARTH_REVISION", revision.number.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Secret::new(value)))
        .collect();
        let identity = revision.spec.identity.as_deref().unwrap_or(name.as_str());
        for (variable, value) in &revision.spec.env {
            let value = match value {
                EnvValue::Plain(text) => Secret::new(text.clone()),
                EnvValue::Token { scope } => {
                    self.ports.tokens.mint(&label.service, identity, scope).map_err(|reason| {
                        let message = format!("variable `{variable}`: its token cannot be made: {reason}");
                        Fault::new(Stage::Deploy, "token_not_made", message)
                    })?
                }
                EnvValue::Secret { name } => self.secret(variable, name).await?,
            };
            env.insert(variable.clone(), value);
        }
        Ok(env)
    }

    async fn secret(&self, variable: &str, name: &str) -> Result<Secret<String>, Fault> {
        match self.ports.secrets.reveal(name).await {
            Ok(Some(value)) => Ok(value),
            Ok(None) => {
                let message = format!("variable `{variable}`: the room has no secret `{name}`");
                let hint = format!("set it with: hearth secrets set {name}");
                Err(Fault::new(Stage::Deploy, "secret_not_found", message).hint(hint))
            }
            Err(reason) => {
                let message = format!("variable `{variable}`: secret `{name}`: {reason}");
                Err(Fault::new(Stage::Deploy, "secret_unreadable", message))
            }
        }
    }
}
