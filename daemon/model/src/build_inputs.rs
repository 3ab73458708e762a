//! Inputs of a build's steps, as they are recorded to explain later why a step ran again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::build::NoCache;

/// Inputs of all steps of a build that instructions of the Dockerfile stand for, in the order of the Dockerfile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildInputs {
    pub no_cache: NoCache,
    pub steps: Vec<StepInputs>,
}

/// Inputs of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepInputs {
    /// Name of the stage, or `stage-N`.
    pub stage: String,
    /// Number of the step in its stage, counted from 1, and the number of the stage's steps.
    pub position: u32,
    pub stage_steps: u32,
    /// First line of the instruction.
    pub line: u32,
    /// The instruction as written.
    pub text: String,
    /// ENV, USER and SHELL instructions that a command runs under.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Values of the ARGs that the step receives or that its text names. A name that begins with `--` is an option of
    /// the build: `--platform`, `--network`.
    #[serde(default)]
    pub arguments: BTreeMap<String, String>,
    /// Digests of the images and files of other places that the instruction names, by name.
    #[serde(default)]
    pub sources: BTreeMap<String, String>,
    /// Paths of the context that the step reads, with wildcards. The empty path means everything.
    #[serde(default)]
    pub files: Vec<String>,
    #[serde(default)]
    pub secret_ids: Vec<String>,
    /// Indexes of the steps on whose results this one works.
    #[serde(default)]
    pub after: Vec<usize>,
}

/// Reason why a step ran instead of coming from the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepCause {
    /// A file that the step reads was changed, added or removed.
    File { path: String, change: FileChange },
    /// The value of an ARG or an option differs. `None` means that there is no value.
    Argument { name: String, before: Option<String>, after: Option<String> },
    /// An image or a file of another place has another digest. `None` means that the digest is not known.
    Source { name: String, before: Option<String>, after: Option<String> },
    /// The text of an instruction differs; `None` on the side that lacks it.
    Instruction { before: Option<String>, after: Option<String> },
    /// The instruction names secrets of other ids, and is equal otherwise.
    SecretIds { before: Vec<String>, after: Vec<String> },
    /// The build asked to run the step without the cache.
    NoCache,
    /// A step before it changed, or ran again. The index is that of [`BuildInputs::steps`].
    EarlierStep { index: usize },
    /// The step did not succeed in the build compared with.
    NotBuiltBefore,
    /// All inputs are equal: the builder no longer had the result.
    Evicted,
}

/// How a file differs between two contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileChange {
    Added,
    Removed,
    Content,
    Mode,
    LinkTarget,
    /// It is another kind of file, such as a directory instead of a regular file.
    Kind,
}
