//! Conversion of errors about the reception of requests, whatever they ask for.

use std::time::Duration;

use super::ApiError;
use crate::api::receive::{self, MessageTooLarge};
use crate::api::shares::TooManyRequests;
use crate::connections::ConnectionLimitReached;
use crate::model::fault::ErrorCode;

/// Delay after which a caller that has too many connections should try again.
const CONNECTION_RETRY: Duration = Duration::from_secs(5);

impl From<TooManyRequests> for ApiError {
    fn from(error: TooManyRequests) -> Self {
        Self::new(ErrorCode::TooManyRequests, error.to_string()).retryable(Some(receive::RETRY))
    }
}

impl From<ConnectionLimitReached> for ApiError {
    fn from(error: ConnectionLimitReached) -> Self {
        Self::new(ErrorCode::TooManyConnections, error.to_string()).retryable(Some(CONNECTION_RETRY))
    }
}

impl From<MessageTooLarge> for ApiError {
    fn from(MessageTooLarge { size, limit }: MessageTooLarge) -> Self {
        let message = format!("a message of this method has at most {limit} bytes, and this one has {size}");
        Self::new(ErrorCode::MessageTooLarge, message)
    }
}
