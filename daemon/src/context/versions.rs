//! Names for versions of trees, which BuildKit knows them by.
//!
//! A name is made of what it stands for (lineage, digest, times) and a secret of this state directory:
//! the same tree has the same name after any restart, and nobody else can make a session of that name.
//! A name that may stand for more than one tree is *retired*; the same tree then gets another one.
//!
//! ```text
//! context/session.key   32 random bytes, mode 0600
//! context/retired       names in hexadecimal, one a line, the oldest first
//! ```

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// Retired names that are remembered. Beyond that the secret is replaced, which retires all there are.
const MOST_RETIRED: usize = 10_000;

pub struct Versions {
    directory: PathBuf,
    state: Mutex<State>,
}

struct State {
    secret: [u8; 32],
    retired: HashSet<String>,
}

impl Versions {
    /// Opens what is kept in a directory, or begins it.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let secret = read_secret(&directory.join("session.key"))?;
        let retired = match fs::read_to_string(directory.join("retired")) {
            Ok(text) => text.lines().map(str::to_owned).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => HashSet::new(),
            Err(error) => return Err(error),
        };
        let state = State { secret: secret.unwrap_or_else(rand::random), retired };
        let versions = Self { directory: directory.to_owned(), state: Mutex::new(state) };
        if secret.is_none() {
            versions.renew(&mut versions.state.lock())?;
        }
        Ok(versions)
    }

    /// The name of what the parts tell apart.
    pub fn name(&self, parts: &[&[u8]]) -> String {
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

    /// Lets a name stand for nothing any more. Durable when this returns.
    pub fn retire(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.retired.len() >= MOST_RETIRED {
            return self.renew(&mut state);
        }
        if state.retired.insert(name.to_owned()) {
            let mut file = File::options().append(true).create(true).open(self.directory.join("retired"))?;
            writeln!(file, "{name}")?;
            file.sync_data()?;
        }
        Ok(())
    }

    /// Another secret: all names of the old one are gone.
    fn renew(&self, state: &mut State) -> io::Result<()> {
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

/// None when there is no secret, or none that can be used: another one makes every tree new, no more.
fn read_secret(path: &Path) -> io::Result<Option<[u8; 32]>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut secret = [0; 32];
    match file.read_exact(&mut secret) {
        Ok(()) => Ok(Some(secret)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::warn!(path = %path.display(), "the key of context sessions was damaged and is made anew");
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
        let name = Versions::open(one.path()).unwrap().name(&[b"a", b"b"]);
        let again = Versions::open(one.path()).unwrap();
        assert_eq!(again.name(&[b"a", b"b"]), name);
        assert_ne!(again.name(&[b"ab", b""]), name);
        assert_ne!(Versions::open(two.path()).unwrap().name(&[b"a", b"b"]), name);
        let mode =
            std::os::unix::fs::MetadataExt::mode(&fs::metadata(one.path().join("session.key")).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_retired_name_never_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let versions = Versions::open(directory.path()).unwrap();
        let (first, other) = (versions.name(&[b"a"]), versions.name(&[b"b"]));
        versions.retire(&first).unwrap();
        let second = versions.name(&[b"a"]);
        assert_ne!(second, first);
        assert_eq!(versions.name(&[b"b"]), other);
        versions.retire(&second).unwrap();
        let restarted = Versions::open(directory.path()).unwrap();
        assert!(![first, second].contains(&restarted.name(&[b"a"])));
    }

    #[test]
    fn with_too_many_retired_names_all_names_are_new() {
        let directory = tempfile::tempdir().unwrap();
        let versions = Versions::open(directory.path()).unwrap();
        let before = versions.name(&[b"a"]);
        versions.state.lock().retired.extend((0..MOST_RETIRED).map(|n| n.to_string()));
        versions.retire("x").unwrap();
        let after = versions.name(&[b"a"]);
        assert_ne!(after, before);
        assert!(versions.state.lock().retired.is_empty());
        assert_eq!(Versions::open(directory.path()).unwrap().name(&[b"a"]), after);
    }

    #[test]
    fn a_damaged_key_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let before = Versions::open(directory.path()).unwrap().name(&[b"a"]);
        fs::write(directory.path().join("session.key"), "short").unwrap();
        let after = Versions::open(directory.path()).unwrap().name(&[b"a"]);
        assert_ne!(after, before);
        assert_eq!(Versions::open(directory.path()).unwrap().name(&[b"a"]), after);
    }
}
