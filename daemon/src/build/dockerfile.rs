//! Analysis of a Dockerfile before BuildKit's frontend builds it.
//!
//! A [`Dockerfile`] is parsed once, when its bytes are read, and answers all questions of a build from then on.
//!
//! This module only reads; the frontend decides. Where the reader cannot interpret a Dockerfile, it stops and passes
//! the Dockerfile on unchanged, so that every error about its contents is BuildKit's, in BuildKit's words. Three
//! things are decided here because they determine what is fetched and from where:
//!
//! - remote sources (module `remote_sources`): the daemon fetches them, and BuildKit gets them from the daemon;
//! - the frontend of a `# syntax=` line (module `syntax`): the built-in one replaces `docker/dockerfile:1` and its
//!   variants, no other frontend runs, and none is fetched;
//! - the files that the context must contain ([`Dockerfile::context_copies`]): when one is missing, nothing is sent to
//!   BuildKit.
//!
//! The reading rules (directives, continuations, comments, heredocs, flags) are those of BuildKit's
//! `frontend/dockerfile/parser`; variable expansion follows its `shell` package.

mod arguments;
mod copies;
mod downloads;
mod lines;
mod network;
mod remote_sources;
mod sources;
mod stage_names;
mod stages;
mod step_inputs;
mod syntax;
mod variables;
mod words;

pub use downloads::{NamedDownload, NamedRepository};
pub use network::NetworkRequest;
pub use remote_sources::{DockerfileInputs, ImageDefaultsLookup, NamedImage, PlatformRun, RemoteSources};
pub use sources::{ContextCopy, CopySource};
pub use step_inputs::RunOptions;
pub use syntax::{FrontendRefused, settle_frontend_argument};

use crate::model::MountTarget;
use crate::model::fault::DockerfileRange;
use lines::Instruction;
pub use words::glob_matches;

/// A parsed Dockerfile, as the builder receives it.
#[derive(Debug)]
pub struct Dockerfile {
    /// Text without its `syntax` directive, or as it was read when the directive is refused.
    text: String,
    /// Offset in `text` of the start of each line.
    line_starts: Vec<usize>,
    /// Bytes for the builder when they are not UTF-8; `text` replaces the invalid ones.
    not_utf8: Option<Vec<u8>>,
    refused_frontend: Option<FrontendRefused>,
    instructions: Vec<Instruction>,
    /// Escape character.
    escape: char,
}

/// Lines of a Dockerfile, counted from 1, with their text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerfileExcerpt {
    pub start_line: u32,
    pub end_line: u32,
    pub text: String,
}

impl Dockerfile {
    pub fn parse(bytes: Vec<u8>) -> Self {
        let (text, mut not_utf8) = match String::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), Some(error.into_bytes())),
        };
        let (text, refused_frontend) = match syntax::settle_frontend(&text) {
            Ok(None) => (text, None),
            Ok(Some(settled)) => {
                not_utf8 = None;
                (settled, None)
            }
            Err(refused) => (text, Some(refused)),
        };
        let (instructions, escape) = lines::instructions(&text);
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, line_starts, not_utf8, refused_frontend, instructions, escape }
    }

    /// Returns the bytes that the builder receives.
    pub fn bytes(&self) -> &[u8] {
        self.not_utf8.as_deref().unwrap_or(self.text.as_bytes())
    }

    /// Returns the frontend of the `syntax` directive if the daemon does not run it.
    pub fn refused_frontend(&self) -> Option<&FrontendRefused> {
        self.refused_frontend.as_ref()
    }

    /// Returns the lines `start_line..=end_line` unchanged, without the final line end.
    pub fn excerpt(&self, start_line: u32, end_line: u32) -> DockerfileExcerpt {
        let count = (end_line.saturating_sub(start_line) + 1) as usize;
        let start = self.line_starts.get(start_line.saturating_sub(1) as usize);
        let lines = self.text[start.copied().unwrap_or(self.text.len())..].lines().take(count);
        DockerfileExcerpt { start_line, end_line, text: lines.collect::<Vec<_>>().join("\n") }
    }

    /// Returns the names of the stages, in order.
    pub fn stage_names(&self) -> Vec<String> {
        stages::stage_names(&self.instructions)
    }

    fn excerpt_of(&self, instruction: &Instruction) -> DockerfileExcerpt {
        self.excerpt(instruction.start_line, instruction.end_line)
    }
}

impl DockerfileExcerpt {
    /// Returns the range for a fault about these lines of the Dockerfile at `path`.
    pub fn range(&self, path: &MountTarget) -> DockerfileRange {
        DockerfileRange {
            path: path.clone(),
            start_line: self.start_line,
            end_line: self.end_line,
            text: self.text.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
