//! Files that hold a secret of this daemon: created by the daemon itself, and readable only by its user.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::model::secret::Secret;

const SECRET_BYTES: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    #[error("the secret file {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the secret file {path} can be read by others (mode {mode:o}); run: chmod 600 {path}")]
    Exposed { path: PathBuf, mode: u32 },
    #[error(
        "the secret file {path} is shorter than {SECRET_BYTES} characters; remove it to have a new one made"
    )]
    Weak { path: PathBuf },
}

/// Reads the secret; creates it with mode 0600 if the file does not exist. Blocking.
pub fn read_or_create(path: &Path) -> Result<Secret<String>, SecretFileError> {
    if let Some(secret) = read(path)? {
        return Ok(secret);
    }
    let io_error = |source| SecretFileError::Io { path: path.to_owned(), source };
    create(path).map_err(io_error)?;
    read(path)?.ok_or_else(|| io_error(io::ErrorKind::NotFound.into()))
}

/// Reads the secret; `None` if the file does not exist. Blocking.
pub fn read(path: &Path) -> Result<Option<Secret<String>>, SecretFileError> {
    let io_error = |source| SecretFileError::Io { path: path.to_owned(), source };
    if !path.try_exists().map_err(io_error)? {
        return Ok(None);
    }
    let mode = fs::metadata(path).map_err(io_error)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Exposed { path: path.to_owned(), mode });
    }
    let secret = fs::read_to_string(path).map_err(io_error)?.trim().to_owned();
    if secret.len() < SECRET_BYTES {
        return Err(SecretFileError::Weak { path: path.to_owned() });
    }
    Ok(Some(Secret::new(secret)))
}

/// Replaces the secret with a new one. The change is durable when this returns. Blocking.
pub(super) fn renew(path: &Path) -> Result<Secret<String>, SecretFileError> {
    let mut bytes = [0u8; SECRET_BYTES];
    rand::fill(&mut bytes);
    let secret = hex::encode(bytes);
    super::state::replace_file(path, secret.as_bytes())
        .map_err(|source| SecretFileError::Io { path: path.to_owned(), source })?;
    Ok(Secret::new(secret))
}

/// Creates the secret in a draft file and hard-links it to its path: a half-written secret never has the final
/// name, and one of two daemons that start at the same time wins.
fn create(path: &Path) -> io::Result<()> {
    let mut bytes = [0u8; SECRET_BYTES];
    rand::fill(&mut bytes);
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(hex::encode(bytes).as_bytes())?;
    file.sync_all()?;
    let linked = match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    fs::remove_file(&draft)?;
    linked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_private_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("room.secret");
        let first = read_or_create(&path).unwrap();
        assert_eq!(first.reveal().len(), 2 * SECRET_BYTES);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_or_create(&path).unwrap().reveal(), first.reveal());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_exposed_or_short_secret_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("room.secret");
        fs::write(&path, "x".repeat(64)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read_or_create(&path), Err(SecretFileError::Exposed { mode: 0o640, .. })));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "short").unwrap();
        assert!(matches!(read_or_create(&path), Err(SecretFileError::Weak { .. })));
    }
}
