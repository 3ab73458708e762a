//! Participant tokens of this room: minting, verification, and conversion into a [`Caller`].
//!
//! A token is a JWT signed with HS256 and the room's secret, or with RS256 or EdDSA and a configured key ([`keys`]).
//! It carries `name`, `exp` and
//! `grants: [{name: "room", scope: ROOM}, {name: "role", scope: "agent"}, {name: "api", scope: {...}}]`.
//! Tokens of services also have `{name: "service", scope: ID}` and are valid for as long as the service exists;
//! tokens of builds have `{name: "build", scope: ID}`. Only the room's own secret can sign these two kinds. A token
//! that was minted into a trust domain has `{name: "domain", scope: DOMAIN}`.
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

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::Notify;

use crate::model::TokenKeyFile;
use crate::model::access::{ApiScope, Caller, RESERVED_NAMES, SERVICE_NAME};
use crate::model::id::{BuildId, ServiceId};
use crate::model::service::ServiceOrigin;
use crate::model::trust::{TrustDomain, TrustDomainError, TrustPolicy};
use claims::{TokenClaims, TokenGrant};
use keys::{PublicKeys, SecretKeys, TokenSigner};
use running::{RunningCall, RunningCalls};
use state::{EarlierSecret, MAX_EARLIER, StateFile, TokenState};

pub use keys::TokenKeyError;
pub use secret_file::SecretFileError;
pub use state::{MAX_REVOCATIONS, TokenRevocation};

/// Maximum lifetime of a token. Tokens are meant to be short-lived; longer ones are refused.
pub const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);
/// Maximum time for which a replaced secret stays valid.
pub const MAX_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Maximum size of a token; larger ones are refused before they are decoded.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
const MAX_NAME_BYTES: usize = 200;

/// Grants that mark the tokens of services and builds.
const SERVICE_GRANT: &str = "service";
const BUILD_GRANT: &str = "build";
/// Grant that names the bearer's trust domain.
const DOMAIN_GRANT: &str = "domain";

/// Maximum number of creators that are followed when a service was deployed by another service, and so on.
const MAX_CREATOR_CHAIN: usize = 8;

type ServiceOriginLookup = dyn Fn(&str) -> Option<ServiceOrigin> + Send + Sync;

/// Mints and verifies the tokens of one room.
pub struct TokenAuthority {
    room: String,
    secret_file: PathBuf,
    state_file: StateFile,
    verification: RwLock<VerificationState>,
    /// Serializes changes of the keys and of the state. Verification does not take it, so it never waits for a disk.
    changing: Mutex<()>,
    trust: TrustPolicy,
    /// Looks up who deployed a service, by the service's id. Set once, when the services have been loaded.
    service_origins: OnceLock<Box<ServiceOriginLookup>>,
    running: RunningCalls,
    /// Signals that keys or revocations were changed, so that the tokens of running calls must be verified again.
    changed: Notify,
}

/// Keys and revocations that tokens are verified against.
struct VerificationState {
    secrets: SecretKeys,
    public: PublicKeys,
    state: TokenState,
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

/// Subject of a token, which decides the grant that it gets beside room, role and api.
enum TokenSubject<'a> {
    Participant(Option<TrustDomain>),
    Service(&'a ServiceId),
    Build(&'a BuildId),
}

impl TokenAuthority {
    /// Reads the room's secret, or creates it at the first start. Blocking.
    pub fn open(room: &str, secret_file: &Path) -> Result<Self, SecretFileError> {
        let secret = secret_file::read_or_create(secret_file)?;
        let state_file = StateFile(secret_file.with_file_name("tokens.json"));
        let state = state_file.read()?;
        let secrets = SecretKeys::new(&secret, &state.valid_secrets(Timestamp::now()));
        Ok(Self {
            room: room.to_owned(),
            secret_file: secret_file.to_owned(),
            state_file,
            verification: RwLock::new(VerificationState { secrets, public: PublicKeys::default(), state }),
            changing: Mutex::new(()),
            trust: TrustPolicy::default(),
            service_origins: OnceLock::new(),
            running: RunningCalls::default(),
            changed: Notify::new(),
        })
    }

    /// Also accepts tokens that were signed with the private keys of these public keys. Blocking.
    pub fn with_public_keys(self, files: &[TokenKeyFile]) -> Result<Self, TokenKeyError> {
        let public = PublicKeys::read(files)?;
        self.change(|held| held.public = public);
        Ok(self)
    }

    /// Assigns callers to the trust domains that the operator configured.
    #[must_use]
    pub fn with_trust(self, trust: TrustPolicy) -> Self {
        Self { trust, ..self }
    }

    /// Returns the caller on the unix socket, identified by its user id.
    pub fn local_caller(&self, uid: u32) -> Caller {
        let caller = Caller::local(uid);
        let domain = self.trust.domain_of(&caller.name, caller.domain, None);
        Caller { domain, ..caller }
    }

    /// Sets the lookup of service origins, once, at start. From then on, tokens of services that no longer
    /// exist are refused, and so are tokens of services whose creator was revoked after deploying them.
    pub fn set_service_origins(
        &self,
        origin_of: impl Fn(&str) -> Option<ServiceOrigin> + Send + Sync + 'static,
    ) {
        if self.service_origins.set(Box::new(origin_of)).is_err() {
            tracing::warn!("service origin lookup was already set");
        }
    }

    /// Verifies a token and returns its caller.
    pub fn verify(&self, token: &str) -> Result<Caller, AccessError> {
        let now = Timestamp::now();
        let (signer, claims) = self.room_claims(token, now)?;
        claims.check_times(now)?;
        let scope = match claims.grant("api") {
            Some(Some(scope)) => serde_json::from_value(scope.clone())
                .map_err(|_| AccessError::Invalid("its `api` grant cannot be read"))?,
            _ => ApiScope::default(),
        };
        let name = self.caller_name(&signer, &claims)?;
        let before = self.verification().state.revoked.get(&name).map(|revocation| revocation.before);
        if before.is_some_and(|before| claims.iat.is_none_or(|iat| iat < before)) {
            return Err(AccessError::Revoked { name });
        }
        self.check_creators(&name)?;
        let claimed = claimed_domain(&signer, &claims)?;
        let caller = Caller::new(name, scope);
        let own = match claims.text_grant(SERVICE_GRANT) {
            Some(Some(id)) => TrustDomain::of_service(id),
            _ => caller.domain.clone(),
        };
        let domain = self.trust.domain_of(&caller.name, own, claimed);
        Ok(Caller { domain, ..caller })
    }

    /// Checks that no creator of a calling service is revoked. The revocation of a participant also covers the
    /// services that it deployed before, and the services that these deployed in turn.
    fn check_creators(&self, caller: &str) -> Result<(), AccessError> {
        let Some(origin_of) = self.service_origins.get() else { return Ok(()) };
        let Some(own) = caller.strip_prefix(SERVICE_NAME) else { return Ok(()) };
        let mut service = own.to_owned();
        for _ in 0..MAX_CREATOR_CHAIN {
            let Some(ServiceOrigin { by, at }) = origin_of(&service) else { return Ok(()) };
            let before = self.verification().state.revoked.get(&by).map(|revocation| revocation.before);
            if before.is_some_and(|before| at.as_second() < before) {
                return Err(AccessError::CreatorRevoked { service: own.to_owned(), creator: by });
            }
            let Some(behind) = by.strip_prefix(SERVICE_NAME) else { return Ok(()) };
            service = behind.to_owned();
        }
        Ok(())
    }

    /// Registers a running call that was admitted with this token. The call is ended when the token becomes invalid.
    pub fn track_call(&self, token: String) -> RunningCall {
        self.running.begin(token)
    }

    /// Waits until keys or revocations have been changed since the last wait.
    pub async fn keys_changed(&self) {
        self.changed.notified().await;
    }

    /// Ends the running calls whose token is no longer valid, and returns their number.
    pub fn end_invalid_calls(&self) -> usize {
        self.running.end_invalid(|token| self.verify(token).map(drop))
    }

    /// Reports whether a text is a token of this room, currently valid or not.
    pub fn is_token(&self, text: &str) -> bool {
        self.room_claims(text, Timestamp::now()).is_ok()
    }

    /// Returns the claims of a token of this room, whether or not it is currently valid.
    fn room_claims(&self, token: &str, now: Timestamp) -> Result<(TokenSigner, TokenClaims), AccessError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(AccessError::Invalid("it is too long"));
        }
        let (signer, claims) = {
            let held = self.verification();
            keys::verified_claims(&held.secrets, &held.public, token, now)?
        };
        match claims.text_grant("room") {
            Some(Some(room)) if room == self.room => Ok((signer, claims)),
            _ => Err(AccessError::OtherRoom { room: self.room.clone() }),
        }
    }

    /// Returns the caller name of the bearer, which owns what the bearer creates. Participants have the name in
    /// the token; services and builds are named by their ids, whatever name the token has.
    fn caller_name(&self, signer: &TokenSigner, claims: &TokenClaims) -> Result<String, AccessError> {
        let id = match (claims.text_grant(SERVICE_GRANT), claims.text_grant(BUILD_GRANT)) {
            (None, None) => {
                let participant = claims.name.clone();
                check_name(&participant).map_err(|_| AccessError::Invalid("no participant has its name"))?;
                return match signer {
                    TokenSigner::ConfiguredKey(rights) if !rights.names.allows(&participant) => {
                        Err(AccessError::ForeignName { name: participant })
                    }
                    _ => Ok(participant),
                };
            }
            (Some(Some(id)), None) => {
                let exists = self.service_origins.get().is_none_or(|origin_of| origin_of(id).is_some());
                if !exists {
                    return Err(AccessError::Invalid("its service is gone"));
                }
                id.parse::<ServiceId>().ok().map(|id| format!("{SERVICE_GRANT}:{id}"))
            }
            (None, Some(Some(id))) => id.parse::<BuildId>().ok().map(|id| format!("{BUILD_GRANT}:{id}")),
            _ => None,
        };
        match (id, signer) {
            (Some(id), TokenSigner::Room) => Ok(id),
            (Some(_), TokenSigner::ConfiguredKey(_)) => {
                Err(AccessError::Invalid("only the room itself makes tokens of services and builds"))
            }
            (None, _) => Err(AccessError::Invalid("it says of no service or build that there can be")),
        }
    }

    /// Mints a token. `scope` is a word or JSON, in the format of `hearth token mint --scope`.
    pub fn mint(&self, name: &str, scope: &str, ttl: Duration) -> Result<(String, Timestamp), MintError> {
        self.mint_into(None, name, scope, ttl)
    }

    /// Like [`mint`](Self::mint), for a bearer whose builds use the builder of the given trust domain.
    pub fn mint_into(
        &self,
        domain: Option<&str>,
        name: &str,
        scope: &str,
        ttl: Duration,
    ) -> Result<(String, Timestamp), MintError> {
        check_name(name)?;
        let domain = domain.map(str::parse::<TrustDomain>).transpose()?;
        self.sign(name, &parse_scope(scope)?, ttl, &TokenSubject::Participant(domain))
    }

    /// Mints a token for an instance of a service. Such a token is never mistaken for one of a participant of
    /// that name.
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
        self.sign(name, &parse_scope(scope)?, ttl, &TokenSubject::Service(service)).map(|(token, _)| token)
    }

    /// Mints a token for a build, with a scope that the daemon itself chose.
    pub fn sign_for_build(
        &self,
        build: &BuildId,
        scope: &ApiScope,
        ttl: Duration,
    ) -> Result<String, MintError> {
        self.sign(&format!("{BUILD_GRANT}:{build}"), scope, ttl, &TokenSubject::Build(build))
            .map(|(token, _)| token)
    }

    fn sign(
        &self,
        name: &str,
        scope: &ApiScope,
        ttl: Duration,
        mark: &TokenSubject<'_>,
    ) -> Result<(String, Timestamp), MintError> {
        if ttl > MAX_TTL {
            return Err(MintError::Ttl);
        }
        let sign = |error: &dyn std::fmt::Display| MintError::Sign(error.to_string());
        let now = Timestamp::now();
        let expires = now.checked_add(ttl).map_err(|error| sign(&error))?;
        let grant =
            |name: &str, scope: serde_json::Value| TokenGrant { name: name.to_owned(), scope: Some(scope) };
        let scope = serde_json::to_value(scope).map_err(|error| sign(&error))?;
        let (owner, mark) = match mark {
            TokenSubject::Participant(domain) => {
                let domain = domain.as_ref().map(|domain| grant(DOMAIN_GRANT, domain.as_str().into()));
                (name.to_owned(), domain)
            }
            TokenSubject::Service(id) => {
                (format!("{SERVICE_GRANT}:{id}"), Some(grant(SERVICE_GRANT, id.to_string().into())))
            }
            TokenSubject::Build(id) => {
                (format!("{BUILD_GRANT}:{id}"), Some(grant(BUILD_GRANT, id.to_string().into())))
            }
        };
        // A token that is minted in the same second as a revocation must count as newer than the revocation.
        let held = self.verification();
        let revoked = held.state.revoked.get(&owner).map_or(i64::MIN, |revocation| revocation.before);
        let grants =
            [grant("room", self.room.clone().into()), grant("role", "agent".into()), grant("api", scope)];
        let claims = TokenClaims {
            name: name.to_owned(),
            grants: grants.into_iter().chain(mark).collect(),
            exp: Some(expires.as_second()),
            nbf: None,
            iat: Some(now.as_second().max(revoked)),
        };
        let token = held.secrets.sign(&claims).map_err(|error| sign(&error))?;
        Ok((token, expires))
    }

    /// Replaces the room's secret. Tokens signed with the previous secret stay valid until the returned time at
    /// most; without a grace time they are invalid at once. The change is durable when this returns. Blocking.
    pub fn rotate(&self, grace: Duration) -> Result<Timestamp, KeyChangeError> {
        if grace > MAX_GRACE {
            return Err(KeyChangeError::Grace);
        }
        let _changing = self.changing.lock();
        let now = Timestamp::now();
        let until = now.checked_add(grace).map_err(|_| KeyChangeError::Grace)?;
        let mut next = self.verification().state.clone();
        next.prune(now);
        if grace.is_zero() {
            next.earlier.clear();
        } else if next.earlier.len() >= MAX_EARLIER {
            return Err(KeyChangeError::TooManySecrets);
        } else {
            next.earlier.push(EarlierSecret::new(&secret_file::read_or_create(&self.secret_file)?, until));
        }
        // If the daemon stops between the two writes, the secret is both the current and an earlier one, which
        // is harmless.
        self.state_file.write(&next)?;
        let secret = secret_file::renew(&self.secret_file)?;
        self.change(|held| {
            held.secrets = SecretKeys::new(&secret, &next.valid_secrets(now));
            held.state = next;
        });
        Ok(until)
    }

    /// Revokes all tokens of a caller that were made before now, and those of the services that it deployed
    /// before now. Running calls with one of them are ended. The change is durable when this returns. Blocking.
    pub fn revoke(&self, name: &str, by: &str) -> Result<TokenRevocation, KeyChangeError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            return Err(KeyChangeError::Name);
        }
        // A reserved prefix without an id would revoke nothing.
        if RESERVED_NAMES.contains(&name) {
            return Err(KeyChangeError::Name);
        }
        let _changing = self.changing.lock();
        let mut next = self.verification().state.clone();
        if next.revoked.len() >= MAX_REVOCATIONS && !next.revoked.contains_key(name) {
            return Err(KeyChangeError::TooManyRevocations);
        }
        // Token times have a resolution of one second: tokens of the current second count as older.
        let revocation = TokenRevocation { before: Timestamp::now().as_second() + 1, by: by.to_owned() };
        next.revoked.insert(name.to_owned(), revocation.clone());
        self.state_file.write(&next)?;
        self.change(|held| held.state = next);
        Ok(revocation)
    }

    /// Returns the revocations, each with the name whose tokens it revokes.
    pub fn revocations(&self) -> Vec<(String, TokenRevocation)> {
        self.verification()
            .state
            .revoked
            .iter()
            .map(|(name, revocation)| (name.clone(), revocation.clone()))
            .collect()
    }

    fn verification(&self) -> RwLockReadGuard<'_, VerificationState> {
        self.verification.read()
    }

    fn change(&self, change: impl FnOnce(&mut VerificationState)) {
        // A panic while the lock is held leaves the state consistent: every change is a whole assignment.
        change(&mut self.verification.write());
        self.changed.notify_one();
    }
}

/// Returns the trust domain that a token claims. The room's secret is only used by an operator, who may claim
/// any domain. Holders of a configured key are limited to the domains in the configuration, because a domain
/// shares a builder and everything that its builds leave there.
fn claimed_domain(signer: &TokenSigner, claims: &TokenClaims) -> Result<Option<TrustDomain>, AccessError> {
    let domain: TrustDomain = match claims.text_grant(DOMAIN_GRANT) {
        None => return Ok(None),
        Some(None) => return Err(AccessError::Invalid("its `domain` grant cannot be read")),
        Some(Some(domain)) => {
            domain.parse().map_err(|_| AccessError::Invalid("its `domain` grant is no trust domain"))?
        }
    };
    match signer {
        TokenSigner::ConfiguredKey(rights) if !rights.may_claim(&domain) => {
            Err(AccessError::ForeignDomain { domain })
        }
        _ => Ok(Some(domain)),
    }
}

/// Checks that a participant can have this name.
fn check_name(name: &str) -> Result<(), MintError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(MintError::Name);
    }
    if RESERVED_NAMES.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(MintError::ReservedName);
    }
    Ok(())
}

/// Parses the scope of a token in the format of `--scope` and `--env-token`: a word, or JSON.
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
