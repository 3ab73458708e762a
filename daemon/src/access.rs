//! Participant tokens of this room: made, checked, and turned into a [`Caller`].
//!
//! A token is a JWT: HS256 with the room's secret, or RS256 or EdDSA with a configured public key ([`keys`]). It says
//! `name`, `exp` and `grants: [{name: "room", scope: ROOM}, {name: "role", scope: "agent"}, {name: "api", scope: {...}}]`.
//! Those of services have `{name: "service", scope: ID}` as well, and are good for as long as the service is there;
//! those of builds have `{name: "build", scope: ID}`. Only the room's own secret makes these two. One that was minted
//! into a trust domain has `{name: "domain", scope: DOMAIN}`.
//!
//! ```text
//! token --keys--> claims --times, room, mark, revocations--> Caller --policy--> allowed or denied
//! ```

mod claims;
mod keys;
pub mod policy;
pub mod running;
pub mod secret_file;
mod state;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::model::TokenKeyFile;
use crate::model::access::{ApiScope, Caller, RESERVED_NAMES, SERVICE_NAME};
use crate::model::id::{BuildId, ServiceId};
use crate::model::service::ServiceOrigin;
use crate::model::trust::{Trust, TrustDomain, TrustDomainError};
use claims::{Claims, Grant};
use keys::{PublicKeys, SecretKeys, Signer};
use running::{RunningCall, RunningCalls};
use state::{EarlierSecret, MAX_EARLIER, State, StateFile};

pub use keys::TokenKeyError;
pub use secret_file::SecretFileError;
pub use state::{MAX_REVOCATIONS, Revocation};

/// Tokens are asked to be short-lived; longer ones are refused.
pub const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);
/// How long a secret that was replaced may go on being good.
pub const MAX_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);
/// A token that is larger than this is not even looked at.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
const MAX_NAME_BYTES: usize = 200;

/// Grants that mark the tokens of services and builds.
const SERVICE: &str = "service";
const BUILD: &str = "build";
/// Grant that names the trust domain of its bearer.
const DOMAIN: &str = "domain";

/// A service that a service has deployed, and so on: longer chains are not followed.
const LONGEST_CHAIN: usize = 8;

type OriginOf = dyn Fn(&str) -> Option<ServiceOrigin> + Send + Sync;

/// Checks and makes tokens of one room; cheap to share.
pub struct Access {
    room: String,
    secret_file: PathBuf,
    state_file: StateFile,
    held: RwLock<Held>,
    /// One change of keys or state at a time. Nobody who only checks a token waits for a disk.
    changing: Mutex<()>,
    trust: Trust,
    /// Finds out who deployed a service, by its id. Set once, when the services are known.
    services: OnceLock<Box<OriginOf>>,
    running: RunningCalls,
    /// Keys or revocations were changed: calls under way are asked for their tokens again.
    changed: Notify,
}

/// What tokens are checked with.
struct Held {
    secrets: SecretKeys,
    public: PublicKeys,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    #[error("a participant token of this room is needed")]
    Missing,
    #[error("the token is not a participant token of this room: {0}")]
    Invalid(&'static str),
    #[error("the token of `{name}` expired at {at}")]
    Expired { name: String, at: Timestamp },
    #[error("the tokens of `{name}` that were made before now were revoked")]
    Revoked { name: String },
    #[error(
        "service `{service}` was deployed by `{creator}` before the tokens of `{creator}` were revoked; it must be deployed again"
    )]
    CreatorRevoked { service: String, creator: String },
    #[error("the token is for another room than `{room}`")]
    OtherRoom { room: String },
    #[error(
        "the token's key may not name participant `{name}`: `names` of its `[[token_keys]]` does not list it"
    )]
    ForeignName { name: String },
    #[error(
        "the token's key may not claim trust domain `{domain}`: `domains` of its `[[token_keys]]` does not list it"
    )]
    ForeignDomain { domain: TrustDomain },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    #[error("scope `{given}` is not `userDefault`, `agentDefault`, `full` or a JSON object: {reason}")]
    Scope { given: String, reason: String },
    #[error("a token may be good for at most {} days", MAX_TTL.as_secs() / 86400)]
    Ttl,
    #[error("the name is empty, longer than {MAX_NAME_BYTES} bytes, or has a control character")]
    Name,
    #[error(
        "no participant has this name: names that begin with `{}` stand for others",
        RESERVED_NAMES.join("`, `")
    )]
    ReservedName,
    #[error(transparent)]
    Domain(#[from] TrustDomainError),
    #[error("cannot sign: {0}")]
    Sign(String),
}

/// Why the room's secret was not replaced, or tokens were not revoked.
#[derive(Debug, thiserror::Error)]
pub enum KeyChangeError {
    #[error("a secret may go on being good for at most {} days", MAX_GRACE.as_secs() / 86400)]
    Grace,
    #[error(
        "{MAX_EARLIER} earlier secrets are still good; wait for the end of a grace time, or rotate with none at all"
    )]
    TooManySecrets,
    #[error("the tokens of {MAX_REVOCATIONS} names were revoked already; rotate the secret instead")]
    TooManyRevocations,
    #[error("no caller can have this name")]
    Name,
    #[error(transparent)]
    File(#[from] SecretFileError),
}

/// What a token is for beside its grants.
enum Mark<'a> {
    Participant(Option<TrustDomain>),
    Service(&'a ServiceId),
    Build(&'a BuildId),
}

impl Access {
    /// Reads the room's secret, or makes it at the first start. Blocking.
    pub fn open(room: &str, secret_file: &Path) -> Result<Self, SecretFileError> {
        let secret = secret_file::read_or_create(secret_file)?;
        let state_file = StateFile(secret_file.with_file_name("tokens.json"));
        let state = state_file.read()?;
        let secrets = SecretKeys::new(&secret, &state.live(Timestamp::now()));
        Ok(Self {
            room: room.to_owned(),
            secret_file: secret_file.to_owned(),
            state_file,
            held: RwLock::new(Held { secrets, public: PublicKeys::default(), state }),
            changing: Mutex::new(()),
            trust: Trust::default(),
            services: OnceLock::new(),
            running: RunningCalls::default(),
            changed: Notify::new(),
        })
    }

    /// Takes tokens that were made with the private keys to these, too. Blocking.
    pub fn with_public_keys(self, files: &[TokenKeyFile]) -> Result<Self, TokenKeyError> {
        let public = PublicKeys::read(files)?;
        self.change(|held| held.public = public);
        Ok(self)
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

    /// From now on tokens of services that are gone are refused, and those of services whose creator was revoked after
    /// they were deployed. Said once, at the start.
    pub fn ask_for_services(
        &self,
        origin_of: impl Fn(&str) -> Option<ServiceOrigin> + Send + Sync + 'static,
    ) {
        if self.services.set(Box::new(origin_of)).is_err() {
            tracing::warn!("it was said already where services are asked for");
        }
    }

    /// The caller whom a token names.
    pub fn verify(&self, token: &str) -> Result<Caller, AccessError> {
        let now = Timestamp::now();
        let (signer, claims) = self.claims(token, now)?;
        claims.check_times(now)?;
        let scope = match claims.grant("api") {
            Some(Some(scope)) => serde_json::from_value(scope.clone())
                .map_err(|_| AccessError::Invalid("its `api` grant cannot be read"))?,
            _ => ApiScope::default(),
        };
        let name = self.owner(&signer, &claims)?;
        let before = self.held().state.revoked.get(&name).map(|revocation| revocation.before);
        if before.is_some_and(|before| claims.iat.is_none_or(|iat| iat < before)) {
            return Err(AccessError::Revoked { name });
        }
        self.check_creators(&name)?;
        let claimed = claimed_domain(&signer, &claims)?;
        let caller = Caller::new(name, scope);
        let own = match claims.text_grant(SERVICE) {
            Some(Some(id)) => TrustDomain::of_service(id),
            _ => caller.domain.clone(),
        };
        let domain = self.trust.domain(&caller.name, own, claimed);
        Ok(Caller { domain, ..caller })
    }

    /// A revocation of a participant covers the services that it deployed before, and the services of these: whatever
    /// was started by the one who was revoked has no right that it does not have.
    fn check_creators(&self, caller: &str) -> Result<(), AccessError> {
        let Some(origin_of) = self.services.get() else { return Ok(()) };
        let Some(own) = caller.strip_prefix(SERVICE_NAME) else { return Ok(()) };
        let mut service = own.to_owned();
        for _ in 0..LONGEST_CHAIN {
            let Some(ServiceOrigin { by, at }) = origin_of(&service) else { return Ok(()) };
            let before = self.held().state.revoked.get(&by).map(|revocation| revocation.before);
            if before.is_some_and(|before| at.as_second() < before) {
                return Err(AccessError::CreatorRevoked { service: own.to_owned(), creator: by });
            }
            let Some(behind) = by.strip_prefix(SERVICE_NAME) else { return Ok(()) };
            service = behind.to_owned();
        }
        Ok(())
    }

    /// A call that was admitted with this token begins. It is ended when the token is no longer good.
    pub fn begin(&self, token: String) -> RunningCall {
        self.running.begin(token)
    }

    /// Returns when keys or revocations were changed since this was last asked.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Ends the calls under way whose token is no longer good, and returns their number.
    pub fn end_running(&self) -> usize {
        self.running.end_unless(|token| self.verify(token).map(drop))
    }

    /// Whether a text is a token of this room, good for now or not.
    pub fn is_token(&self, text: &str) -> bool {
        self.claims(text, Timestamp::now()).is_ok()
    }

    /// What a token of this room says, whether or not it holds at the moment.
    fn claims(&self, token: &str, now: Timestamp) -> Result<(Signer, Claims), AccessError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(AccessError::Invalid("it is too long"));
        }
        let (signer, claims) = {
            let held = self.held();
            keys::claims(&held.secrets, &held.public, token, now)?
        };
        match claims.text_grant("room") {
            Some(Some(room)) if room == self.room => Ok((signer, claims)),
            _ => Err(AccessError::OtherRoom { room: self.room.clone() }),
        }
    }

    /// Whose the things are that the bearer makes. A participant is who the token says; a service and a build are what
    /// they are, whatever name they were given.
    fn owner(&self, signer: &Signer, claims: &Claims) -> Result<String, AccessError> {
        let id = match (claims.text_grant(SERVICE), claims.text_grant(BUILD)) {
            (None, None) => {
                let participant = claims.name.clone();
                check_name(&participant).map_err(|_| AccessError::Invalid("no participant has its name"))?;
                return match signer {
                    Signer::Configured(rights) if !rights.names.allow(&participant) => {
                        Err(AccessError::ForeignName { name: participant })
                    }
                    _ => Ok(participant),
                };
            }
            (Some(Some(id)), None) => {
                let exists = self.services.get().is_none_or(|origin_of| origin_of(id).is_some());
                if !exists {
                    return Err(AccessError::Invalid("its service is gone"));
                }
                id.parse::<ServiceId>().ok().map(|id| format!("{SERVICE}:{id}"))
            }
            (None, Some(Some(id))) => id.parse::<BuildId>().ok().map(|id| format!("{BUILD}:{id}")),
            _ => None,
        };
        match (id, signer) {
            (Some(id), Signer::Room) => Ok(id),
            (Some(_), Signer::Configured(_)) => {
                Err(AccessError::Invalid("only the room itself makes tokens of services and builds"))
            }
            (None, _) => Err(AccessError::Invalid("it says of no service or build that there can be")),
        }
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
        check_name(name)?;
        let domain = domain.map(str::parse::<TrustDomain>).transpose()?;
        self.sign(name, &parse_scope(scope)?, ttl, &Mark::Participant(domain))
    }

    /// Makes a token for an instance of a service: one that nobody can take for a participant of its name.
    pub fn mint_for_service(
        &self,
        service: &ServiceId,
        name: &str,
        scope: &str,
        ttl: Duration,
    ) -> Result<String, MintError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(MintError::Name);
        }
        self.sign(name, &parse_scope(scope)?, ttl, &Mark::Service(service)).map(|(token, _)| token)
    }

    /// Makes a token for a build, with a scope that the daemon itself chose.
    pub fn sign_for_build(
        &self,
        build: &BuildId,
        scope: &ApiScope,
        ttl: Duration,
    ) -> Result<String, MintError> {
        self.sign(&format!("{BUILD}:{build}"), scope, ttl, &Mark::Build(build)).map(|(token, _)| token)
    }

    fn sign(
        &self,
        name: &str,
        scope: &ApiScope,
        ttl: Duration,
        mark: &Mark<'_>,
    ) -> Result<(String, Timestamp), MintError> {
        if ttl > MAX_TTL {
            return Err(MintError::Ttl);
        }
        let sign = |error: &dyn std::fmt::Display| MintError::Sign(error.to_string());
        let now = Timestamp::now();
        let expires = now.checked_add(ttl).map_err(|error| sign(&error))?;
        let grant =
            |name: &str, scope: serde_json::Value| Grant { name: name.to_owned(), scope: Some(scope) };
        let scope = serde_json::to_value(scope).map_err(|error| sign(&error))?;
        let (owner, mark) = match mark {
            Mark::Participant(domain) => {
                let domain = domain.as_ref().map(|domain| grant(DOMAIN, domain.as_str().into()));
                (name.to_owned(), domain)
            }
            Mark::Service(id) => (format!("{SERVICE}:{id}"), Some(grant(SERVICE, id.to_string().into()))),
            Mark::Build(id) => (format!("{BUILD}:{id}"), Some(grant(BUILD, id.to_string().into()))),
        };
        // One that is made in the second of a revocation is newer than it.
        let held = self.held();
        let revoked = held.state.revoked.get(&owner).map_or(i64::MIN, |revocation| revocation.before);
        let grants =
            [grant("room", self.room.clone().into()), grant("role", "agent".into()), grant("api", scope)];
        let claims = Claims {
            name: name.to_owned(),
            grants: grants.into_iter().chain(mark).collect(),
            exp: Some(expires.as_second()),
            nbf: None,
            iat: Some(now.as_second().max(revoked)),
        };
        let token = held.secrets.sign(&claims).map_err(|error| sign(&error))?;
        Ok((token, expires))
    }

    /// Replaces the room's secret. Tokens of the one before are good until the moment that is answered, at most, and
    /// none at all where there is no grace. Durable when it returns; blocking.
    pub fn rotate(&self, grace: Duration) -> Result<Timestamp, KeyChangeError> {
        if grace > MAX_GRACE {
            return Err(KeyChangeError::Grace);
        }
        let _changing = self.changing.lock();
        let now = Timestamp::now();
        let until = now.checked_add(grace).map_err(|_| KeyChangeError::Grace)?;
        let mut next = self.held().state.clone();
        next.prune(now);
        if grace.is_zero() {
            next.earlier.clear();
        } else if next.earlier.len() >= MAX_EARLIER {
            return Err(KeyChangeError::TooManySecrets);
        } else {
            next.earlier.push(EarlierSecret::new(&secret_file::read_or_create(&self.secret_file)?, until));
        }
        // Cut off between the two, the secret is both the current one and an earlier one, which changes nothing.
        self.state_file.write(&next)?;
        let secret = secret_file::renew(&self.secret_file)?;
        self.change(|held| {
            held.secrets = SecretKeys::new(&secret, &next.live(now));
            held.state = next;
        });
        Ok(until)
    }

    /// Refuses all tokens of a caller that were made before now, and those of the services that it deployed before now;
    /// calls under way with one of them are ended. Durable when it returns; blocking.
    pub fn revoke(&self, name: &str, by: &str) -> Result<Revocation, KeyChangeError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            return Err(KeyChangeError::Name);
        }
        // A kind of caller without an id: it would revoke nothing.
        if RESERVED_NAMES.contains(&name) {
            return Err(KeyChangeError::Name);
        }
        let _changing = self.changing.lock();
        let mut next = self.held().state.clone();
        if next.revoked.len() >= MAX_REVOCATIONS && !next.revoked.contains_key(name) {
            return Err(KeyChangeError::TooManyRevocations);
        }
        // Tokens tell their age in seconds: those of this second are old.
        let revocation = Revocation { before: Timestamp::now().as_second() + 1, by: by.to_owned() };
        next.revoked.insert(name.to_owned(), revocation.clone());
        self.state_file.write(&next)?;
        self.change(|held| held.state = next);
        Ok(revocation)
    }

    /// Whose tokens were revoked, by name.
    pub fn revocations(&self) -> Vec<(String, Revocation)> {
        self.held()
            .state
            .revoked
            .iter()
            .map(|(name, revocation)| (name.clone(), revocation.clone()))
            .collect()
    }

    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read()
    }

    fn change(&self, change: impl FnOnce(&mut Held)) {
        // Nothing under this lock leaves it half changed.
        change(&mut self.held.write());
        self.changed.notify_one();
    }
}

/// The trust domain that a token claims. Only an operator mints with the room's secret; whoever has a configured key is
/// held to what the configuration lists for it, since a domain is a builder, with all that its builds leave behind.
fn claimed_domain(signer: &Signer, claims: &Claims) -> Result<Option<TrustDomain>, AccessError> {
    let domain: TrustDomain = match claims.text_grant(DOMAIN) {
        None => return Ok(None),
        Some(None) => return Err(AccessError::Invalid("its `domain` grant cannot be read")),
        Some(Some(domain)) => {
            domain.parse().map_err(|_| AccessError::Invalid("its `domain` grant is no trust domain"))?
        }
    };
    match signer {
        Signer::Configured(rights) if !rights.may_claim(&domain) => {
            Err(AccessError::ForeignDomain { domain })
        }
        _ => Ok(Some(domain)),
    }
}

/// Whether a participant can have this name.
fn check_name(name: &str) -> Result<(), MintError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(MintError::Name);
    }
    if RESERVED_NAMES.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(MintError::ReservedName);
    }
    Ok(())
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
mod tests;
