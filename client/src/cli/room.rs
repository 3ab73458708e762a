//! `hearth room`

use std::path::Path;

use clap::Subcommand;
use serde::Serialize;

use super::{GlobalArgs, complete};
use crate::client::{DaemonAddress, TargetError};
use crate::error::Failure;
use crate::output;
use crate::rooms::{RoomEntry, RoomError, RoomsFile, read_token};

#[derive(Debug, Subcommand)]
pub(super) enum RoomCommand {
    /// Register a room: `--addr` is its address, `--token-file` holds your token
    ///
    /// Each command reads the token file again; with `--token-file -` the token itself is kept in the rooms
    /// file, which only you can read. The first room becomes the current one.
    #[command(after_help = "\
Example:
  hearth room add studio --addr http://10.0.0.5:4327 --token-file ~/studio.token
  hearth room use studio")]
    Add {
        /// Name for the room on this machine
        name: String,
    },
    /// Make a room the current one
    Use {
        /// Name of a known room
        #[arg(add = complete::rooms())]
        name: String,
    },
    /// Show the known rooms
    #[command(visible_alias = "ls")]
    List,
    /// Remove a room from the rooms file
    Rm {
        /// Name of a known room
        #[arg(add = complete::rooms())]
        name: String,
    },
}

#[derive(Serialize)]
struct RoomView<'a> {
    name: &'a str,
    current: bool,
    addr: &'a str,
    token: String,
}

pub(super) async fn run(command: RoomCommand, globals: &GlobalArgs) -> Result<(), Failure> {
    let path = RoomsFile::path()?;
    let mut rooms = RoomsFile::read(&path)?;
    let change;
    match command {
        RoomCommand::Add { name } => {
            check_name(&name)?;
            rooms.rooms.insert(name.clone(), room(globals)?);
            rooms.current.get_or_insert_with(|| name.clone());
            rooms.write(&path)?;
            let current = rooms.current.as_deref() == Some(&name);
            output::note(&format!("room {name} added{}", if current { " and current" } else { "" }));
            change = serde_json::json!({"added": name, "current": current});
        }
        RoomCommand::Use { name } => {
            if !rooms.rooms.contains_key(&name) {
                return Err(not_there(&name, &rooms));
            }
            rooms.current = Some(name.clone());
            rooms.write(&path)?;
            output::note(&format!("room {name} is current"));
            change = serde_json::json!({"current": name});
        }
        RoomCommand::List => return list(&rooms, globals.json),
        RoomCommand::Rm { name } => {
            if rooms.rooms.remove(&name).is_none() {
                return Err(not_there(&name, &rooms));
            }
            rooms.current = rooms.current.filter(|current| *current != name);
            rooms.write(&path)?;
            output::note(&format!("room {name} removed"));
            change = serde_json::json!({"removed": name});
        }
    }
    if globals.json { output::json(&change) } else { Ok(()) }
}

fn room(globals: &GlobalArgs) -> Result<RoomEntry, Failure> {
    let Some(addr) = &globals.addr else {
        return Err(Failure::usage(
            "`hearth room add` needs `--addr unix:///path` or `--addr http://host:port`",
        ));
    };
    let address: DaemonAddress =
        addr.parse().map_err(|error: TargetError| Failure::usage(error.to_string()))?;
    let mut room = RoomEntry { addr: address.to_string(), token_file: None, token: None };
    if let Some(file) = &globals.token_file {
        // Read the token even when only the path is kept, so that a wrong path is reported now.
        let token = read_token(file)?;
        if file == Path::new("-") {
            room.token = Some(token.reveal().to_owned());
        } else {
            let path = std::path::absolute(file).map_err(|error| Failure::local("find", file, &error))?;
            room.token_file = Some(path);
        }
    }
    Ok(room)
}

fn list(rooms: &RoomsFile, json: bool) -> Result<(), Failure> {
    let view = |(name, room): (&'_ String, &'_ RoomEntry)| {
        let token = match (&room.token_file, &room.token) {
            (Some(file), _) => file.display().to_string(),
            (None, Some(_)) => "kept".to_owned(),
            (None, None) => "none".to_owned(),
        };
        (name.clone(), rooms.current.as_ref() == Some(name), room.addr.clone(), token)
    };
    let known: Vec<_> = rooms.rooms.iter().map(view).collect();
    if json {
        let views = known.iter().map(|(name, current, addr, token)| RoomView {
            name,
            current: *current,
            addr,
            token: token.clone(),
        });
        return output::json(&views.collect::<Vec<_>>());
    }
    if known.is_empty() {
        output::note(&format!(
            "no rooms are known; a daemon on this machine is found at {} without being added",
            DaemonAddress::local()
        ));
        return Ok(());
    }
    let row = |(name, current, addr, token): (String, bool, String, String)| {
        vec![if current { "*" } else { "" }.to_owned(), name, addr, token]
    };
    output::table(&["", "ROOM", "ADDRESS", "TOKEN"], &known.into_iter().map(row).collect::<Vec<_>>())
}

/// Checks that a room name fits in flags and in TOML: letters, digits, `-`, `_` and `.`.
fn check_name(name: &str) -> Result<(), RoomError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=128).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    Err(RoomError::InvalidName { name: output::printable(name) })
}

fn not_there(name: &str, rooms: &RoomsFile) -> Failure {
    Failure::usage(format!("there is no room `{name}`: {}", rooms.names_for_message()))
        .hint("`hearth room add NAME --addr URL` makes a room known")
}
