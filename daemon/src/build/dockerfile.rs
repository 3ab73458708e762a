//! What the daemon must know of a Dockerfile before BuildKit's frontend builds it.
//!
//! This only looks; the frontend decides. Where the reader here cannot follow, it stops and the
//! Dockerfile goes on as it is, so that every error about its contents is BuildKit's, with
//! BuildKit's words. Three things are settled here, since they decide what is fetched from where:
//!
//! - what it fetches from elsewhere ([`named`]): the daemon fetches that, and BuildKit gets it from here;
//! - the frontend that a `# syntax=` line asks for ([`settle_frontend`]): the built-in one serves
//!   `docker/dockerfile:1` and its like, nothing else runs, nothing is fetched;
//! - the files that must be in the context ([`sources`]): without one of them nothing is sent.
//!
//! The reading rules (directives, continuations, comments, heredocs, flags) are those of BuildKit's
//! `frontend/dockerfile/parser`, the expansion those of its `shell` package.

mod arguments;
mod copies;
mod downloads;
mod lines;
mod named;
mod network;
mod sources;
mod stages;
mod syntax;
mod variables;
mod words;

pub use copies::selection;
pub use downloads::{Download, NamedRepository};
pub use named::{Inputs, Named, NamedImage, Place, named};
pub use network::{NetworkAsked, network_refused};
pub use sources::{Copied, Source, sources};
pub use syntax::{FrontendRefused, settle_frontend, settle_frontend_argument};

#[cfg(test)]
mod tests;
