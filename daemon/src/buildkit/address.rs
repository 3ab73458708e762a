//! Address of a BuildKit.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest path of a unix socket on Linux (`sockaddr_un` without the final NUL).
const SOCKET_PATH_LIMIT: usize = 107;

/// Address at which a BuildKit listens: `unix:///path` or `tcp://host:port` (plain, without TLS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildKitAddress {
    Unix(PathBuf),
    Tcp(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("BuildKit address `{0}`: expected `unix:///path/to/socket` or `tcp://host:port`")]
    Grammar(String),
    #[error(
        "socket path `{}` has {} bytes; the system allows {SOCKET_PATH_LIMIT}: choose a shorter state directory",
        .0.display(), .0.as_os_str().len()
    )]
    TooLong(PathBuf),
}

impl BuildKitAddress {
    pub(super) fn unix(path: PathBuf) -> Result<Self, AddressError> {
        if path.as_os_str().len() > SOCKET_PATH_LIMIT {
            Err(AddressError::TooLong(path))
        } else {
            Ok(Self::Unix(path))
        }
    }
}

impl FromStr for BuildKitAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let grammar = || AddressError::Grammar(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') { Self::unix(path.into()) } else { Err(grammar()) };
        }
        let rest = text.strip_prefix("tcp://").ok_or_else(grammar)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(grammar)?;
        let valid =
            !host.is_empty() && !rest.contains(['/', '@', '?', '#', ' ']) && port.parse::<u16>().is_ok();
        valid.then(|| Self::Tcp(rest.to_owned())).ok_or_else(grammar)
    }
}

impl fmt::Display for BuildKitAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unix_or_tcp() {
        for good in
            ["unix:///run/buildkit/buildkitd.sock", "tcp://127.0.0.1:1234", "tcp://[::1]:1234", "tcp://bk:1"]
        {
            assert_eq!(good.parse::<BuildKitAddress>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "/run/x.sock",
            "unix://run/x",
            "tcp://host",
            "tcp://host:x",
            "tcp://:1",
            "tcp://h:1/x",
            "http://h:1",
        ] {
            assert_eq!(bad.parse::<BuildKitAddress>(), Err(AddressError::Grammar(bad.to_owned())));
        }
        let long = format!("unix:///{}", "x".repeat(120));
        assert!(matches!(long.parse::<BuildKitAddress>(), Err(AddressError::TooLong(_))));
    }
}
