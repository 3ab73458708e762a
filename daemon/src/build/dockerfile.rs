//! Analysis of a Dockerfile before BuildKit's frontend builds it.
//!
//! This module only reads; the frontend decides. Where the reader cannot interpret a Dockerfile, it stops and passes
//! the Dockerfile on unchanged, so that every error about its contents is BuildKit's, in BuildKit's words. Three
//! things are decided here because they determine what is fetched and from where:
//!
//! - remote sources (module `remote_sources`): the daemon fetches them, and BuildKit gets them from the daemon;
//! - the frontend of a `# syntax=` line ([`settle_frontend`]): the built-in one replaces `docker/dockerfile:1` and its
//!   variants, no other frontend runs, and none is fetched;
//! - the files that the context must contain ([`context_copies`]): when one is missing, nothing is sent to BuildKit.
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
mod stages;
mod syntax;
mod variables;
mod words;

pub use copies::context_selection;
pub use downloads::{NamedDownload, NamedRepository};
pub use network::{NetworkRequest, find_refused_network};
pub use remote_sources::{DockerfileExcerpt, DockerfileInputs, NamedImage, RemoteSources, remote_sources};
pub use sources::{ContextCopy, CopySource, context_copies};
pub use syntax::{FrontendRefused, settle_frontend, settle_frontend_argument};

#[cfg(test)]
mod tests;
