//! The keys that verify the room's tokens. Each key is for one algorithm, which the key decides and never the
//! token: a public key must not be accepted as an HMAC secret, whatever a token's header says.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};

use super::AccessError;
use super::claims::TokenClaims;
use crate::model::secret::Secret;
use crate::model::{IssuerRights, TokenAlgorithm, TokenKeyFile};

/// Maximum number of public keys. Each token is tried with every key of its algorithm.
const MAX_PUBLIC_KEYS: usize = 16;
/// Length in bytes of an RSA key of 2048 bits in PKCS #1 format.
const MIN_RSA_BYTES: usize = 256;
const MAX_FILE_BYTES: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    #[error("token key {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("token key {path}: expected a public key for {algorithm} in PEM (`-----BEGIN PUBLIC KEY-----`)")]
    Malformed { path: PathBuf, algorithm: TokenAlgorithm },
    #[error("token key {path}: an RSA key must have 2048 bits at least")]
    Weak { path: PathBuf },
    #[error("at most {MAX_PUBLIC_KEYS} public keys of tokens can be configured")]
    TooMany,
}

/// Key that signed a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenSigner {
    /// This daemon, with the room's secret.
    Room,
    /// A holder of the private key of a configured public key.
    ConfiguredKey(Arc<IssuerRights>),
}

struct TokenVerifier {
    key: DecodingKey,
    validation: Validation,
}

/// The room's secrets at one moment, replaced as a whole when they are rotated.
pub(super) struct SecretKeys {
    signing: EncodingKey,
    current: TokenVerifier,
    /// Secrets before the current one, each with the end of its grace time.
    earlier: Vec<(TokenVerifier, Timestamp)>,
}

/// The configured public keys.
#[derive(Default)]
pub(super) struct PublicKeys(Vec<PublicKey>);

struct PublicKey {
    algorithm: TokenAlgorithm,
    verifier: TokenVerifier,
    rights: Arc<IssuerRights>,
}

impl TokenVerifier {
    fn new(key: DecodingKey, algorithm: Algorithm) -> Self {
        let mut validation = Validation::new(algorithm);
        // Times are checked afterwards, so that the error for an expired token can name its bearer.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        // The `room` grant takes the place of an audience.
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Self { key, validation }
    }

    fn of_secret(secret: &Secret<String>) -> Self {
        Self::new(DecodingKey::from_secret(secret.reveal().as_bytes()), Algorithm::HS256)
    }

    fn claims(&self, token: &str) -> Result<TokenClaims, AccessError> {
        let decoded = jsonwebtoken::decode::<TokenClaims>(token, &self.key, &self.validation);
        decoded.map(|token| token.claims).map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => AccessError::Invalid("its signature does not match"),
            _ => AccessError::Invalid("it cannot be read"),
        })
    }
}

impl PublicKeys {
    /// Reads the configured public keys. Blocking.
    pub(super) fn read(files: &[TokenKeyFile]) -> Result<Self, TokenKeyError> {
        if files.len() > MAX_PUBLIC_KEYS {
            return Err(TokenKeyError::TooMany);
        }
        let keys = files.iter().map(|configured| {
            let TokenKeyFile { algorithm, file, .. } = configured;
            let path = || file.clone();
            let failed = |source| TokenKeyError::Io { path: path(), source };
            if fs::metadata(file).map_err(failed)?.len() > MAX_FILE_BYTES {
                return Err(TokenKeyError::Malformed { path: path(), algorithm: *algorithm });
            }
            let pem = fs::read(file).map_err(failed)?;
            let (key, of) = match algorithm {
                TokenAlgorithm::Rs256 => (DecodingKey::from_rsa_pem(&pem), Algorithm::RS256),
                TokenAlgorithm::EdDsa => (DecodingKey::from_ed_pem(&pem), Algorithm::EdDSA),
            };
            let key = key.map_err(|_| TokenKeyError::Malformed { path: path(), algorithm: *algorithm })?;
            if *algorithm == TokenAlgorithm::Rs256 && key.as_bytes().len() < MIN_RSA_BYTES {
                return Err(TokenKeyError::Weak { path: path() });
            }
            let rights = Arc::new(configured.rights());
            Ok(PublicKey { algorithm: *algorithm, verifier: TokenVerifier::new(key, of), rights })
        });
        keys.collect::<Result<_, _>>().map(Self)
    }
}

impl SecretKeys {
    pub(super) fn new(secret: &Secret<String>, earlier: &[(Secret<String>, Timestamp)]) -> Self {
        Self {
            signing: EncodingKey::from_secret(secret.reveal().as_bytes()),
            current: TokenVerifier::of_secret(secret),
            earlier: earlier
                .iter()
                .map(|(secret, until)| (TokenVerifier::of_secret(secret), *until))
                .collect(),
        }
    }

    pub(super) fn sign(&self, claims: &TokenClaims) -> Result<String, jsonwebtoken::errors::Error> {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &self.signing)
    }
}

/// Returns the claims of a token that one of the keys signed. The signature is compared in constant time.
pub(super) fn verified_claims(
    secrets: &SecretKeys,
    public: &PublicKeys,
    token: &str,
    now: Timestamp,
) -> Result<(TokenSigner, TokenClaims), AccessError> {
    let unreadable = AccessError::Invalid("it cannot be read");
    let head = token.split('.').next().unwrap_or_default();
    let head = URL_SAFE_NO_PAD.decode(head).map_err(|_| unreadable.clone())?;
    let head: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&head).map_err(|_| unreadable)?;
    // RFC 7515, section 4.1.11: a token with an unsupported critical extension must be rejected.
    if head.contains_key("crit") {
        return Err(AccessError::Invalid("its header asks for extensions that are not known here (`crit`)"));
    }
    let mut failure =
        AccessError::Invalid("it is not signed with HS256, nor with RS256 or EdDSA and a configured key");
    let mut read = |verifier: &TokenVerifier| verifier.claims(token).map_err(|error| failure = error).ok();
    // An unknown algorithm matches no configured key.
    let signed = match head.get("alg").and_then(serde_json::Value::as_str).unwrap_or_default() {
        "HS256" => {
            let live = secrets.earlier.iter().filter(|(_, until)| *until > now).map(|(verifier, _)| verifier);
            std::iter::once(&secrets.current)
                .chain(live)
                .find_map(read)
                .map(|claims| (TokenSigner::Room, claims))
        }
        name => {
            let mut keys = public.0.iter().filter(|key| key.algorithm.as_str() == name);
            keys.find_map(|key| {
                Some((TokenSigner::ConfiguredKey(Arc::clone(&key.rights)), read(&key.verifier)?))
            })
        }
    };
    signed.ok_or(failure)
}
