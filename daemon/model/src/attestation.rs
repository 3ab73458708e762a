//! Attestations: statements about an image, in the form of in-toto.

use hearth_value::Digest;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Media type of an in-toto statement, and artifact type of a manifest that attaches one to an image.
pub const IN_TOTO_TYPE: &str = "application/vnd.in-toto+json";
/// Annotation of a layer that holds an in-toto statement.
pub const PREDICATE_TYPE_ANNOTATION: &str = "in-toto.io/predicate-type";
/// Predicate type of SLSA provenance 1.0.
pub const SLSA_PROVENANCE_TYPE: &str = "https://slsa.dev/provenance/v1";

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// What a statement says, without the image that it is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate {
    pub kind: &'static str,
    pub content: Value,
}

impl Predicate {
    /// Returns the in-toto statement about an image, which has these names.
    pub fn statement(&self, image: &Digest, names: &[String]) -> Value {
        let about = |name: &String| json!({"name": name, "digest": {"sha256": image.hex()}});
        json!({
            "_type": STATEMENT_TYPE,
            "subject": names.iter().map(about).collect::<Vec<_>>(),
            "predicateType": self.kind,
            "predicate": self.content,
        })
    }
}

/// A statement that is attached to an image of the room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedStatement {
    pub predicate_type: String,
    /// Blob of the image's repository that holds the statement.
    pub digest: Digest,
    pub size: u64,
    /// Time at which it was made, if the manifest that attaches it says so.
    pub created_at: Option<Timestamp>,
}
