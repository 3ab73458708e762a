//! Display of the events of a build on standard error:
//!
//! - [`PlainBuildRenderer`]: lines in sequence, as `buildctl --progress plain` prints them.
//! - [`TerminalBuildRenderer`]: running steps with their time and last lines, updated in place.
//! - [`JsonBuildRenderer`]: one JSON object for each event.
//!
//! [`deploy`] has the same three renderers for deploys.

pub mod deploy;
mod json;
mod lines;
mod plain;
mod steps;
mod terminal;
mod transfer;

use clap::ValueEnum;
use hearth_proto::v1::BuildEvent;

use crate::output;

pub use json::JsonBuildRenderer;
pub(crate) use json::state_name;
pub(crate) use lines::terminal_text;
pub use lines::{StepLineBuffer, StepLogLine};
pub use plain::PlainBuildRenderer;
pub use terminal::TerminalBuildRenderer;
pub use transfer::TransferMeter;

/// Display mode of progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// `tty` on a terminal, else `plain`
    #[default]
    Auto,
    /// Steps that update in place, with their time and last lines
    Tty,
    /// One line after another; lines of a step's standard error are marked with `!`
    Plain,
    /// One JSON object for each event
    Json,
}

/// Displays the events of one build.
pub trait BuildRenderer: Send {
    fn event(&mut self, event: &BuildEvent);
    /// Shows a message between events.
    fn note(&mut self, text: &str);
    /// Shows the place of the build in the queue.
    fn queued(&mut self, place: &str) {
        self.note(place);
    }
    /// Removes the parts that update in place from the terminal, before a question or the end.
    fn clear(&mut self);
    /// Shows the parts that update in place again, after a question.
    fn resume(&mut self) {}
    /// True when the last lines of this step, which failed, were shown and stay visible.
    fn shows_log_of(&self, step: &str) -> bool;
}

impl ProgressMode {
    /// Applies the mode to standard error as a whole. Called before the command prints anything.
    pub fn begin(self) {
        if self == Self::Json {
            output::print_notes_as_json();
        }
    }

    /// Creates the renderer. On a terminal, a brief one shows steps only while they run and when they fail.
    pub fn renderer(self, brief: bool) -> Box<dyn BuildRenderer> {
        match self {
            Self::Auto if output::is_live_terminal() => Box::new(TerminalBuildRenderer::new(brief)),
            Self::Tty => Box::new(TerminalBuildRenderer::new(brief)),
            Self::Auto | Self::Plain => Box::new(PlainBuildRenderer::new(std::io::stderr())),
            Self::Json => Box::new(JsonBuildRenderer::new(std::io::stderr())),
        }
    }
}
