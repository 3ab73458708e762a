//! Validation of the caches that a build reads and writes.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;

use super::super::super::error::ApiError;
use crate::model::fault::ErrorCode;
use crate::model::{CacheExport, CacheImport, CacheLocation, RoomRegistries};

/// Maximum number of caches that a build reads, and that it writes.
const MAX_CACHES: usize = 16;

/// Parses `spec.cache_from`. A bare name means the room's registry.
pub(super) fn imports(texts: Vec<String>, rooms: &RoomRegistries) -> Result<Vec<CacheImport>, ApiError> {
    let parsed: Vec<CacheImport> = parse("spec.cache_from", texts)?;
    let qualified = parsed.into_iter().map(|import| {
        let location = qualify(import.location, rooms);
        CacheImport { location, ..import }
    });
    Ok(qualified.collect())
}

/// Parses `spec.cache_to`. The builder makes one cache, so all its places have the same format.
pub(super) fn exports(texts: Vec<String>, rooms: &RoomRegistries) -> Result<Vec<CacheExport>, ApiError> {
    let parsed: Vec<CacheExport> = parse("spec.cache_to", texts)?;
    let mut first_format = None;
    let mut qualified = Vec::with_capacity(parsed.len());
    for (i, export) in parsed.into_iter().enumerate() {
        qualified.push(match export {
            CacheExport::Inline => CacheExport::Inline,
            CacheExport::To { location, format, ignore_error } => {
                if *first_format.get_or_insert(format) != format {
                    let message = "all written caches of a build have the same `mode`, `image-manifest` and `oci-mediatypes`";
                    return Err(invalid(&format!("spec.cache_to[{i}]"), &message));
                }
                CacheExport::To { location: qualify(location, rooms), format, ignore_error }
            }
        });
    }
    Ok(qualified)
}

fn parse<T: FromStr<Err: Display>>(field: &str, texts: Vec<String>) -> Result<Vec<T>, ApiError> {
    if texts.len() > MAX_CACHES {
        return Err(ApiError::invalid(field, ErrorCode::TooMany, format!("at most {MAX_CACHES} caches")));
    }
    let mut seen = BTreeSet::new();
    let mut parsed = Vec::with_capacity(texts.len());
    for (i, text) in texts.into_iter().enumerate() {
        let value = text.parse().map_err(|error: T::Err| invalid(&format!("{field}[{i}]"), &error))?;
        if seen.insert(text) {
            parsed.push(value);
        }
    }
    Ok(parsed)
}

fn invalid(field: &str, reason: &dyn Display) -> ApiError {
    ApiError::invalid(field, ErrorCode::InvalidBuildCache, reason.to_string())
}

fn qualify(location: CacheLocation, rooms: &RoomRegistries) -> CacheLocation {
    match location {
        CacheLocation::Registry(reference) => CacheLocation::Registry(rooms.qualify(reference)),
        other => other,
    }
}
