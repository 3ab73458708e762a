use std::fmt;

/// A value that is shown nowhere: `Debug` prints a placeholder, there is no `Display` and no serde.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself, for the one place that hands it on.
    pub const fn reveal(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A name and a password for a registry.
#[derive(Clone, Debug)]
pub struct Credential {
    pub username: String,
    pub password: Secret<String>,
}
