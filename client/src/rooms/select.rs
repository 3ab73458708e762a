//! Selection of the room and the token, as a pure function of options, environment and rooms file.

use std::path::{Path, PathBuf};

use super::{RoomError, RoomsFile};
use crate::client::{DaemonAddress, DaemonTarget, ParticipantToken};

/// Options of the command line that select the room.
#[derive(Clone, Debug, Default)]
pub struct RoomFlags {
    pub room: Option<String>,
    pub addr: Option<String>,
    pub token_file: Option<PathBuf>,
}

/// Environment variables that select the room. Empty variables count as unset.
#[derive(Clone, Default)]
pub struct RoomEnvironment {
    pub hearth_addr: Option<String>,
    pub hearth_room: Option<String>,
    pub meshagent_room: Option<String>,
    pub hearth_token: Option<String>,
    pub meshagent_token: Option<String>,
}

/// The selected daemon, with the source of its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomSelection {
    pub address: DaemonAddress,
    pub token: Option<TokenSource>,
    /// Room that the daemon must belong to; checked after connecting.
    pub expected_room: Option<String>,
    /// True when the default socket of this machine was selected because nothing else is configured.
    pub is_fallback: bool,
}

/// Source of the token. A token file is read later, by [`RoomSelection::target`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    File(PathBuf),
    Value(ParticipantToken),
    Environment(ParticipantToken),
}

impl RoomEnvironment {
    pub fn from_process() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        Self {
            hearth_addr: variable("HEARTH_ADDR"),
            hearth_room: variable("HEARTH_ROOM"),
            meshagent_room: variable("MESHAGENT_ROOM"),
            hearth_token: variable("HEARTH_TOKEN"),
            meshagent_token: variable("MESHAGENT_TOKEN"),
        }
    }
}

/// Selects a daemon. `local` is the default address of a daemon on this machine.
pub fn select_room(
    asked: &RoomFlags,
    around: &RoomEnvironment,
    rooms: &RoomsFile,
    local: &DaemonAddress,
) -> Result<RoomSelection, RoomError> {
    let given = asked.token_file.clone().map(TokenSource::File);
    let given = given.or_else(|| {
        around.hearth_token.as_deref().and_then(ParticipantToken::new).map(TokenSource::Environment)
    });
    let given = given.or_else(|| {
        around.meshagent_token.as_deref().and_then(ParticipantToken::new).map(TokenSource::Environment)
    });
    let at = |address, must_be: Option<&String>, fallback| RoomSelection {
        address,
        token: given.clone(),
        expected_room: must_be.cloned(),
        is_fallback: fallback,
    };
    if let Some(addr) = &asked.addr {
        return Ok(at(parse("--addr", addr)?, asked.room.as_ref(), false));
    }
    let env_addr = around.hearth_addr.as_deref().map(|addr| parse("HEARTH_ADDR", addr)).transpose()?;
    let env_room = around.hearth_room.as_ref().or(around.meshagent_room.as_ref());
    let name = match (&asked.room, env_addr.clone()) {
        (Some(name), _) => Some(name),
        (None, Some(address)) => return Ok(at(address, env_room, false)),
        (None, None) => env_room.or(rooms.current.as_ref()),
    };
    let Some(name) = name else {
        return Ok(at(local.clone(), None, true));
    };
    if let Some(room) = rooms.rooms.get(name) {
        let own = room.token_file.clone().map(TokenSource::File);
        let own =
            own.or_else(|| room.token.as_deref().and_then(ParticipantToken::new).map(TokenSource::Value));
        let address = parse("the rooms file", &room.addr)?;
        return Ok(RoomSelection { address, token: given.or(own), expected_room: None, is_fallback: false });
    }
    match env_addr {
        Some(address) => Ok(at(address, Some(name), false)),
        None => Ok(at(local.clone(), Some(name), true)),
    }
}

fn parse(origin: &'static str, text: &str) -> Result<DaemonAddress, RoomError> {
    text.parse().map_err(|source| RoomError::Address { origin, source })
}

impl RoomSelection {
    /// Reads the token and returns the daemon to connect to.
    pub fn target(&self) -> Result<DaemonTarget, RoomError> {
        let token = match &self.token {
            None => None,
            Some(TokenSource::Value(token) | TokenSource::Environment(token)) => Some(token.clone()),
            Some(TokenSource::File(path)) => Some(read_token(path)?),
        };
        let token_from_environment = matches!(self.token, Some(TokenSource::Environment(_)));
        Ok(DaemonTarget { address: self.address.clone(), token, token_from_environment })
    }
}

/// Reads a token from a file, or from standard input for `-`.
pub fn read_token(path: &Path) -> Result<ParticipantToken, RoomError> {
    let text = if path.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|source| RoomError::TokenFile { path: path.to_owned(), source })?;
    ParticipantToken::new(&text).ok_or_else(|| RoomError::EmptyToken { origin: path.display().to_string() })
}

#[cfg(test)]
mod tests {
    use super::super::RoomEntry;
    use super::*;

    fn rooms(current: Option<&str>) -> RoomsFile {
        let room = |addr: &str, token: Option<&str>| RoomEntry {
            addr: addr.into(),
            token_file: None,
            token: token.map(Into::into),
        };
        RoomsFile {
            current: current.map(Into::into),
            rooms: [
                ("studio".into(), room("http://studio:1", Some("st"))),
                ("lab".into(), room("unix:///lab", None)),
            ]
            .into(),
        }
    }

    fn asked(room: &str, addr: &str) -> RoomFlags {
        RoomFlags { room: some(room), addr: some(addr), token_file: None }
    }

    fn some(text: &str) -> Option<String> {
        (!text.is_empty()).then(|| text.to_owned())
    }

    #[test]
    fn a_room_is_chosen_in_the_documented_order() {
        // columns: --room, --addr | HEARTH_ADDR, HEARTH_ROOM, MESHAGENT_ROOM | current | address, expected room
        let table = [
            (["", ""], ["", "", ""], "", "unix:///local", ""),
            (["", ""], ["", "", ""], "lab", "unix:///lab", ""),
            (["", ""], ["", "", "studio"], "lab", "http://studio:1", ""),
            (["", ""], ["", "lab", "studio"], "studio", "unix:///lab", ""),
            (["", ""], ["", "other", "studio"], "lab", "unix:///local", "other"),
            (["", ""], ["http://e:1", "", ""], "lab", "http://e:1", ""),
            (["", ""], ["http://e:1", "x", ""], "lab", "http://e:1", "x"),
            (["", ""], ["http://e:1", "", "studio"], "lab", "http://e:1", "studio"),
            (["studio", ""], ["http://e:1", "lab", "lab"], "lab", "http://studio:1", ""),
            (["other", ""], ["http://e:1", "lab", "lab"], "lab", "http://e:1", "other"),
            (["other", ""], ["", "lab", "lab"], "lab", "unix:///local", "other"),
            (["", "http://f:1"], ["http://e:1", "lab", "lab"], "lab", "http://f:1", ""),
            (["studio", "http://f:1"], ["", "", ""], "lab", "http://f:1", "studio"),
        ];
        let local = "unix:///local".parse().unwrap();
        for (flags, env, current, address, must_be) in table {
            let around = RoomEnvironment {
                hearth_addr: some(env[0]),
                hearth_room: some(env[1]),
                meshagent_room: some(env[2]),
                ..Default::default()
            };
            let current = some(current);
            let chosen =
                select_room(&asked(flags[0], flags[1]), &around, &rooms(current.as_deref()), &local).unwrap();
            let row = format!("{flags:?} {env:?} {current:?}");
            assert_eq!(chosen.address.to_string(), address, "{row}");
            assert_eq!(chosen.expected_room, some(must_be), "{row}");
        }
    }

    #[test]
    fn a_token_is_chosen_in_the_documented_order() {
        let local = DaemonAddress::local();
        let token = |text: &str| ParticipantToken::new(text).unwrap();
        let around_us = |text: &str| Some(TokenSource::Environment(token(text)));
        let mut ask = asked("studio", "");
        let mut around = RoomEnvironment::default();
        let chosen = |ask: &RoomFlags, around: &RoomEnvironment| {
            select_room(ask, around, &rooms(None), &local).unwrap().token
        };
        assert_eq!(chosen(&ask, &around), Some(TokenSource::Value(token("st"))));
        around.meshagent_token = Some("mesh".into());
        assert_eq!(chosen(&ask, &around), around_us("mesh"));
        around.hearth_token = Some("hearth\n".into());
        assert_eq!(chosen(&ask, &around), around_us("hearth"));
        ask.token_file = Some("/t".into());
        assert_eq!(chosen(&ask, &around), Some(TokenSource::File("/t".into())));
    }

    #[test]
    fn a_malformed_address_names_where_it_stands() {
        let around = RoomEnvironment { hearth_addr: Some("nonsense".into()), ..Default::default() };
        let error = select_room(&RoomFlags::default(), &around, &rooms(None), &DaemonAddress::local())
            .unwrap_err()
            .to_string();
        assert!(error.contains("HEARTH_ADDR") && error.contains("nonsense"), "{error}");
    }
}
