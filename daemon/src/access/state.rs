//! Persistent token state beside the room's secret: earlier secrets within their grace time, and revocations.
//! One small file that only the daemon's user can read, replaced as a whole at each change.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::SecretFileError;
use crate::model::secret::Secret;

/// Maximum number of revoked names. Revocations are kept forever, because a token without `iat` may appear at any time.
pub const MAX_REVOCATIONS: usize = 10_000;
/// Maximum number of earlier secrets that are kept.
pub(super) const MAX_EARLIER: usize = 8;

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenState {
    #[serde(default)]
    pub(super) earlier: Vec<EarlierSecret>,
    #[serde(default)]
    pub(super) revoked: BTreeMap<String, TokenRevocation>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EarlierSecret {
    secret: String,
    until: Timestamp,
}

/// Revocation of all tokens of a name that were made before a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRevocation {
    /// Seconds since 1970.
    pub before: i64,
    /// Name of the caller who revoked the tokens.
    pub by: String,
}

impl EarlierSecret {
    pub(super) fn new(secret: &Secret<String>, until: Timestamp) -> Self {
        Self { secret: secret.reveal().clone(), until }
    }
}

impl TokenState {
    /// Returns the secrets whose grace time is not over.
    pub(super) fn valid_secrets(&self, now: Timestamp) -> Vec<(Secret<String>, Timestamp)> {
        let live = self.earlier.iter().filter(|earlier| earlier.until > now);
        live.map(|earlier| (Secret::new(earlier.secret.clone()), earlier.until)).collect()
    }

    /// Removes the secrets whose grace time is over.
    pub(super) fn prune(&mut self, now: Timestamp) {
        self.earlier.retain(|earlier| earlier.until > now);
    }
}

/// Path of the file with the token state.
pub(super) struct StateFile(pub(super) PathBuf);

impl StateFile {
    /// Reads the state. A file that cannot be read is an error, never "nothing was revoked". Blocking.
    pub(super) fn read(&self) -> Result<TokenState, SecretFileError> {
        let failed = |source| SecretFileError::Io { path: self.0.clone(), source };
        match fs::read(&self.0) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| failed(io::Error::other(error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(TokenState::default()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes the state; it is durable when this returns. Blocking.
    pub(super) fn write(&self, state: &TokenState) -> Result<(), SecretFileError> {
        let text = serde_json::to_vec(state).map_err(io::Error::other);
        let written = text.and_then(|text| replace_file(&self.0, &text));
        written.map_err(|source| SecretFileError::Io { path: self.0.clone(), source })
    }
}

/// Replaces the content of a file that only its owner can read, atomically and durably.
pub(super) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    // A draft that a killed daemon left behind may have another mode.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
