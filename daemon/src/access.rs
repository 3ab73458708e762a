//! Participant tokens of this room: made, checked, and turned into a [`Caller`].
//!
//! A token is an HS256 JWT signed with the room's secret: `name`, `exp`, and
//! `grants: [{name: "room", scope: ROOM}, {name: "role", scope: "agent"}, {name: "api", scope: {...}}]`. That of a
//! service has `{name: "service", scope: ID}` as well, and is good for as long as the service is there. One that was minted
//! into a trust domain has `{name: "domain", scope: DOMAIN}`.

pub mod secret_file;

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::model::access::{ApiScope, Caller};
use crate::model::id::ServiceId;
use crate::model::secret::Secret;
use crate::model::trust::{Trust, TrustDomain, TrustDomainError};

pub use secret_file::SecretFileError;

/// Tokens are asked to be short-lived; longer ones are refused.
pub const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);
/// A token that is larger than this is not even looked at.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

type Exists = dyn Fn(&str) -> bool + Send + Sync;

/// Checks and makes tokens of one room; cheap to share.
pub struct Access {
    room: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    trust: Trust,
    /// Whether there is a service of this id.
    services: OnceLock<Box<Exists>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    #[error("a participant token of this room is needed")]
    Missing,
    #[error("the token is not a participant token of this room: {0}")]
    Invalid(&'static str),
    #[error("the token has expired")]
    Expired,
    #[error("the token is for another room than `{room}`")]
    OtherRoom { room: String },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    #[error("scope `{given}` is not `userDefault`, `agentDefault`, `full` or a JSON object: {reason}")]
    Scope { given: String, reason: String },
    #[error("a token may be good for at most {} days", MAX_TTL.as_secs() / 86400)]
    Ttl,
    #[error("the name is empty or longer than 200 characters")]
    Name,
    #[error(transparent)]
    Domain(#[from] TrustDomainError),
    #[error("cannot sign: {0}")]
    Sign(String),
}

#[derive(Serialize, Deserialize)]
struct Claims {
    name: String,
    #[serde(default)]
    grants: Vec<Grant>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
}

/// Grant that marks the tokens of services, and what the names of such callers begin with.
const SERVICE: &str = "service";
/// Grant that names the trust domain of its bearer.
const DOMAIN: &str = "domain";

#[derive(Serialize, Deserialize)]
struct Grant {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<serde_json::Value>,
}

impl Access {
    /// Reads the room's secret, or makes it at the first start.
    pub fn open(room: &str, secret_file: &Path) -> Result<Self, SecretFileError> {
        Ok(Self::with_secret(room, &secret_file::read_or_create(secret_file)?))
    }

    fn with_secret(room: &str, secret: &Secret<String>) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.validate_exp = true;
        // Tokens of others may carry no expiry; one that is there is always checked.
        validation.required_spec_claims.clear();
        Self {
            room: room.to_owned(),
            encoding: EncodingKey::from_secret(secret.reveal().as_bytes()),
            decoding: DecodingKey::from_secret(secret.reveal().as_bytes()),
            validation,
            trust: Trust::default(),
            services: OnceLock::new(),
        }
    }

    /// Puts callers into the trust domains that the operator chose.
    #[must_use]
    pub fn with_trust(self, trust: Trust) -> Self {
        Self { trust, ..self }
    }

    /// The caller behind the unix socket.
    pub fn local(&self, uid: u32) -> Caller {
        let caller = Caller::local(uid);
        let domain = self.trust.domain(&caller.name, caller.domain, None);
        Caller { domain, ..caller }
    }

    /// From now on tokens of services that are gone are refused. Said once, at the start.
    pub fn ask_for_services(&self, exists: impl Fn(&str) -> bool + Send + Sync + 'static) {
        if self.services.set(Box::new(exists)).is_err() {
            tracing::warn!("it was said already where services are asked for");
        }
    }

    /// The caller whom a token names. The signature is compared in constant time.
    pub fn verify(&self, token: &str) -> Result<Caller, AccessError> {
        use jsonwebtoken::errors::ErrorKind;
        if token.len() > MAX_TOKEN_BYTES {
            return Err(AccessError::Invalid("it is too long"));
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation)
            .map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature => AccessError::Expired,
                ErrorKind::InvalidSignature => AccessError::Invalid("its signature does not match"),
                ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
                    AccessError::Invalid("it is not signed with HS256")
                }
                _ => AccessError::Invalid("it cannot be read"),
            })?
            .claims;
        let scope_of = |name| claims.grants.iter().find(|grant| grant.name == name).map(|grant| &grant.scope);
        match scope_of("room") {
            Some(Some(serde_json::Value::String(room))) if *room == self.room => {}
            _ => return Err(AccessError::OtherRoom { room: self.room.clone() }),
        }
        let scope = match scope_of("api") {
            Some(Some(scope)) => serde_json::from_value(scope.clone())
                .map_err(|_| AccessError::Invalid("its `api` grant cannot be read"))?,
            _ => ApiScope::default(),
        };
        // What a service makes is its own, whatever its name.
        let caller = match scope_of(SERVICE) {
            None => Caller::new(claims.name.clone(), scope),
            Some(Some(serde_json::Value::String(id)))
                if self.services.get().is_none_or(|exists| exists(id)) =>
            {
                let name = format!("{SERVICE}:{}", claims.name);
                Caller { domain: TrustDomain::of_service(id), ..Caller::new(name, scope) }
            }
            Some(_) => return Err(AccessError::Invalid("its service is gone")),
        };
        let claimed = match scope_of(DOMAIN) {
            None => None,
            Some(Some(serde_json::Value::String(domain))) => Some(
                domain.parse().map_err(|_| AccessError::Invalid("its `domain` grant is no trust domain"))?,
            ),
            Some(_) => return Err(AccessError::Invalid("its `domain` grant cannot be read")),
        };
        let domain = self.trust.domain(&caller.name, caller.domain, claimed);
        Ok(Caller { domain, ..caller })
    }

    /// Makes a token. `scope` is a word or JSON, as `hearth token mint --scope` takes it.
    pub fn mint(&self, name: &str, scope: &str, ttl: Duration) -> Result<(String, Timestamp), MintError> {
        self.mint_into(None, name, scope, ttl)
    }

    /// The same, for a bearer whose builds use the builder of a given trust domain.
    pub fn mint_into(
        &self,
        domain: Option<&str>,
        name: &str,
        scope: &str,
        ttl: Duration,
    ) -> Result<(String, Timestamp), MintError> {
        if name.is_empty() || name.len() > 200 {
            return Err(MintError::Name);
        }
        let domain = domain.map(str::parse::<TrustDomain>).transpose()?;
        let grant =
            |domain: TrustDomain| Grant { name: DOMAIN.to_owned(), scope: Some(domain.as_str().into()) };
        self.sign_with(name, &parse_scope(scope)?, ttl, domain.map(grant))
    }

    /// Makes a token for an instance of a service: one that nobody can take for a participant of its name.
    pub fn mint_for_service(
        &self,
        service: &ServiceId,
        name: &str,
        scope: &str,
        ttl: Duration,
    ) -> Result<String, MintError> {
        if name.is_empty() || name.len() > 200 {
            return Err(MintError::Name);
        }
        let mark = Grant { name: SERVICE.to_owned(), scope: Some(service.to_string().into()) };
        self.sign_with(name, &parse_scope(scope)?, ttl, Some(mark)).map(|(token, _)| token)
    }

    /// Makes a token for a scope that the daemon itself chose.
    pub fn sign(
        &self,
        name: &str,
        scope: &ApiScope,
        ttl: Duration,
    ) -> Result<(String, Timestamp), MintError> {
        self.sign_with(name, scope, ttl, None)
    }

    fn sign_with(
        &self,
        name: &str,
        scope: &ApiScope,
        ttl: Duration,
        more: Option<Grant>,
    ) -> Result<(String, Timestamp), MintError> {
        if ttl > MAX_TTL {
            return Err(MintError::Ttl);
        }
        let sign = |error: &dyn std::fmt::Display| MintError::Sign(error.to_string());
        let expires = Timestamp::now().checked_add(ttl).map_err(|error| sign(&error))?;
        let grant = |name: &str, scope| Grant { name: name.to_owned(), scope: Some(scope) };
        let scope = serde_json::to_value(scope).map_err(|error| sign(&error))?;
        let claims = Claims {
            name: name.to_owned(),
            grants: [
                grant("room", self.room.clone().into()),
                grant("role", "agent".into()),
                grant("api", scope),
            ]
            .into_iter()
            .chain(more)
            .collect(),
            exp: Some(expires.as_second()),
        };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
            .map_err(|error| sign(&error))?;
        Ok((token, expires))
    }
}

/// The scope of a token, as `--scope` and `--env-token` take it: a word, or JSON.
pub fn parse_scope(text: &str) -> Result<ApiScope, MintError> {
    match text.trim() {
        "" | "userDefault" => Ok(ApiScope::user_default()),
        "agentDefault" => Ok(ApiScope::agent_default()),
        "full" => Ok(ApiScope::full()),
        json => serde_json::from_str(json).map_err(|error| MintError::Scope {
            given: json.chars().take(200).collect(),
            reason: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(room: &str, secret: &str) -> Access {
        Access::with_secret(room, &Secret::new(secret.to_owned()))
    }

    fn signed(access: &Access, claims: &serde_json::Value) -> String {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &access.encoding).unwrap()
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_minted_token_names_its_caller_and_scope() {
        let access = access("r", "s");
        let (token, expires) = access.mint("ann", "full", HOUR).unwrap();
        assert!(expires > Timestamp::now());
        assert_eq!(access.verify(&token), Ok(Caller::new("ann", ApiScope::full())));
    }

    #[test]
    fn a_token_of_a_service_is_not_taken_for_a_participants() {
        let access = access("r", "s");
        let id = ServiceId::random();
        let token = access.mint_for_service(&id, "ann", "full", HOUR).unwrap();
        assert_eq!(access.verify(&token).unwrap().name, "service:ann");
        let there = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let (asked, wanted) = (std::sync::Arc::clone(&there), id.to_string());
        access.ask_for_services(move |id| id == wanted && asked.load(std::sync::atomic::Ordering::Relaxed));
        assert_eq!(access.verify(&token).unwrap().name, "service:ann");
        there.store(false, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(access.verify(&token), Err(AccessError::Invalid("its service is gone")));
    }

    #[test]
    fn the_domain_of_a_caller_comes_from_its_token_and_never_from_its_scope() {
        let access = access("r", "s");
        let domain = |token: &str| access.verify(token).unwrap().domain.to_string();
        let (token, _) = access.mint("ann", r#"{"domain": "ci"}"#, HOUR).unwrap();
        assert_eq!(domain(&token), "caller:ann");
        let (token, _) = access.mint_into(Some("ci"), "ann", "full", HOUR).unwrap();
        assert_eq!(domain(&token), "ci");
        let refused = access.mint_into(Some("c i"), "ann", "full", HOUR);
        assert!(matches!(refused, Err(MintError::Domain(_))), "{refused:?}");
        let id = ServiceId::random();
        let token = access.mint_for_service(&id, "web", r#"{"domain": "ci"}"#, HOUR).unwrap();
        assert_eq!(domain(&token), format!("service:{id}"));
        let odd = serde_json::json!({"name": "a", "grants": [{"name": "room", "scope": "r"},
            {"name": "domain", "scope": 7}]});
        assert!(matches!(access.verify(&signed(&access, &odd)), Err(AccessError::Invalid(_))));
    }

    #[test]
    fn the_operator_puts_callers_together() {
        let trust = Trust {
            domains: [("ci".parse().unwrap(), crate::model::access::Patterns(vec!["ci-*".to_owned()]))]
                .into(),
            ..Trust::default()
        };
        let access = access("r", "s").with_trust(trust);
        let (token, _) = access.mint("ci-1", "full", HOUR).unwrap();
        assert_eq!(access.verify(&token).unwrap().domain.to_string(), "ci");
        assert_eq!(access.local(0).domain, TrustDomain::local());
    }

    #[test]
    fn tokens_of_another_secret_room_algorithm_or_time_are_refused() {
        let here = access("r", "s");
        let (other_secret, _) = access("r", "x").mint("a", "full", HOUR).unwrap();
        assert!(matches!(here.verify(&other_secret), Err(AccessError::Invalid(_))));
        let (other_room, _) = access("q", "s").mint("a", "full", HOUR).unwrap();
        assert_eq!(here.verify(&other_room), Err(AccessError::OtherRoom { room: "r".to_owned() }));
        let expired = serde_json::json!({"name": "a", "exp": Timestamp::now().as_second() - 1,
            "grants": [{"name": "room", "scope": "r"}]});
        assert_eq!(here.verify(&signed(&here, &expired)), Err(AccessError::Expired));
        let roomless = serde_json::json!({"name": "a", "grants": []});
        assert!(matches!(here.verify(&signed(&here, &roomless)), Err(AccessError::OtherRoom { .. })));
        // {"alg":"none"} and {"name":"a","grants":[{"name":"room","scope":"r"}]}, unsigned.
        let unsigned =
            "eyJhbGciOiJub25lIn0.eyJuYW1lIjoiYSIsImdyYW50cyI6W3sibmFtZSI6InJvb20iLCJzY29wZSI6InIifV19.";
        assert!(matches!(here.verify(unsigned), Err(AccessError::Invalid(_))));
        for garbage in ["", "x", "a.b.c", &"x".repeat(100_000)] {
            assert!(matches!(here.verify(garbage), Err(AccessError::Invalid(_))));
        }
    }

    #[test]
    fn a_token_without_an_api_grant_may_do_nothing() {
        let here = access("r", "s");
        let claims = serde_json::json!({"name": "a", "grants": [{"name": "room", "scope": "r"}]});
        let caller = here.verify(&signed(&here, &claims)).unwrap();
        assert_eq!(caller.scope, ApiScope::default());
        assert!(!caller.may_build());
    }

    #[test]
    fn a_scope_is_a_word_or_json() {
        assert_eq!(parse_scope("agentDefault"), Ok(ApiScope::agent_default()));
        assert_eq!(parse_scope(""), Ok(ApiScope::user_default()));
        let scope = parse_scope(r#"{"containers": {"use_containers": true}}"#).unwrap();
        assert!(scope.containers.unwrap().use_containers);
        assert!(matches!(parse_scope("fulll"), Err(MintError::Scope { .. })));
    }
}
