//! Error responses, with the bodies and codes of the distribution spec ("Error Codes").

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::API_VERSION;
use super::route::RouteKind;
use crate::access::policy::AccessDenied;
use crate::disk::is_disk_full;
use crate::image::port::{BlobError, CatalogError};
use crate::model::{Digest, Repository};

/// Challenge of a response 401. Clients of registries send the token as the password.
const CHALLENGE: &str = "Basic realm=\"hearth\"";

#[derive(Debug)]
pub(super) struct RegistryErrorResponse {
    status: StatusCode,
    code: &'static str,
    message: String,
    detail: Value,
    headers: Vec<(HeaderName, HeaderValue)>,
    hidden: Option<Box<AccessDenied>>,
}

impl RegistryErrorResponse {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), detail: Value::Null, headers: Vec::new(), hidden: None }
    }

    pub(super) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn unknown(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(super) fn blob_unknown(repository: &Repository, digest: &Digest) -> Self {
        Self::unknown("BLOB_UNKNOWN", format!("repository `{repository}` has no blob {digest}"))
            .detail(json!({"digest": digest}))
    }

    pub(super) fn upload_unknown(id: &str) -> Self {
        let id: String = id.chars().take(64).collect();
        Self::unknown(
            "BLOB_UPLOAD_UNKNOWN",
            format!("there is no upload `{id}` in this repository; begin again"),
        )
    }

    /// Asks for a token.
    pub(super) fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "UNAUTHORIZED",
            "a participant token is needed: as Bearer, or as the password with any user name",
        )
        .header(WWW_AUTHENTICATE, CHALLENGE)
    }

    /// Refuses a token. The parameters `error` and `error_description` of the challenge are those of RFC 6750, section
    /// 3; clients ignore parameters that they do not know (RFC 9110, section 11.6.1).
    pub(super) fn invalid_token(reason: &str, message: &str) -> Self {
        // Only these characters may be in a description.
        let allowed = |&letter: &char| matches!(letter, ' '..='~') && letter != '"' && letter != '\\';
        let description: String = message.chars().filter(allowed).collect();
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message).detail(json!({"reason": reason})).header(
            WWW_AUTHENTICATE,
            &format!("{CHALLENGE}, error=\"invalid_token\", error_description=\"{description}\""),
        )
    }

    pub(super) fn method(kind: RouteKind) -> Self {
        let allowed = kind.methods().iter().map(|verb| verb.as_str()).collect::<Vec<_>>().join(", ");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", format!("allowed here: {allowed}"))
            .header(ALLOW, &allowed)
    }

    /// Internal error: its cause is written to the log only.
    pub(super) fn internal(what: &str, error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, operation = what, "failed to answer a registry request");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "UNKNOWN",
            format!("{what} failed; the daemon's log says why"),
        )
    }

    pub(super) fn busy(message: &str) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message).header(RETRY_AFTER, "5")
    }

    pub(super) fn detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }

    /// Gives the same response as for an object that does not exist. The audit trail finds the denial in the
    /// response extensions.
    pub(super) fn hiding_denial(self, denied: AccessDenied) -> Self {
        Self { hidden: Some(Box::new(denied)), ..self }
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        // Values consist of digests, numbers and validated names.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }
}

impl From<AccessDenied> for RegistryErrorResponse {
    fn from(denied: AccessDenied) -> Self {
        Self::new(StatusCode::FORBIDDEN, "DENIED", format!("this token may not {denied}"))
    }
}

impl From<CatalogError> for RegistryErrorResponse {
    fn from(error: CatalogError) -> Self {
        if is_disk_full(&error.0) {
            return BlobError::DiskFull.into();
        }
        Self::internal("reading or writing the names of images", &error)
    }
}

impl From<BlobError> for RegistryErrorResponse {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Mismatch { expected, actual } => Self::bad("DIGEST_INVALID", error.to_string())
                .detail(json!({"expected": expected, "actual": actual})),
            BlobError::DiskFull => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "UNAVAILABLE",
                "no space is left in the room's registry; nothing of this upload was kept. Remove images, or give the daemon's state directory more room",
            ),
            // 403, because clients retry at once after 429 and 5xx.
            BlobError::Quota(message) => Self::new(StatusCode::FORBIDDEN, "DENIED", message)
                .detail(json!({"reason": "quota_exceeded"})),
            BlobError::Io(error) => Self::internal("reading or writing blob content", &error),
        }
    }
}

impl From<std::io::Error> for RegistryErrorResponse {
    fn from(error: std::io::Error) -> Self {
        BlobError::from(error).into()
    }
}

/// The blocking task was cancelled because the daemon stops, or it panicked.
impl From<tokio::task::JoinError> for RegistryErrorResponse {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::internal("work on a blocking thread", &error)
    }
}

impl IntoResponse for RegistryErrorResponse {
    fn into_response(self) -> Response {
        let mut error = json!({"code": self.code, "message": self.message});
        if !self.detail.is_null() {
            error["detail"] = self.detail;
        }
        let mut response = Response::new(Body::from(json!({"errors": [error]}).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(API_VERSION.0, API_VERSION.1);
        headers.extend(self.headers);
        if let Some(hidden) = self.hidden {
            response.extensions_mut().insert(*hidden);
        }
        response
    }
}
