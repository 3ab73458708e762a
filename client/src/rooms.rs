//! Selection of the room that a command uses.
//!
//! A room is an address and a token. The first rule that applies selects it:
//!
//! 1. `--addr`; together with `--room`, the daemon there must belong to that room.
//! 2. `--room NAME`: a room of the rooms file; otherwise the daemon at `HEARTH_ADDR`, or the one on
//!    this machine, if it belongs to that room.
//! 3. `HEARTH_ADDR`; with `HEARTH_ROOM` or `MESHAGENT_ROOM` set, the daemon there must belong to that
//!    room.
//! 4. `HEARTH_ROOM`, then `MESHAGENT_ROOM`, as in rule 2.
//! 5. The current room of the rooms file.
//! 6. The daemon on this machine.
//!
//! The token comes from the first of these that is set: `--token-file`, `HEARTH_TOKEN`,
//! `MESHAGENT_TOKEN`, the entry of the selected room in the rooms file. The unix socket needs no token.

mod file;
mod select;

use std::path::PathBuf;

use crate::error::{Failure, FailureKind};
use hearth_proto::error_code::ErrorCode;

pub use file::{RoomEntry, RoomsFile};
pub use select::{RoomEnvironment, RoomFlags, RoomSelection, TokenSource, read_token, select_room};

#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    #[error("room `{name}` is not known: {known}, and {local}")]
    Unknown { name: String, known: String, local: String },
    #[error("no room was chosen, and no daemon listens on this machine at {local}")]
    NoRoom { local: String },
    #[error("{origin}: {source}")]
    Address { origin: &'static str, source: crate::client::TargetError },
    #[error("`{name}` is not a room's name; use letters, digits, `-`, `_` and `.`")]
    InvalidName { name: String },
    #[error("the rooms file {} is not valid: {reason}", .path.display())]
    Malformed { path: PathBuf, reason: String },
    #[error("cannot {action} {}: {source}", .path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot read the token in {}: {source}", .path.display())]
    TokenFile { path: PathBuf, source: std::io::Error },
    #[error("{origin} holds no token")]
    EmptyToken { origin: String },
    #[error("neither XDG_CONFIG_HOME nor HOME is set, so there is no place for the rooms file")]
    NoHome,
}

impl From<RoomError> for Failure {
    fn from(error: RoomError) -> Self {
        let (kind, code) = match &error {
            RoomError::Unknown { .. } => (FailureKind::Usage, ErrorCode::UnknownRoom),
            RoomError::NoRoom { .. } => (FailureKind::Usage, ErrorCode::NoRoom),
            RoomError::Malformed { .. } => {
                return Self::new(FailureKind::Usage, ErrorCode::RoomsFile, error.to_string())
                    .hint("repair it, or remove it and add the rooms again");
            }
            RoomError::TokenFile { .. } => (FailureKind::Usage, ErrorCode::LocalFile),
            RoomError::File { .. } | RoomError::NoHome => (FailureKind::Failed, ErrorCode::RoomsFile),
            RoomError::Address { .. } | RoomError::InvalidName { .. } => {
                (FailureKind::Usage, ErrorCode::Usage)
            }
            RoomError::EmptyToken { .. } => (FailureKind::Usage, ErrorCode::EmptyToken),
        };
        Self::new(kind, code, error.to_string())
    }
}
