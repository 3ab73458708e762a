//! Failures in the form that is stored and shown.

use hearth_value::MountTarget;
use serde::{Deserialize, Serialize};

pub use hearth_proto::error_code::{ErrorCode, RecordedErrorCode};

/// Reason of a failure, in the form that is stored and shown; `ErrorDetail` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable identifier of the cause, such as `step_failed`.
    pub code: RecordedErrorCode,
    pub message: String,
    pub stage: FaultStage,
    /// Suggested next action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(default)]
    pub retryable: bool,
    /// Failed step, as the log names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<DockerfileRange>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Last log lines of the failed step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_tail: Vec<String>,
    /// Results of the last probes of an instance, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<String>,
}

/// Stage of a build that failed, or the deploy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultStage {
    Request,
    Context,
    Solve,
    Export,
    Publish,
    Deploy,
}

impl FaultStage {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Context => "context",
            Self::Solve => "solve",
            Self::Export => "export",
            Self::Publish => "publish",
            Self::Deploy => "deploy",
        }
    }
}

/// Line range of a Dockerfile; lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerfileRange {
    pub path: MountTarget,
    pub start_line: u32,
    pub end_line: u32,
    /// Text of the lines.
    pub text: String,
}

impl Fault {
    /// Creates a fault with the default hint of its code. It is retryable if every error with the code is.
    pub fn new(stage: FaultStage, code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            stage,
            hint: code.entry().hint.map(str::to_owned),
            retryable: code.is_retryable(),
            step: None,
            dockerfile: None,
            exit_code: None,
            log_tail: Vec::new(),
            probes: Vec::new(),
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Replaces the hint of the code if there is a more specific one.
    pub fn maybe_hint(self, hint: Option<impl Into<String>>) -> Self {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }

    pub const fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }
}
