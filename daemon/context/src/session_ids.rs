//! Session ids: names for versions of trees, by which BuildKit knows them.
//!
//! An id is a keyed hash of what it identifies (lineage, digest, times). The key is a secret of this state
//! directory: the same tree has the same id after a restart, and nobody else can create a session with that
//! id. An id that may stand for more than one tree is *retired*; the same tree then gets another id.
//!
//! ```text
//! context/session.key   32 random bytes, mode 0600
//! context/retired       ids in hexadecimal, one per line, the oldest first
//! ```

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// Maximum number of retired ids. Beyond it the secret is replaced, which retires all ids at once.
const MAX_RETIRED: usize = 10_000;

/// Derives session ids and records the retired ones.
pub struct SessionIds {
    directory: PathBuf,
    state: Mutex<SessionIdState>,
}

struct SessionIdState {
    secret: [u8; 32],
    retired: HashSet<String>,
}

impl SessionIds {
    /// Opens the secret and the retired ids of a directory, and creates the secret if there is none.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let secret = read_secret(&directory.join("session.key"))?;
        let retired = match fs::read_to_string(directory.join("retired")) {
            Ok(text) => text.lines().map(str::to_owned).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => HashSet::new(),
            Err(error) => return Err(error),
        };
        let state = SessionIdState { secret: secret.unwrap_or_else(rand::random), retired };
        let versions = Self { directory: directory.to_owned(), state: Mutex::new(state) };
        if secret.is_none() {
            versions.replace_secret(&mut versions.state.lock())?;
        }
        Ok(versions)
    }

    /// Returns the id for a list of parts: equal parts give equal ids until the id is retired.
    pub fn derive(&self, parts: &[&[u8]]) -> String {
        let state = self.state.lock();
        let mut round = 0u64;
        loop {
            let mut sum = blake3::Hasher::new_keyed(&state.secret);
            for part in parts.iter().copied().chain([round.to_le_bytes().as_slice()]) {
                sum.update(&(part.len() as u64).to_le_bytes());
                sum.update(part);
            }
            let name = hex::encode(&sum.finalize().as_bytes()[..20]);
            if !state.retired.contains(&name) {
                return name;
            }
            round += 1;
        }
    }

    /// Retires an id: it is never derived again. Durable when this returns.
    pub fn retire(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.retired.len() >= MAX_RETIRED {
            return self.replace_secret(&mut state);
        }
        if state.retired.insert(name.to_owned()) {
            let mut file = File::options().append(true).create(true).open(self.directory.join("retired"))?;
            writeln!(file, "{name}")?;
            file.sync_data()?;
        }
        Ok(())
    }

    /// Replaces the secret, which makes all earlier ids unreachable.
    fn replace_secret(&self, state: &mut SessionIdState) -> io::Result<()> {
        state.secret = rand::random();
        state.retired.clear();
        let new = self.directory.join("session.key.new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&state.secret)?;
        file.sync_all()?;
        fs::rename(new, self.directory.join("session.key"))?;
        match fs::remove_file(self.directory.join("retired")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Returns `None` when there is no secret or a damaged one: with another secret every tree is new to
/// BuildKit, which only costs one full transfer.
fn read_secret(path: &Path) -> io::Result<Option<[u8; 32]>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut secret = [0; 32];
    match file.read_exact(&mut secret) {
        Ok(()) => Ok(Some(secret)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::warn!(path = %path.display(), "replaced a damaged context session key");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_keeps_its_name_over_restarts_and_only_in_its_own_state_directory() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = SessionIds::open(one.path()).unwrap().derive(&[b"a", b"b"]);
        let again = SessionIds::open(one.path()).unwrap();
        assert_eq!(again.derive(&[b"a", b"b"]), name);
        assert_ne!(again.derive(&[b"ab", b""]), name);
        assert_ne!(SessionIds::open(two.path()).unwrap().derive(&[b"a", b"b"]), name);
        let mode =
            std::os::unix::fs::MetadataExt::mode(&fs::metadata(one.path().join("session.key")).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_retired_name_never_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let versions = SessionIds::open(directory.path()).unwrap();
        let (first, other) = (versions.derive(&[b"a"]), versions.derive(&[b"b"]));
        versions.retire(&first).unwrap();
        let second = versions.derive(&[b"a"]);
        assert_ne!(second, first);
        assert_eq!(versions.derive(&[b"b"]), other);
        versions.retire(&second).unwrap();
        let restarted = SessionIds::open(directory.path()).unwrap();
        assert!(![first, second].contains(&restarted.derive(&[b"a"])));
    }

    #[test]
    fn with_too_many_retired_names_all_names_are_new() {
        let directory = tempfile::tempdir().unwrap();
        let versions = SessionIds::open(directory.path()).unwrap();
        let before = versions.derive(&[b"a"]);
        versions.state.lock().retired.extend((0..MAX_RETIRED).map(|n| n.to_string()));
        versions.retire("x").unwrap();
        let after = versions.derive(&[b"a"]);
        assert_ne!(after, before);
        assert!(versions.state.lock().retired.is_empty());
        assert_eq!(SessionIds::open(directory.path()).unwrap().derive(&[b"a"]), after);
    }

    #[test]
    fn a_damaged_key_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let before = SessionIds::open(directory.path()).unwrap().derive(&[b"a"]);
        fs::write(directory.path().join("session.key"), "short").unwrap();
        let after = SessionIds::open(directory.path()).unwrap().derive(&[b"a"]);
        assert_ne!(after, before);
        assert_eq!(SessionIds::open(directory.path()).unwrap().derive(&[b"a"]), after);
    }
}
