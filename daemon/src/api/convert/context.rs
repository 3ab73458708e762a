//! Conversion and validation of requests to the `Contexts` service.

use hearth_proto::v1;

use super::super::error::ApiError;
use super::mounts::build_mounts;
use crate::model::fault::ErrorCode;
use crate::model::{BuildMount, MountTarget};

/// Maximum length of a path in system calls, in bytes.
const MAX_PATH: usize = 4095;

/// Returns the mounts of a context, sorted by target, and the directory in them that is its root.
pub fn context(
    wire: Option<v1::ContextSources>,
    field: &str,
) -> Result<(Vec<BuildMount>, MountTarget), ApiError> {
    let v1::ContextSources { mounts: wire, context_path } = wire.unwrap_or_default();
    let mut mounts = build_mounts(wire, &format!("{field}.mounts"), "a context needs at least one mount")?;
    mounts.sort_by(|a, b| a.target.cmp(&b.target));
    let root = match (context_path.as_str(), &mounts[..]) {
        ("", [mount]) => mount.target.to_string(),
        ("", _) => "/".to_owned(),
        (path, _) => path.to_owned(),
    };
    let root = root.parse().map_err(|error| {
        ApiError::invalid(
            format!("{field}.context_path"),
            ErrorCode::InvalidContextPath,
            format!("context path: {error}"),
        )
    })?;
    Ok((mounts, root))
}

/// Converts a path in a context to a path from the root of all mounts. A relative path starts at the context's root.
pub fn path_in(root: &MountTarget, path: &[u8]) -> Result<Vec<u8>, ApiError> {
    let invalid = |message: &str| ApiError::invalid("path", ErrorCode::InvalidPath, message.to_owned());
    if path.contains(&0) {
        return Err(invalid("the path has a NUL byte"));
    }
    let whole = match path.strip_prefix(b"/") {
        Some(absolute) => absolute.to_vec(),
        None => [&root.as_str().as_bytes()[1..], b"/", path].concat(),
    };
    if whole.len() > MAX_PATH {
        return Err(invalid("the path is too long"));
    }
    Ok(whole)
}
