//! Detection of JSON field names that differ from a known field only in case, and that another program would accept for
//! that field.
//!
//! Go's `encoding/json`, which BuildKit and containerd use to read images, accepts `Layers` for `layers`. A document
//! with both would describe one image to us and another one to them.

use serde_json::{Map, Value};

/// Error of a document that is malformed or ambiguous.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("the document is not valid: {0}")]
    Json(#[from] serde_json::Error),
    #[error("`{0}`: other programs may read this name as another spelling of a known field")]
    AmbiguousName(String),
}

/// Rejects an object with a key that differs from one of `names` only in case.
pub fn check_spelling(object: &Map<String, Value>, names: &[&str]) -> Result<(), DocumentError> {
    other_spelling(object, names)
        .map_or(Ok(()), |name| Err(DocumentError::AmbiguousName(name.chars().take(200).collect())))
}

/// Returns the first key that differs from one of `names` only in case.
fn other_spelling(object: &Map<String, Value>, names: &[&str]) -> Option<String> {
    let is_other_spelling =
        |key: &String| names.iter().any(|name| key != name && folded(key).eq(name.chars().flat_map(fold)));
    object.keys().find(|key| is_other_spelling(key)).cloned()
}

fn folded(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().flat_map(fold)
}

/// Folds case as Go does: two letters beyond ASCII fold to `k` and `s`.
fn fold(letter: char) -> Option<char> {
    Some(match letter {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        letter => letter.to_ascii_lowercase(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_spelling_that_go_takes_for_a_name_is_found() {
        let found =
            |value: Value| other_spelling(value.as_object().unwrap(), &["layers", "diff_ids", "mediaType"]);
        assert_eq!(found(json!({"layers": 1, "diff_ids": 2, "mediaType": 3, "other": 4, "Labels": 5})), None);
        for key in ["Layers", "LAYERS", "layer\u{17f}", "Diff_IDs", "mediatype", "MediaType"] {
            assert_eq!(found(json!({key: 1})), Some(key.to_owned()));
        }
    }
}
