//! LLB: the graph of operations that BuildKit solves.
//!
//! ```text
//! encoded definition, or its JSON --read--> Graph --check--> CheckedGraph --encode--> definition of a solve
//!                                             ^
//! images, commands, file operations --build---'
//! ```
//!
//! A [`Graph`] contains only what this crate knows of LLB. Definitions of others are therefore never passed on: they are
//! read, checked operation by operation, and encoded again. Fields of later versions of BuildKit, operations that the
//! result does not need, and nested definitions get lost on the way, so that nothing unchecked reaches BuildKit.

mod build;
mod check;
mod graph;
mod json;
mod read;
mod schema;

pub use build::{
    CacheSharing, Command, CopyFiles, ExecOutputs, FileAction, GitSource, Mount, MountKind, SecretVariable,
};
pub use check::{CheckedGraph, NamedSource, Policy, SolveSettings, SourceLocation};
pub use graph::{Graph, Output};
pub use read::{LlbError, MAX_DEFINITION};
