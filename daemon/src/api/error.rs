//! Mapping of errors to gRPC statuses.
//!
//! A handler returns an [`ApiError`]; it becomes a gRPC status whose details contain a `hearth.v1.ErrorDetail`,
//! in the envelope of `google.rpc.Status`.

use hearth_proto::status::status_with_detail;
use hearth_proto::v1::ErrorDetail;
use tonic::{Code, Status};

use crate::access::policy::AccessDenied;
use crate::access::{AccessError, MintError};
use crate::model::fault::Fault;

/// A refused or failed request, with the details that the caller needs to correct it.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    status: Code,
    detail: Box<ErrorDetail>,
}

impl ApiError {
    pub fn new(status: Code, code: &str, message: impl Into<String>) -> Self {
        let detail = ErrorDetail { code: code.to_owned(), message: message.into(), ..ErrorDetail::default() };
        Self::with_detail(status, detail)
    }

    /// Creates an error from an existing detail.
    pub fn with_detail(status: Code, detail: ErrorDetail) -> Self {
        Self { status, detail: Box::new(detail) }
    }

    /// Creates an error about an invalid field of the request.
    pub fn invalid(field: impl Into<String>, code: &str, message: impl Into<String>) -> Self {
        let mut refusal = Self::new(Code::InvalidArgument, code, message);
        refusal.detail.field = field.into();
        "request".clone_into(&mut refusal.detail.stage);
        refusal
    }

    /// Creates an error about an internal failure: the caller gets a short text, the log gets the cause.
    pub fn internal(context: &str, cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "{context}");
        Self::new(Code::Internal, "internal", format!("{context}; the daemon's log has the cause"))
    }

    pub fn detail(&self) -> &ErrorDetail {
        &self.detail
    }

    /// Sets the field of the request that the error is about.
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.detail.field = field.into();
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.detail.hint = hint.into();
        self
    }

    pub fn retryable(mut self, after: Option<std::time::Duration>) -> Self {
        self.detail.retryable = true;
        self.detail.retry_after_ms = after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        self
    }
}

impl From<ApiError> for Status {
    fn from(refusal: ApiError) -> Self {
        status_with_detail(refusal.status, &refusal.detail)
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        let code = match &error {
            AccessError::Missing => "token_missing",
            AccessError::Invalid(_) => "token_invalid",
            AccessError::Expired { .. } => "token_expired",
            AccessError::Revoked { .. } | AccessError::CreatorRevoked { .. } => "token_revoked",
            AccessError::OtherRoom { .. } => "token_other_room",
            AccessError::ForeignName { .. } => "token_foreign_name",
            AccessError::ForeignDomain { .. } => "token_foreign_domain",
        };
        Self::new(Code::Unauthenticated, code, error.to_string())
            .hint("make a token on the daemon's machine: hearth token mint")
    }
}

/// A missing grant.
impl From<AccessDenied> for ApiError {
    fn from(denied: AccessDenied) -> Self {
        Self::new(Code::PermissionDenied, "denied", format!("this token may not {denied}"))
            .hint("ask for a token whose `api` grant allows it: hearth token mint --scope ...")
    }
}

impl From<MintError> for ApiError {
    fn from(error: MintError) -> Self {
        let (field, code) = match &error {
            MintError::Scope { .. } => ("scope", "invalid_scope"),
            MintError::Ttl => ("ttl", "invalid_ttl"),
            MintError::Name | MintError::ReservedName => ("name", "invalid_name"),
            MintError::Domain(_) => ("domain", "invalid_domain"),
            MintError::Sign(cause) => return Self::internal("the token cannot be signed", cause),
        };
        Self::invalid(field, code, error.to_string())
    }
}

/// Converts the fault of a failed build.
pub fn fault_detail(fault: Fault) -> ErrorDetail {
    ErrorDetail {
        code: fault.code,
        message: fault.message,
        field: String::new(),
        hint: fault.hint.unwrap_or_default(),
        retryable: fault.retryable,
        stage: fault.stage.as_str().to_owned(),
        step: fault.step.unwrap_or_default(),
        dockerfile: fault.dockerfile.map(super::convert::dockerfile_range),
        exit_code: fault.exit_code,
        log_tail: fault.log_tail,
        retry_after_ms: None,
    }
}

#[cfg(test)]
mod tests {
    use hearth_proto::status::{DETAIL_TYPE, RpcStatus};
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_refusal_carries_its_detail_in_the_standard_envelope() {
        let refusal = ApiError::invalid("spec.tag", "invalid_tag", "no").hint("do");
        let status = Status::from(refusal.clone());
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "no"));
        let envelope = RpcStatus::decode(status.details()).unwrap();
        assert_eq!(envelope.code, 3);
        assert_eq!(envelope.details[0].type_url, DETAIL_TYPE);
        assert_eq!(ErrorDetail::decode(&*envelope.details[0].value).unwrap(), *refusal.detail);
    }
}
