use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A certificate and its key, in PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// With the chain behind it.
    pub certificate: PathBuf,
    pub key: PathBuf,
}
