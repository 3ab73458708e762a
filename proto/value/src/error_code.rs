//! Catalogue of error codes: the identifiers of failures that requests, builds, deploys and the `hearth` command
//! report.
//!
//! An error code is one row of a table in a file below this module. The row holds everything that depends on the
//! code alone: its text form, its gRPC status, whether a retry helps, what it means, and the default hint. The enum,
//! `hearth explain` and `docs/reference/errors.md` are generated from the rows, so that a new code is one new row.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[macro_use]
mod access;
#[macro_use]
mod build;
#[macro_use]
mod command;
#[macro_use]
mod context;
#[macro_use]
mod daemon;
#[macro_use]
mod image;
#[macro_use]
mod pack;
#[macro_use]
mod request;
#[macro_use]
mod secret;
#[macro_use]
mod service;
#[macro_use]
mod storage;

/// Everything that the catalogue says about one error code.
#[derive(Clone, Copy, Debug)]
pub struct ErrorEntry {
    /// Text form, as in messages, stored records and JSON.
    pub text: &'static str,
    pub area: ErrorArea,
    /// Status of a call that fails with this code, unless the call site has a reason for another one.
    pub grpc_status: GrpcStatus,
    pub retry: RetryAdvice,
    /// Cause, and what to do about it, in one or two sentences.
    pub explanation: &'static str,
    /// Next action that an error with this code suggests unless it has a more specific hint.
    pub hint: Option<&'static str>,
}

/// Status codes of gRPC that failures have, with their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcStatus {
    Cancelled = 1,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

/// Advice whether to repeat the same operation without a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAdvice {
    /// The same operation fails again.
    No,
    /// It depends on the cause; see the `retryable` field of the error.
    Depends,
    /// The cause is temporary.
    Yes,
}

/// Defines the enum and its table from the rows of all areas:
/// `Variant = "text_form", gRPC status, retry advice, "explanation", hint "default hint";`
macro_rules! define_error_codes {
    (; $($area:ident $title:literal {
        $($name:ident = $text:literal, $status:ident, $retry:ident, $explanation:literal $(, hint $hint:literal)?;)*
    })*) => {
        /// Identifier of a cause of failure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[doc = $explanation] $name,)*)*
        }

        /// Part of the system that an error code is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ErrorArea {
            $(#[doc = $title] $area,)*
        }

        impl ErrorCode {
            /// All error codes, by area.
            pub const ALL: &[Self] = &[$($(Self::$name,)*)*];

            /// Returns the entry of the catalogue.
            pub const fn entry(self) -> &'static ErrorEntry {
                match self {
                    $($(Self::$name => &ErrorEntry {
                        text: $text,
                        area: ErrorArea::$area,
                        grpc_status: GrpcStatus::$status,
                        retry: RetryAdvice::$retry,
                        explanation: $explanation,
                        hint: define_error_codes!(@hint $($hint)?),
                    },)*)*
                }
            }
        }

        impl ErrorArea {
            /// All areas, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$area,)*];

            pub const fn title(self) -> &'static str {
                match self {
                    $(Self::$area => $title,)*
                }
            }
        }

        /// Parses the text form. The error means that this version has no such code.
        impl FromStr for ErrorCode {
            type Err = UnknownErrorCode;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($($text => Ok(Self::$name),)*)*
                    _ => Err(UnknownErrorCode),
                }
            }
        }
    };
    (@hint $hint:literal) => { Some($hint) };
    (@hint) => { None };
}

// Each macro adds the rows of its area and passes all rows on to the next one.
access_error_codes! {
    request_error_codes build_error_codes context_error_codes image_error_codes pack_error_codes
    service_error_codes secret_error_codes storage_error_codes daemon_error_codes command_error_codes
    define_error_codes;
}

impl ErrorCode {
    pub const fn as_str(self) -> &'static str {
        self.entry().text
    }

    /// HTTP status that corresponds to the gRPC status of the code.
    pub const fn http_status(self) -> u16 {
        match self.entry().grpc_status {
            GrpcStatus::InvalidArgument | GrpcStatus::FailedPrecondition => 400,
            GrpcStatus::Unauthenticated => 401,
            GrpcStatus::PermissionDenied => 403,
            GrpcStatus::NotFound => 404,
            GrpcStatus::AlreadyExists | GrpcStatus::Aborted => 409,
            GrpcStatus::ResourceExhausted => 429,
            GrpcStatus::Cancelled => 499,
            GrpcStatus::Internal | GrpcStatus::DataLoss => 500,
            GrpcStatus::Unimplemented => 501,
            GrpcStatus::Unavailable => 503,
            GrpcStatus::DeadlineExceeded => 504,
        }
    }

    /// Reports whether every error with this code is temporary.
    pub const fn is_retryable(self) -> bool {
        matches!(self.entry().retry, RetryAdvice::Yes)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this version has no such error code")]
pub struct UnknownErrorCode;

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl PartialEq<str> for ErrorCode {
    fn eq(&self, text: &str) -> bool {
        self.as_str() == text
    }
}

impl PartialEq<&str> for ErrorCode {
    fn eq(&self, text: &&str) -> bool {
        self.as_str() == *text
    }
}

/// Error code that was stored or received. It may come from another version and be unknown to this one; its text is
/// then kept unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum RecordedErrorCode {
    Known(ErrorCode),
    Unknown(String),
}

impl RecordedErrorCode {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(code) => code.as_str(),
            Self::Unknown(text) => text,
        }
    }

    /// Returns the code if this version has it.
    pub const fn known(&self) -> Option<ErrorCode> {
        match self {
            Self::Known(code) => Some(*code),
            Self::Unknown(_) => None,
        }
    }
}

impl From<ErrorCode> for RecordedErrorCode {
    fn from(code: ErrorCode) -> Self {
        Self::Known(code)
    }
}

impl From<String> for RecordedErrorCode {
    fn from(text: String) -> Self {
        text.parse().map_or_else(|_| Self::Unknown(text), Self::Known)
    }
}

impl From<RecordedErrorCode> for String {
    fn from(code: RecordedErrorCode) -> Self {
        match code {
            RecordedErrorCode::Known(code) => code.as_str().to_owned(),
            RecordedErrorCode::Unknown(text) => text,
        }
    }
}

impl fmt::Display for RecordedErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl PartialEq<ErrorCode> for RecordedErrorCode {
    fn eq(&self, code: &ErrorCode) -> bool {
        self.known() == Some(*code)
    }
}

impl PartialEq<str> for RecordedErrorCode {
    fn eq(&self, text: &str) -> bool {
        self.as_str() == text
    }
}

impl PartialEq<&str> for RecordedErrorCode {
    fn eq(&self, text: &&str) -> bool {
        self.as_str() == *text
    }
}

#[cfg(test)]
mod tests;
