//! Address of a daemon, and the token for it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Address of a daemon: `unix:///path` or `http://host:port`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DaemonAddress {
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

/// A participant token. Secret: `Debug` prints a placeholder.
#[derive(Clone, PartialEq, Eq)]
pub struct ParticipantToken(String);

/// The daemon to connect to, with the token for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DaemonTarget {
    pub address: DaemonAddress,
    pub token: Option<ParticipantToken>,
    /// True when the token comes from the environment instead of an option of this call.
    pub token_from_environment: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("address `{given}` is not valid; write `unix:///path/to/hearth.sock` or `http://host:port`")]
    Malformed { given: String },
    #[error(
        "address `{given}`: hearthd does not speak TLS yet; use `http://` on a private network, or forward the port over ssh"
    )]
    Tls { given: String },
}

impl DaemonAddress {
    /// Default socket of a daemon on this machine.
    pub fn local() -> Self {
        Self::Unix(Path::new("/run/hearth/hearth.sock").to_owned())
    }
}

impl FromStr for DaemonAddress {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let text = text.trim();
        let malformed = || TargetError::Malformed { given: text.chars().take(300).collect() };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') && !path.contains('\0') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(malformed())
            };
        }
        if text.starts_with("https://") {
            return Err(TargetError::Tls { given: text.chars().take(300).collect() });
        }
        let rest = text.strip_prefix("http://").ok_or_else(malformed)?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = authority.rsplit_once(':').ok_or_else(malformed)?;
        let host_ok = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
        let port_ok =
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
        if host_ok && port_ok { Ok(Self::Tcp(authority.to_owned())) } else { Err(malformed()) }
    }
}

impl fmt::Display for DaemonAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(authority) => write!(f, "http://{authority}"),
        }
    }
}

impl ParticipantToken {
    /// Parses a token. Returns `None` when the text is blank.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The token itself, for the two places that need it: the request header and the rooms file.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ParticipantToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<token>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unix_paths_or_http_hosts() {
        for (text, shown) in [
            ("unix:///run/hearth/hearth.sock", "unix:///run/hearth/hearth.sock"),
            ("unix:/tmp/x.sock", "unix:///tmp/x.sock"),
            ("http://127.0.0.1:4327", "http://127.0.0.1:4327"),
            ("http://room.internal:80/", "http://room.internal:80"),
            (" http://[::1]:4327 ", "http://[::1]:4327"),
        ] {
            assert_eq!(text.parse::<DaemonAddress>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "unix://",
            "unix://rel/x",
            "http://",
            "http://x",
            "http://x:0",
            "http://x:99999",
            "x:1",
            "http://a b:1",
            "http://u@h:1",
            "http://h:1/path",
            "ftp://x:1",
        ] {
            assert!(matches!(text.parse::<DaemonAddress>(), Err(TargetError::Malformed { .. })), "{text}");
        }
        assert!(matches!("https://x:1".parse::<DaemonAddress>(), Err(TargetError::Tls { .. })));
    }

    #[test]
    fn a_token_is_not_shown() {
        let target = DaemonTarget {
            address: DaemonAddress::local(),
            token: ParticipantToken::new("s3cret\n"),
            token_from_environment: false,
        };
        assert!(!format!("{target:?}").contains("s3cret"));
        assert_eq!(ParticipantToken::new(" \n"), None);
    }
}
