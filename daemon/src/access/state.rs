//! What must outlive the daemon beside the room's secret: secrets that are still good for a while, and whose tokens were
//! revoked. One small file that only the daemon's user reads, replaced as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::SecretFileError;
use crate::model::secret::Secret;

/// Names whose tokens were revoked. Each stays: a token that says nothing of its age may turn up at any time.
pub const MAX_REVOCATIONS: usize = 10_000;
/// Secrets before the current one.
pub(super) const MAX_EARLIER: usize = 8;

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    #[serde(default)]
    pub(super) earlier: Vec<EarlierSecret>,
    #[serde(default)]
    pub(super) revoked: BTreeMap<String, Revocation>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EarlierSecret {
    secret: String,
    until: Timestamp,
}

/// Tokens of a name that were made before a moment are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Seconds since 1970.
    pub before: i64,
    /// Name of the caller who revoked them.
    pub by: String,
}

impl EarlierSecret {
    pub(super) fn new(secret: &Secret<String>, until: Timestamp) -> Self {
        Self { secret: secret.reveal().clone(), until }
    }
}

impl State {
    /// Secrets whose grace time is not over.
    pub(super) fn live(&self, now: Timestamp) -> Vec<(Secret<String>, Timestamp)> {
        let live = self.earlier.iter().filter(|earlier| earlier.until > now);
        live.map(|earlier| (Secret::new(earlier.secret.clone()), earlier.until)).collect()
    }

    /// Forgets secrets whose grace time is over.
    pub(super) fn prune(&mut self, now: Timestamp) {
        self.earlier.retain(|earlier| earlier.until > now);
    }
}

/// Where the state is kept.
pub(super) struct StateFile(pub(super) PathBuf);

impl StateFile {
    /// Blocking. A file that cannot be read is an error and never "nothing was revoked".
    pub(super) fn read(&self) -> Result<State, SecretFileError> {
        let failed = |source| SecretFileError::Io { path: self.0.clone(), source };
        match fs::read(&self.0) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| failed(io::Error::other(error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Durable when it returns. Blocking.
    pub(super) fn write(&self, state: &State) -> Result<(), SecretFileError> {
        let text = serde_json::to_vec(state).map_err(io::Error::other);
        let written = text.and_then(|text| replace(&self.0, &text));
        written.map_err(|source| SecretFileError::Io { path: self.0.clone(), source })
    }
}

/// Gives a file that only its owner reads other content: all of it or none, whatever happens midway.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    // What a killed daemon left may have another mode.
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
