//! Namespaces of daemons in containerd.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// Returns the containerd namespace for a state directory: stable across reboots, and different for two daemons on one
/// machine.
pub fn namespace_of_state_dir(state_dir: &Path) -> io::Result<String> {
    let path = state_dir.canonicalize()?;
    let hash = Sha256::digest(path.as_os_str().as_bytes());
    Ok(format!("hearth-{}", hex::encode(&hash[..6])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_directory_has_a_namespace_of_its_own() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of = |path: &Path| namespace_of_state_dir(path).unwrap();
        assert_eq!(of(one.path()), of(&one.path().join(".")));
        assert_ne!(of(one.path()), of(two.path()));
        assert!(namespace_of_state_dir(&one.path().join("missing")).is_err());
    }
}
