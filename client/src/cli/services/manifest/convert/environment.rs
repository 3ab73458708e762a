//! Converts the environment variables of a manifest.

use std::collections::BTreeMap;

use hearth_proto::v1::{EnvValue, env_value};

use super::super::text::TokenScope;
use super::super::{EnvironmentVariable, ManifestToken, SecretReference, TokenRole};
use super::{FieldError, field_error};

/// Converts the variables. Also returns the participant name of their tokens, which is the same for all
/// of them.
pub(super) fn environment(
    variables: Vec<EnvironmentVariable>,
) -> Result<(BTreeMap<String, EnvValue>, Option<String>), FieldError> {
    let mut all = BTreeMap::new();
    let mut identity: Option<String> = None;
    for EnvironmentVariable { name, value, token, secret } in variables {
        let field = || format!("container.environment: `{name}`");
        let value = match (value, token, secret) {
            (Some(value), None, None) => env_value::Value::Plain(value),
            (None, Some(token), None) => {
                let scope = scope(&token);
                match (&identity, token.identity) {
                    (Some(known), Some(other)) if *known != other => {
                        let why =
                            format!("identity `{other}`: another token has `{known}`, and a service has one");
                        return Err(field_error(field(), &why));
                    }
                    (None, Some(given)) => identity = Some(given),
                    _ => {}
                }
                env_value::Value::TokenScope(scope)
            }
            (None, None, Some(SecretReference { id })) => env_value::Value::Secret(id),
            _ => return Err(field_error(field(), "expected exactly one of `value`, `token` and `secret`")),
        };
        if all.insert(name.clone(), EnvValue { value: Some(value) }).is_some() {
            return Err(field_error(field(), "the variable is there twice"));
        }
    }
    Ok((all, identity))
}

fn scope(token: &ManifestToken) -> String {
    match (&token.api, token.role) {
        (Some(TokenScope(scope)), _) => scope.clone(),
        (None, Some(TokenRole::User)) => "userDefault".to_owned(),
        (None, Some(TokenRole::Agent | TokenRole::Tool) | None) => "agentDefault".to_owned(),
    }
}

pub(super) fn variable(name: &str, value: &EnvValue, identity: &str) -> EnvironmentVariable {
    let variable = EnvironmentVariable { name: name.to_owned(), ..EnvironmentVariable::default() };
    match &value.value {
        Some(env_value::Value::Plain(value)) => {
            EnvironmentVariable { value: Some(value.clone()), ..variable }
        }
        Some(env_value::Value::TokenScope(scope)) => {
            let identity = Some(identity.to_owned()).filter(|identity| !identity.is_empty());
            let token = ManifestToken { identity, api: Some(TokenScope(scope.clone())), role: None };
            EnvironmentVariable { token: Some(token), ..variable }
        }
        Some(env_value::Value::Secret(id)) => {
            EnvironmentVariable { secret: Some(SecretReference { id: id.clone() }), ..variable }
        }
        None => EnvironmentVariable { value: Some(String::new()), ..variable },
    }
}
