//! Confidential values, registry credentials, and names of room secrets.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Maximum length of the name of a room secret.
const MAX_NAME: usize = 128;

/// Value that is never shown: `Debug` prints a placeholder, and there is no `Display` and no serde.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// Returns the value, for the one place that passes it on.
    pub const fn reveal(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// User name and password for a registry.
#[derive(Clone, Debug)]
pub struct RegistryCredential {
    pub username: String,
    pub password: Secret<String>,
}

/// Name of a room secret: `[A-Za-z_][A-Za-z0-9_.-]{0,127}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "secret name `{given}`: expected a letter or `_`, then letters, digits, `_`, `.` and `-`, at most {MAX_NAME} in all"
)]
pub struct SecretNameError {
    given: String,
}

impl SecretName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretName {
    type Err = SecretNameError;

    fn from_str(text: &str) -> Result<Self, SecretNameError> {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if first && text.len() <= MAX_NAME && text.bytes().all(inner) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SecretNameError { given: text.chars().take(100).collect() })
        }
    }
}

impl TryFrom<String> for SecretName {
    type Error = SecretNameError;
    fn try_from(text: String) -> Result<Self, SecretNameError> {
        text.parse()
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Public properties of a room secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretView {
    pub name: SecretName,
    pub created_at: Timestamp,
    /// Time of the last change of its value.
    pub changed_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_name_is_that_of_a_variable_with_dots_and_dashes() {
        for name in ["A", "_", "db.password-2", &"x".repeat(128)] {
            assert_eq!(name.parse::<SecretName>().unwrap().as_str(), name);
        }
        for name in ["", "1a", ".a", "a b", "a/b", "ä", "a\0", &"x".repeat(129)] {
            assert!(name.parse::<SecretName>().is_err(), "{name}");
        }
    }
}
