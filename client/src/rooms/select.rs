//! Selection of the room and the token, as a pure function of options, environment and rooms file.

use std::path::{Path, PathBuf};

use super::{RoomError, RoomsFile};
use crate::client::{Address, Target, Token};

/// Options of the command line that select the room.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub room: Option<String>,
    pub addr: Option<String>,
    pub token_file: Option<PathBuf>,
}

/// Environment variables that select the room. Empty variables count as unset.
#[derive(Clone, Default)]
pub struct Surroundings {
    pub hearth_addr: Option<String>,
    pub hearth_room: Option<String>,
    pub meshagent_room: Option<String>,
    pub hearth_token: Option<String>,
    pub meshagent_token: Option<String>,
}

/// The selected daemon, with the source of its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    pub address: Address,
    pub token: Option<TokenFrom>,
    /// Room that the daemon must belong to; checked after connecting.
    pub must_be: Option<String>,
    /// True when the default socket of this machine was selected because nothing else is configured.
    pub fallback: bool,
}

/// Source of the token. A token file is read later, by [`RoomSelection::target`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenFrom {
    File(PathBuf),
    Value(Token),
    Environment(Token),
}

impl Surroundings {
    pub fn of_process() -> Self {
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
pub fn select(
    asked: &Asked,
    around: &Surroundings,
    rooms: &RoomsFile,
    local: &Address,
) -> Result<Selection, RoomError> {
    let given = asked.token_file.clone().map(TokenFrom::File);
    let given =
        given.or_else(|| around.hearth_token.as_deref().and_then(Token::new).map(TokenFrom::Environment));
    let given =
        given.or_else(|| around.meshagent_token.as_deref().and_then(Token::new).map(TokenFrom::Environment));
    let at = |address, must_be: Option<&String>, fallback| Selection {
        address,
        token: given.clone(),
        must_be: must_be.cloned(),
        fallback,
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
        let own = room.token_file.clone().map(TokenFrom::File);
        let own = own.or_else(|| room.token.as_deref().and_then(Token::new).map(TokenFrom::Value));
        let address = parse("the rooms file", &room.addr)?;
        return Ok(Selection { address, token: given.or(own), must_be: None, fallback: false });
    }
    match env_addr {
        Some(address) => Ok(at(address, Some(name), false)),
        None => Ok(at(local.clone(), Some(name), true)),
    }
}

fn parse(origin: &'static str, text: &str) -> Result<Address, RoomError> {
    text.parse().map_err(|source| RoomError::Address { origin, source })
}

impl Selection {
    /// Reads the token and returns the daemon to connect to.
    pub fn target(&self) -> Result<Target, RoomError> {
        let token = match &self.token {
            None => None,
            Some(TokenFrom::Value(token) | TokenFrom::Environment(token)) => Some(token.clone()),
            Some(TokenFrom::File(path)) => Some(read_token(path)?),
        };
        let token_from_environment = matches!(self.token, Some(TokenFrom::Environment(_)));
        Ok(Target { address: self.address.clone(), token, token_from_environment })
    }
}

/// Reads a token from a file, or from standard input for `-`.
pub fn read_token(path: &Path) -> Result<Token, RoomError> {
    let text = if path.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|source| RoomError::File {
        action: "read the token in",
        path: path.to_owned(),
        source,
    })?;
    Token::new(&text).ok_or_else(|| RoomError::EmptyToken { origin: path.display().to_string() })
}

#[cfg(test)]
mod tests {
    use super::super::Room;
    use super::*;

    fn rooms(current: Option<&str>) -> RoomsFile {
        let room = |addr: &str, token: Option<&str>| Room {
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

    fn asked(room: &str, addr: &str) -> Asked {
        Asked { room: some(room), addr: some(addr), token_file: None }
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
            let around = Surroundings {
                hearth_addr: some(env[0]),
                hearth_room: some(env[1]),
                meshagent_room: some(env[2]),
                ..Default::default()
            };
            let current = some(current);
            let chosen =
                select(&asked(flags[0], flags[1]), &around, &rooms(current.as_deref()), &local).unwrap();
            let row = format!("{flags:?} {env:?} {current:?}");
            assert_eq!(chosen.address.to_string(), address, "{row}");
            assert_eq!(chosen.must_be, some(must_be), "{row}");
        }
    }

    #[test]
    fn a_token_is_chosen_in_the_documented_order() {
        let local = Address::local();
        let token = |text: &str| Token::new(text).unwrap();
        let around_us = |text: &str| Some(TokenFrom::Environment(token(text)));
        let mut ask = asked("studio", "");
        let mut around = Surroundings::default();
        let chosen =
            |ask: &Asked, around: &Surroundings| select(ask, around, &rooms(None), &local).unwrap().token;
        assert_eq!(chosen(&ask, &around), Some(TokenFrom::Value(token("st"))));
        around.meshagent_token = Some("mesh".into());
        assert_eq!(chosen(&ask, &around), around_us("mesh"));
        around.hearth_token = Some("hearth\n".into());
        assert_eq!(chosen(&ask, &around), around_us("hearth"));
        ask.token_file = Some("/t".into());
        assert_eq!(chosen(&ask, &around), Some(TokenFrom::File("/t".into())));
    }

    #[test]
    fn a_malformed_address_names_where_it_stands() {
        let around = Surroundings { hearth_addr: Some("nonsense".into()), ..Default::default() };
        let error =
            select(&Asked::default(), &around, &rooms(None), &Address::local()).unwrap_err().to_string();
        assert!(error.contains("HEARTH_ADDR") && error.contains("nonsense"), "{error}");
    }
}
