//! How the events of a build are shown, on standard error:
//!
//! - [`Plain`]: one line after another, as `buildctl --progress plain` prints them.
//! - [`Terminal`]: running steps with their time and last lines, in place.
//! - [`Json`]: one JSON object for each event.
//!
//! [`deploy`] has the same three for deploys.

pub mod deploy;
mod json;
mod lines;
mod plain;
mod terminal;

use std::io::IsTerminal as _;

use clap::ValueEnum;
use hearth_proto::v1::BuildEvent;

pub use json::Json;
pub(crate) use json::state_name;
pub use lines::{LogLines, LogText};
pub use plain::Plain;
pub use terminal::Terminal;

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// `tty` on a terminal, else `plain`
    #[default]
    Auto,
    /// Steps in place, with their time and last lines
    Tty,
    /// One line after another; lines of a step's standard error are marked with `!`
    Plain,
    /// One JSON object for each event
    Json,
}

/// Shows the events of one build.
pub trait Show: Send {
    fn event(&mut self, event: &BuildEvent);
    /// A remark between events.
    fn note(&mut self, text: &str);
    /// Takes what is shown in place off the terminal, for a question or the end.
    fn clear(&mut self);
    /// Whether every line of the log was shown and stays visible.
    fn shows_whole_log(&self) -> bool;
}

impl ProgressMode {
    pub fn renderer(self) -> Box<dyn Show> {
        let terminal =
            std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        match self {
            Self::Auto if terminal => Box::new(Terminal::new()),
            Self::Tty => Box::new(Terminal::new()),
            Self::Auto | Self::Plain => Box::new(Plain::new(std::io::stderr())),
            Self::Json => Box::new(Json::new(std::io::stderr())),
        }
    }
}
