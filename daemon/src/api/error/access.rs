//! Conversion of errors of tokens and grants.

use super::ApiError;
use crate::access::policy::AccessDenied;
use crate::access::{AccessError, KeyChangeError, MintError};
use crate::model::fault::ErrorCode;

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        let code = match &error {
            AccessError::Missing => ErrorCode::TokenMissing,
            AccessError::Invalid(_) => ErrorCode::TokenInvalid,
            AccessError::Expired { .. } => ErrorCode::TokenExpired,
            AccessError::Revoked { .. } | AccessError::CreatorRevoked { .. } => ErrorCode::TokenRevoked,
            AccessError::OtherRoom { .. } => ErrorCode::TokenOtherRoom,
            AccessError::ForeignName { .. } => ErrorCode::TokenForeignName,
            AccessError::ForeignDomain { .. } => ErrorCode::TokenForeignDomain,
        };
        Self::new(code, error.to_string())
    }
}

/// A missing grant.
impl From<AccessDenied> for ApiError {
    fn from(denied: AccessDenied) -> Self {
        Self::new(ErrorCode::Denied, format!("this token may not {denied}"))
            .hint("ask for a token whose `api` grant allows it: hearth token mint --scope ...")
    }
}

impl From<MintError> for ApiError {
    fn from(error: MintError) -> Self {
        let (field, code) = match &error {
            MintError::Scope { .. } => ("scope", ErrorCode::InvalidScope),
            MintError::Ttl => ("ttl", ErrorCode::InvalidTtl),
            MintError::Name | MintError::ReservedName => ("name", ErrorCode::InvalidName),
            MintError::Domain(_) => ("domain", ErrorCode::InvalidDomain),
            MintError::Sign(cause) => return Self::internal("the token cannot be signed", cause),
        };
        Self::invalid(field, code, error.to_string())
    }
}

impl From<KeyChangeError> for ApiError {
    fn from(error: KeyChangeError) -> Self {
        let message = error.to_string();
        match error {
            KeyChangeError::Grace => Self::invalid("grace", ErrorCode::InvalidGrace, message),
            KeyChangeError::Name => Self::invalid("name", ErrorCode::InvalidName, message),
            KeyChangeError::TooManySecrets => Self::new(ErrorCode::TooManySecrets, message),
            KeyChangeError::TooManyRevocations => Self::new(ErrorCode::TooManyRevocations, message),
            error @ KeyChangeError::File(_) => Self::of_failure("tokens could not be changed", &error),
        }
    }
}
