//! Encoding of a [`v1::ErrorDetail`] in a gRPC status: inside a `google.rpc.Status`, which gRPC carries
//! in `grpc-status-details-bin`.

use prost::Message as _;
use tonic::{Code, Status};

use crate::error_code::ErrorCode;
use crate::v1::ErrorDetail;

/// Type URL of the detail. A reader ignores everything before the last `/`.
pub const DETAIL_TYPE: &str = "type.googleapis.com/hearth.v1.ErrorDetail";
const DETAIL_NAME: &str = "hearth.v1.ErrorDetail";

/// `google.rpc.Status`: the standard envelope of error details.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<prost_types::Any>,
}

/// Returns the status that the catalogue gives to an error code.
pub const fn catalogue_status(code: ErrorCode) -> Code {
    Code::from_i32(code.entry().grpc_status as i32)
}

/// Builds a status that carries the detail.
pub fn status_with_detail(code: Code, detail: &ErrorDetail) -> Status {
    let any = prost_types::Any { type_url: DETAIL_TYPE.to_owned(), value: detail.encode_to_vec() };
    let envelope = RpcStatus { code: code.into(), message: detail.message.clone(), details: vec![any] };
    Status::with_details(code, detail.message.clone(), envelope.encode_to_vec().into())
}

/// Returns the message of the innermost cause of a failed call, such as `connection refused`. Without a
/// cause, returns the status message.
pub fn root_cause_message(status: &Status) -> String {
    let mut deepest = std::error::Error::source(status);
    while let Some(next) = deepest.and_then(std::error::Error::source) {
        deepest = Some(next);
    }
    match deepest {
        Some(cause) => cause.to_string(),
        None => status.message().to_owned(),
    }
}

/// Returns the detail of a status, or `None` when there is no readable one.
pub fn error_detail(status: &Status) -> Option<ErrorDetail> {
    let envelope = RpcStatus::decode(status.details()).ok()?;
    let any = envelope.details.iter().find(|any| any.type_url.rsplit('/').next() == Some(DETAIL_NAME))?;
    ErrorDetail::decode(any.value.as_slice()).ok()
}
