//! Errors of calls, decoded from `hearth.v1.ErrorDetail` in the status details of gRPC.

use std::error::Error;

use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::ErrorDetail;
use tonic::{Code, Status};

use super::target::TargetError;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no answer from hearthd at {address}: {reason}")]
    Unreachable { address: String, reason: String },
    #[error("{}", .0.message)]
    Denied(Box<ErrorDetail>),
    /// The request itself is invalid.
    #[error("{}", .0.message)]
    Invalid(Box<ErrorDetail>),
    #[error("{}", .0.message)]
    Failed(Box<ErrorDetail>),
    #[error("hearthd answered in a way this client does not understand: {0}")]
    Protocol(String),
    #[error(transparent)]
    Address(#[from] TargetError),
    #[error("the token {0}")]
    Token(&'static str),
}

impl ClientError {
    /// Converts the status of a call to `address` to an error.
    pub(super) fn from_status(address: &str, status: &Status) -> Self {
        let detail = error_detail(status);
        // A status that tonic creates on the client side has the transport error as its source.
        let lost = status.source().is_some() || status.code() == Code::Unavailable;
        if detail.is_none() && lost {
            return Self::Unreachable { address: address.to_owned(), reason: root_cause(status) };
        }
        let detail = Box::new(detail.unwrap_or_else(|| detail_from_status(status)));
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Self::Denied(detail),
            Code::InvalidArgument | Code::OutOfRange => Self::Invalid(detail),
            Code::Unimplemented => {
                Self::Protocol(format!("it does not know a call of this client ({})", detail.message))
            }
            _ => Self::Failed(detail),
        }
    }

    /// Reports whether the same call may succeed later: the connection was lost, or the daemon marked the
    /// error as retryable.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Failed(detail) => detail.retryable,
            Self::Denied(_) | Self::Invalid(_) | Self::Protocol(_) | Self::Address(_) | Self::Token(_) => {
                false
            }
        }
    }
}

fn error_detail(status: &Status) -> Option<ErrorDetail> {
    let mut detail = hearth_proto::status::error_detail(status)?;
    if detail.message.is_empty() {
        status.message().clone_into(&mut detail.message);
    }
    Some(detail)
}

/// Derives a detail from a bare status, which an intermediary created.
fn detail_from_status(status: &Status) -> ErrorDetail {
    let code = match status.code() {
        Code::Unauthenticated => ErrorCode::Unauthenticated,
        Code::PermissionDenied => ErrorCode::PermissionDenied,
        Code::InvalidArgument => ErrorCode::InvalidArgument,
        Code::NotFound => ErrorCode::NotFound,
        Code::AlreadyExists => ErrorCode::AlreadyExists,
        Code::ResourceExhausted => ErrorCode::ResourceExhausted,
        Code::FailedPrecondition => ErrorCode::FailedPrecondition,
        Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
        Code::Unimplemented => ErrorCode::Unimplemented,
        _ => ErrorCode::Internal,
    };
    let message = if status.message().is_empty() { status.code().description() } else { status.message() };
    ErrorDetail {
        code: code.as_str().to_owned(),
        message: message.to_owned(),
        retryable: matches!(status.code(), Code::ResourceExhausted | Code::DeadlineExceeded | Code::Aborted),
        ..Default::default()
    }
}

/// Message of the innermost cause: "Connection refused" says more than "transport error".
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match innermost.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => innermost.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use hearth_proto::status::status_with_detail;

    use super::*;

    fn seen(status: &Status) -> ClientError {
        ClientError::from_status("http://x:1", status)
    }

    #[test]
    fn the_detail_in_a_status_survives_the_wire() {
        let detail = ErrorDetail {
            code: "invalid_tag".into(),
            message: "tag is wrong".into(),
            hint: "write a:b".into(),
            ..Default::default()
        };
        match seen(&status_with_detail(Code::InvalidArgument, &detail)) {
            ClientError::Invalid(got) => assert_eq!(*got, detail),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_status_code_has_its_class() {
        let detail = ErrorDetail { code: "x".into(), message: "m".into(), ..Default::default() };
        for code in [Code::Unauthenticated, Code::PermissionDenied] {
            assert!(matches!(seen(&status_with_detail(code, &detail)), ClientError::Denied(_)));
            assert!(matches!(seen(&Status::new(code, "m")), ClientError::Denied(_)));
        }
        assert!(matches!(seen(&Status::new(Code::Unavailable, "m")), ClientError::Unreachable { .. }));
        // The daemon itself answered "unavailable", so it was reached.
        assert!(matches!(seen(&status_with_detail(Code::Unavailable, &detail)), ClientError::Failed(_)));
        assert!(matches!(seen(&Status::new(Code::NotFound, "m")), ClientError::Failed(_)));
        assert!(matches!(seen(&Status::new(Code::Unimplemented, "m")), ClientError::Protocol(_)));
    }

    #[test]
    fn details_that_are_not_ours_are_no_error_of_their_own() {
        let status = Status::with_details(Code::NotFound, "gone", bytes::Bytes::from_static(b"\xff\xff\xff"));
        assert!(matches!(seen(&status), ClientError::Failed(detail) if detail.message == "gone"));
    }
}
