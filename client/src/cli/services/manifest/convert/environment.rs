//! Converts the environment variables of a manifest.

use std::collections::BTreeMap;

use hearth_proto::v1::{EnvValue, env_value};

use super::super::text::Scope;
use super::super::{Role, Secret, Token, Variable};
use super::{Wrong, wrong};

/// Converts the variables. Also returns the participant name of their tokens, which is the same for all
/// of them.
pub(super) fn environment(
    variables: Vec<Variable>,
) -> Result<(BTreeMap<String, EnvValue>, Option<String>), Wrong> {
    let mut all = BTreeMap::new();
    let mut identity: Option<String> = None;
    for Variable { name, value, token, secret } in variables {
        let field = || format!("container.environment: `{name}`");
        let value = match (value, token, secret) {
            (Some(value), None, None) => env_value::Value::Plain(value),
            (None, Some(token), None) => {
                let scope = scope(&token);
                match (&identity, token.identity) {
                    (Some(known), Some(other)) if *known != other => {
                        let why =
                            format!("identity `{other}`: another token has `{known}`, and a service has one");
                        return Err(wrong(field(), &why));
                    }
                    (None, Some(given)) => identity = Some(given),
                    _ => {}
                }
                env_value::Value::TokenScope(scope)
            }
            (None, None, Some(Secret { id })) => env_value::Value::Secret(id),
            _ => return Err(wrong(field(), "expected exactly one of `value`, `token` and `secret`")),
        };
        if all.insert(name.clone(), EnvValue { value: Some(value) }).is_some() {
            return Err(wrong(field(), "the variable is there twice"));
        }
    }
    Ok((all, identity))
}

fn scope(token: &Token) -> String {
    match (&token.api, token.role) {
        (Some(Scope(scope)), _) => scope.clone(),
        (None, Some(Role::User)) => "userDefault".to_owned(),
        (None, Some(Role::Agent | Role::Tool) | None) => "agentDefault".to_owned(),
    }
}

pub(super) fn variable(name: &str, value: &EnvValue, identity: &str) -> Variable {
    let variable = Variable { name: name.to_owned(), ..Variable::default() };
    match &value.value {
        Some(env_value::Value::Plain(value)) => Variable { value: Some(value.clone()), ..variable },
        Some(env_value::Value::TokenScope(scope)) => {
            let identity = Some(identity.to_owned()).filter(|identity| !identity.is_empty());
            let token = Token { identity, api: Some(Scope(scope.clone())), role: None };
            Variable { token: Some(token), ..variable }
        }
        Some(env_value::Value::Secret(id)) => {
            Variable { secret: Some(Secret { id: id.clone() }), ..variable }
        }
        None => Variable { value: Some(String::new()), ..variable },
    }
}
