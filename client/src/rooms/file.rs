//! The rooms file, `~/.config/hearth/rooms.toml`:
//!
//! ```toml
//! current = "studio"
//!
//! [rooms.studio]
//! addr = "http://10.0.0.5:4327"
//! token_file = "/home/me/studio.token"   # read again at each command
//!
//! [rooms.lab]
//! addr = "unix:///srv/lab/hearth.sock"
//! token = "eyJ..."                       # from `--token-file -`
//! ```
//!
//! The file may contain tokens, so it is written atomically with mode 0600.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::RoomError;

/// Content of the rooms file.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoomsFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default)]
    pub rooms: BTreeMap<String, RoomEntry>,
}

/// An entry of the rooms file. It has no `Debug`, because it may contain a token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoomEntry {
    pub addr: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl RoomsFile {
    /// Returns the path of the file by the XDG rules.
    pub fn path() -> Result<PathBuf, RoomError> {
        let dir = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
        let config = dir("XDG_CONFIG_HOME").or_else(|| dir("HOME").map(|home| home.join(".config")));
        Ok(config.ok_or(RoomError::NoHome)?.join("hearth/rooms.toml"))
    }

    /// Reads the file. A missing file means that no rooms are registered.
    pub fn read(path: &Path) -> Result<Self, RoomError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(RoomError::File { action: "read", path: path.to_owned(), source }),
        };
        toml::from_str(&text).map_err(|error| {
            // The full message would quote the line, which may contain a token.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            RoomError::Malformed {
                path: path.to_owned(),
                reason: format!("line {line}: {}", error.message()),
            }
        })
    }

    pub fn write(&self, path: &Path) -> Result<(), RoomError> {
        let failed = |source| RoomError::File { action: "write", path: path.to_owned(), source };
        let text = toml::to_string(self)
            .map_err(|error| RoomError::Malformed { path: path.to_owned(), reason: error.to_string() })?;
        let dir = path.parent().ok_or(RoomError::NoHome)?;
        std::fs::create_dir_all(dir).map_err(failed)?;
        // Temporary files are created with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Formats the names for messages: `the rooms file has a, b`.
    pub(crate) fn names_for_message(&self) -> String {
        if self.rooms.is_empty() {
            return "the rooms file is empty".to_owned();
        }
        let names: Vec<&str> = self.rooms.keys().map(String::as_str).collect();
        format!("the rooms file has {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_file_survives_a_round_trip_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hearth/rooms.toml");
        assert!(RoomsFile::read(&path).unwrap() == RoomsFile::default());
        let mut rooms = RoomsFile { current: Some("a.b".into()), ..Default::default() };
        rooms.rooms.insert(
            "a.b".into(),
            RoomEntry { addr: "http://x:1".into(), token_file: None, token: Some("t".into()) },
        );
        rooms.write(&path).unwrap();
        assert!(RoomsFile::read(&path).unwrap() == rooms);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_named_with_its_line_and_without_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rooms.toml");
        std::fs::write(&path, "[rooms.a]\naddr = \"http://x:1\"\ntokn = \"s3cret\"\n").unwrap();
        let error = RoomsFile::read(&path).err().unwrap().to_string();
        assert!(
            error.contains("rooms.toml") && error.contains("line 3") && error.contains("tokn"),
            "{error}"
        );
        assert!(!error.contains("s3cret"));
    }
}
