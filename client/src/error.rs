//! Failures of commands: one type for every error that the user sees.

use std::io;

use hearth_pack::archive::ArchiveError;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::ErrorDetail;

use crate::client::{ClientError, UploadError};

/// A failed command: the kind of failure, and the detail that is shown.
#[derive(Debug)]
pub struct Failure {
    pub kind: FailureKind,
    pub detail: Box<ErrorDetail>,
    /// Build that failed.
    pub build_id: Option<String>,
    /// Service and revision that failed.
    pub service: Option<(String, u32)>,
    /// True when the output of the failed step was already shown, so that the last lines need not be
    /// repeated.
    pub log_shown: bool,
    /// True when the results of the probes were already shown.
    pub probes_shown: bool,
    /// What the command has found or done before it failed: the fields of its JSON document, to which the
    /// error is added.
    pub partial: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The operation was attempted and failed.
    Failed,
    /// The command or its input is invalid, whatever the state of the room.
    Usage,
    /// The token is missing, invalid, or lacks the grant.
    Denied,
    /// The room's address does not answer.
    Unreachable,
    /// Ctrl-C.
    Interrupted,
    /// A program that ran for the user ended with this exit code; its own output is the message.
    ProgramExited(u8),
    /// A program could not be run for the user: exit code as in a shell (126 or 127).
    ProgramNotStarted(u8),
    /// The reader of standard output closed it, so no message can be shown there.
    OutputClosed,
}

impl Failure {
    /// Creates a failure with the default hint and the retryability of its code.
    pub fn new(kind: FailureKind, code: ErrorCode, message: impl Into<String>) -> Self {
        let detail = ErrorDetail {
            code: code.as_str().to_owned(),
            message: message.into(),
            hint: code.entry().hint.unwrap_or_default().to_owned(),
            retryable: code.is_retryable(),
            ..Default::default()
        };
        Self::from_detail(kind, Box::new(detail))
    }

    pub fn from_detail(kind: FailureKind, detail: Box<ErrorDetail>) -> Self {
        Self {
            kind,
            detail,
            build_id: None,
            service: None,
            log_shown: false,
            probes_shown: false,
            partial: serde_json::Map::new(),
        }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Usage, ErrorCode::Usage, message)
    }

    pub fn failed(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(FailureKind::Failed, code, message)
    }

    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Interrupted, ErrorCode::Interrupted, message)
    }

    pub fn program_exited(code: u8) -> Self {
        Self::new(FailureKind::ProgramExited(code), ErrorCode::Ended, "the program ended")
    }

    /// A local file could not be read or written.
    pub fn local(action: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::failed(ErrorCode::LocalFile, format!("cannot {action} `{}`: {error}", path.display()))
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.detail.hint = hint.into();
        self
    }

    /// Adds the JSON document that the command would have printed without the failure.
    #[must_use]
    pub fn partial(mut self, document: &impl serde::Serialize) -> Self {
        if let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(document) {
            self.partial = fields;
        }
        self
    }

    #[must_use]
    pub fn service(mut self, name: &str, revision: u32) -> Self {
        self.service = Some((name.to_owned(), revision));
        self
    }

    #[must_use]
    pub fn build(mut self, build_id: &str) -> Self {
        self.build_id = Some(build_id.to_owned());
        self
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Unreachable { .. } => {
                Self::new(FailureKind::Unreachable, ErrorCode::Unreachable, message)
            }
            ClientError::Denied(detail) => {
                let mut failure = Self::from_detail(FailureKind::Denied, detail);
                if failure.detail.hint.is_empty() {
                    "give a token of this room with --token-file or HEARTH_TOKEN; `hearth token mint` makes one"
                        .clone_into(&mut failure.detail.hint);
                }
                failure
            }
            ClientError::Invalid(detail) => Self::from_detail(FailureKind::Usage, detail),
            ClientError::Failed(detail) => Self::from_detail(FailureKind::Failed, detail),
            ClientError::Address(_) | ClientError::Token(_) => {
                Self::new(FailureKind::Usage, ErrorCode::Usage, message)
            }
            ClientError::Protocol(_) => Self::failed(ErrorCode::Protocol, message),
        }
    }
}

/// Converts errors of writing to standard output. Errors of named files use [`Failure::local`].
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::new(FailureKind::OutputClosed, ErrorCode::OutputClosed, "standard output was closed")
        } else {
            Self::failed(ErrorCode::LocalIo, error.to_string())
        }
    }
}

impl From<tokio::task::JoinError> for Failure {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::failed(ErrorCode::Internal, format!("a worker thread ended early: {error}"))
    }
}

/// Converts an error of an upload. A damaged archive is a failure, also when the daemon calls it an invalid request.
impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Client(ClientError::Invalid(detail)) => {
                let is_damaged = matches!(
                    detail.code.parse(),
                    Ok(ErrorCode::InvalidArchive
                        | ErrorCode::ArchiveTruncated
                        | ErrorCode::BlobMismatch
                        | ErrorCode::InvalidManifest
                        | ErrorCode::InvalidConfig)
                );
                let kind = if is_damaged { FailureKind::Failed } else { FailureKind::Usage };
                Self::from_detail(kind, detail)
            }
            UploadError::Client(error) => error.into(),
            UploadError::Source(ref source) => {
                match source.get_ref().and_then(|inner| inner.downcast_ref::<ArchiveError>()) {
                    Some(ArchiveError::Truncated) => {
                        Self::failed(ErrorCode::ArchiveTruncated, source.to_string())
                    }
                    // A decompressor that finds damaged data has no error of the system, unlike a file that cannot be
                    // read.
                    Some(archive) if !is_read_error(archive) => {
                        Self::failed(ErrorCode::InvalidArchive, source.to_string())
                    }
                    Some(_) | None => Self::failed(ErrorCode::LocalFile, error.to_string()),
                }
            }
        }
    }
}

fn is_read_error(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::Read { source } if source.raw_os_error().is_some())
}
