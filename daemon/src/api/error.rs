//! Mapping of errors to gRPC statuses. The modules below convert the errors of the domains, so that each conversion to a
//! status is here, and no other module has one.
//!
//! A handler returns an [`ApiError`]; it becomes a gRPC status whose details contain a `hearth.v1.ErrorDetail`,
//! in the envelope of `google.rpc.Status`.

mod access;
mod build;
mod context;
mod image;
mod pack;
mod secret;
mod service;
mod storage;
mod transport;

use hearth_proto::status::{catalogue_status, status_with_detail};
use hearth_proto::v1::ErrorDetail;
use tonic::{Code, Status};

use crate::disk::is_caused_by_full_disk;
use crate::model::fault::{ErrorCode, Fault};

/// A refused or failed request, with the details that the caller needs to correct it.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    status: Code,
    detail: Box<ErrorDetail>,
}

impl ApiError {
    /// Creates an error with the status, the default hint and the retryability of its code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let entry = code.entry();
        let detail = ErrorDetail {
            code: entry.text.to_owned(),
            message: message.into(),
            hint: entry.hint.unwrap_or_default().to_owned(),
            retryable: code.is_retryable(),
            ..ErrorDetail::default()
        };
        Self { status: catalogue_status(code), detail: Box::new(detail) }
    }

    /// Creates an error from a fault. The code of another version has the status of an unmet condition.
    pub fn from_fault(fault: Fault) -> Self {
        let status = fault.code.known().map_or(Code::FailedPrecondition, catalogue_status);
        Self { status, detail: Box::new(fault_detail(fault)) }
    }

    /// Sets a status other than the one of the code.
    pub const fn status(mut self, status: Code) -> Self {
        self.status = status;
        self
    }

    /// Creates an error about an invalid field of the request.
    pub fn invalid(field: impl Into<String>, code: ErrorCode, message: impl Into<String>) -> Self {
        let mut refusal = Self::new(code, message);
        refusal.detail.field = field.into();
        "request".clone_into(&mut refusal.detail.stage);
        refusal
    }

    /// Creates an error about an internal failure: the caller gets a short text, the log gets the cause.
    pub fn internal(context: &str, cause: impl std::fmt::Display) -> Self {
        tracing::error!(error = %cause, operation = context, "failed to answer a request");
        Self::new(ErrorCode::Internal, format!("{context}; the daemon's log has the cause"))
    }

    /// Creates an error about a full disk if that caused `error`. Whatever was to be written is not.
    fn of_full_disk(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        is_caused_by_full_disk(error).then(|| {
            tracing::warn!(%error, "refused a request because the disk is full");
            Self::new(ErrorCode::NoSpace, format!("no space is left on the room's disk: {error}"))
        })
    }

    /// Creates an error about a failure that is internal unless the disk is full.
    pub fn of_failure(context: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::of_full_disk(error).unwrap_or_else(|| Self::internal(context, error))
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

    /// Replaces the hint of the code if there is a more specific one.
    pub fn maybe_hint(self, hint: Option<impl Into<String>>) -> Self {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
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

/// Converts the fault of a failed build.
pub fn fault_detail(fault: Fault) -> ErrorDetail {
    ErrorDetail {
        code: fault.code.into(),
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
        probes: fault.probes,
    }
}

#[cfg(test)]
mod tests {
    use hearth_proto::status::{DETAIL_TYPE, RpcStatus};
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_refusal_carries_its_detail_in_the_standard_envelope() {
        let refusal = ApiError::invalid("spec.tag", ErrorCode::InvalidTag, "no").hint("do");
        let status = Status::from(refusal.clone());
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "no"));
        let envelope = RpcStatus::decode(status.details()).unwrap();
        assert_eq!(envelope.code, 3);
        assert_eq!(envelope.details[0].type_url, DETAIL_TYPE);
        assert_eq!(ErrorDetail::decode(&*envelope.details[0].value).unwrap(), *refusal.detail);
    }

    #[test]
    fn a_full_disk_is_named_whichever_store_finds_it() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let services = crate::deploy::port::ServiceStoreError::Database(full());
        let runtime = crate::deploy::port::RuntimeError::DiskFull;
        let refusals: [ApiError; 6] = [
            crate::deploy::DeployError::Runtime(runtime).into(),
            crate::build::BuildError::Store(crate::build::port::StoreError(full())).into(),
            crate::deploy::DeployError::from(services).into(),
            crate::image::ImageError::Catalog(crate::image::port::CatalogError(full())).into(),
            crate::secrets::SecretsError::Store(crate::secrets::port::SecretStoreError(full())).into(),
            crate::packs::PackError::Io(full()).into(),
        ];
        for refusal in refusals {
            assert_eq!(refusal.detail.code, "no_space", "{refusal:?}");
            assert!(refusal.detail.message.contains("space"), "{refusal:?}");
        }
        let other = crate::packs::PackError::Io(std::io::Error::other("broken"));
        assert_eq!(ApiError::from(other).detail.code, "internal");
    }
}
