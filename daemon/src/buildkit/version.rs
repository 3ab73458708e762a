//! Check of BuildKit's version.

/// Minimum version. Older versions have flaws that let a Dockerfile reach out of its build.
const MINIMUM: (u64, u64, u64) = (0, 31, 1);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    #[error("BuildKit {0} is refused: 0.31.1 or newer is needed; install a newer buildkitd")]
    TooOld(String),
    #[error("BuildKit does not report its version, so it is refused: 0.31.1 or newer is needed")]
    Unknown,
}

/// Checks a version such as `v0.32.2`, `0.31.1+deb` or `v0.33.0-rc1`; text after the three numbers is ignored.
pub(super) fn check(version: &str) -> Result<(), VersionError> {
    let text = version.strip_prefix('v').unwrap_or(version);
    let mut parts = text.splitn(3, '.').map(|part| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part[..digits].parse::<u64>().ok()
    });
    let mut next = || parts.next().flatten().ok_or(VersionError::Unknown);
    let found = (next()?, next()?, next()?);
    if found < MINIMUM { Err(VersionError::TooOld(version.to_owned())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_below_0_31_1_are_refused() {
        for good in ["v0.32.2", "0.31.1", "v0.31.1+dfsg1", "v1.0.0", "v0.33.0-rc1"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for old in ["v0.31.0", "0.9.3", "0.0.0+unknown", "v0.31"] {
            assert!(check(old).is_err(), "{old}");
        }
        assert_eq!(check(""), Err(VersionError::Unknown));
        assert_eq!(check("master"), Err(VersionError::Unknown));
    }
}
