//! Conversion of errors of room storage and of the room's disk.

use super::ApiError;
use crate::api::grpc::FileError;
use crate::context::StorageError;
use crate::disk::DiskError;
use crate::model::fault::ErrorCode;

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        let message = error.to_string();
        let code = match &error {
            StorageError::NotFound { .. } => ErrorCode::NotFound,
            StorageError::Escapes { .. } => ErrorCode::PathEscapes,
            StorageError::IsLink { .. } => ErrorCode::IsALink,
            StorageError::LinkLoop { .. } => ErrorCode::LinkLoop,
            StorageError::NotADirectory { .. } => ErrorCode::NotADirectory,
            StorageError::IsADirectory { .. } => ErrorCode::IsADirectory,
            StorageError::IsTheRoot { .. } => ErrorCode::IsTheRoot,
            StorageError::NotAFile { .. } => ErrorCode::NotAFile,
            StorageError::AlreadyExists { .. } => ErrorCode::AlreadyExists,
            StorageError::BadPath { .. } => ErrorCode::InvalidPath,
            StorageError::Denied { .. } => ErrorCode::Denied,
            StorageError::NoSpace { .. } => {
                return Self::new(ErrorCode::NoSpace, message)
                    .hint("free some space in the storage and try again");
            }
            StorageError::SizeMismatch { .. } => ErrorCode::SizeMismatch,
            StorageError::Changed { .. } => ErrorCode::Changed,
            StorageError::Unsupported { .. } | StorageError::Io { .. } => {
                return Self::of_failure("the storage could not be used", &error);
            }
        };
        Self::new(code, message)
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Storage(error) => error.into(),
            FileError::Disk(error) => error.into(),
        }
    }
}

impl From<DiskError> for ApiError {
    fn from(error: DiskError) -> Self {
        let message = error.to_string();
        match error {
            DiskError::Quota { .. } => Self::new(ErrorCode::QuotaExceeded, message),
            DiskError::ImageTooLarge { .. } => Self::new(ErrorCode::ImageTooLarge, message),
            DiskError::NoSpace { .. } => Self::new(ErrorCode::NoSpace, message)
                .hint("remove images and files that are not needed, or make the disk larger"),
            DiskError::Io(cause) => Self::internal("the disk could not be looked at", cause),
        }
    }
}
