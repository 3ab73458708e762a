use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Certificate and private key, in PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// PEM file with the certificate, followed by its chain.
    pub certificate: PathBuf,
    pub key: PathBuf,
}
