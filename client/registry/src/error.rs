//! Errors of the registry client, with their stable codes and hints.

use hearth_value::Digest;
use hearth_value::error_code::ErrorCode;

/// Error of a request to another registry. Messages contain URLs without query and user name, which may contain
/// signatures and passwords.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The registry answered with an error status. `code` is the code of the distribution spec, such as
    /// `MANIFEST_UNKNOWN`.
    #[error(
        "{url} answered {status}{}{}",
        .code.as_ref().map(|code| format!(" {code}")).unwrap_or_default(),
        .message.as_ref().map(|message| format!(": {message}")).unwrap_or_default()
    )]
    Refused { url: String, status: u16, code: Option<String>, message: Option<String> },
    #[error("there is no image `{reference}` in {registry}")]
    NotFound { reference: String, registry: String },
    #[error("{url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("the certificate of {url} is not trusted here: {reason}")]
    Untrusted { url: String, reason: String },
    #[error("{url} gave no answer within {seconds} s")]
    TimedOut { url: String, seconds: u64 },
    #[error("{url} names {realm} as its token service: {reason}")]
    Realm { url: String, realm: String, reason: &'static str },
    #[error("{url} asks for `{scheme}` authentication, which is not supported")]
    Challenge { url: String, scheme: String },
    #[error("{url} redirects to {to}: {reason}")]
    Redirect { url: String, to: String, reason: &'static str },
    #[error("the registry redirects to {url}, but `{host}` is at {address}: an internal address")]
    InternalAddress { url: String, host: String, address: std::net::IpAddr },
    #[error("registry `{registry}`: `{host}` is at {address}, which is no public address")]
    InternalRegistry { registry: String, host: String, address: std::net::IpAddr },
    /// The request failed at the mirrors of a registry and at the registry itself.
    #[error("{}; {registry} itself: {error}", .mirrors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Mirrored { mirrors: Vec<MirrorFailure>, registry: String, error: Box<RemoteError> },
    #[error("{url}: its answer has more than {limit} bytes")]
    TooLarge { url: String, limit: usize },
    #[error("{url}: invalid answer: {reason}")]
    Answer { url: String, reason: String },
    #[error("{what} is of type `{media_type}`, which is not supported")]
    MediaType { what: String, media_type: String },
    #[error("`{reference}` has no image for {wanted}; it has {found}")]
    NoPlatform { reference: String, wanted: String, found: String },
    #[error("{url}: content of {declared} has digest {actual}")]
    Mismatch { url: String, declared: Digest, actual: Digest },
    #[error("{url}: {digest} should have {declared} bytes but has {actual}")]
    Size { url: String, digest: Digest, declared: u64, actual: u64 },
    #[error("content of {digest} cannot be read: {source}")]
    Content { digest: Digest, source: std::io::Error },
    #[error("cannot create a TLS client: {0}")]
    Tls(String),
    /// The receiver of the content has stopped, for a reason that it reports itself.
    #[error("the receiver of {digest} has stopped")]
    ReceiverStopped { digest: Digest },
}

/// Returns the hint for mirrors that did not have an image, of a registry that cannot be reached.
fn mirror_hint(mirrors: &[MirrorFailure]) -> &'static str {
    let any = |is: fn(&RemoteError) -> bool| mirrors.iter().any(|mirror| is(&mirror.error));
    if any(|error| matches!(error, RemoteError::NotFound { .. })) {
        "put the image into the mirror, or let this machine reach the registry"
    } else if any(|error| matches!(error, RemoteError::Refused { status: 401 | 403, .. })) {
        "give the mirror's credentials in the daemon's file of registry credentials, under the name of the mirror"
    } else {
        "start the mirror or correct its address (--registry-mirror HOST=URL), or let this machine reach the registry"
    }
}

/// Failure of one mirror, part of [`RemoteError::Mirrored`].
#[derive(Debug, thiserror::Error)]
#[error("mirror {mirror}: {error}")]
pub struct MirrorFailure {
    /// Mirror as `host[:port]`.
    pub mirror: String,
    pub error: RemoteError,
}

impl RemoteError {
    /// Returns the error of the registry itself, without the failures of its mirrors.
    pub fn registry_error(&self) -> &Self {
        match self {
            Self::Mirrored { error, .. } => error.registry_error(),
            own => own,
        }
    }

    /// Combines this error of a registry with the preceding failures of its mirrors.
    pub(super) fn with_mirror_failures(self, mirrors: Vec<MirrorFailure>, registry: &str) -> Self {
        if mirrors.is_empty() {
            return self;
        }
        Self::Mirrored { mirrors, registry: registry.to_owned(), error: Box::new(self) }
    }

    /// Returns the stable error code.
    pub fn code(&self) -> ErrorCode {
        match self.registry_error() {
            Self::Refused { status: 401 | 403, .. } => ErrorCode::RegistryDenied,
            Self::Refused { status: 429, .. } => ErrorCode::RegistryBusy,
            Self::Refused { .. } => ErrorCode::RegistryRefused,
            Self::NotFound { .. } => ErrorCode::ImageNotFound,
            Self::Unreachable { .. } | Self::TimedOut { .. } => ErrorCode::RegistryUnreachable,
            Self::Untrusted { .. } => ErrorCode::RegistryUntrusted,
            Self::Realm { .. } | Self::Challenge { .. } => ErrorCode::RegistryAuthRefused,
            Self::Redirect { .. } | Self::InternalAddress { .. } => ErrorCode::RegistryRedirectRefused,
            Self::InternalRegistry { .. } => ErrorCode::RegistryAddressRefused,
            Self::TooLarge { .. } | Self::Answer { .. } => ErrorCode::RegistryAnswerInvalid,
            Self::MediaType { .. } => ErrorCode::MediaTypeUnsupported,
            Self::NoPlatform { .. } => ErrorCode::PlatformMismatch,
            Self::Mismatch { .. } | Self::Size { .. } => ErrorCode::BlobMismatch,
            // `registry_error` never returns `Mirrored`.
            Self::Mirrored { .. } | Self::Content { .. } | Self::Tls(_) | Self::ReceiverStopped { .. } => {
                ErrorCode::Internal
            }
        }
    }

    /// Returns the error code of the distribution spec, if the registry gave one.
    pub fn spec_code(&self) -> Option<&str> {
        match self.registry_error() {
            Self::Refused { code, .. } => code.as_deref(),
            _ => None,
        }
    }

    /// Reports whether the same request may succeed later. This depends on type and status, never on text.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Mirrored { error, .. } => error.retryable(),
            Self::Refused { status, .. } => super::retry::is_transient_status(*status),
            Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            _ => false,
        }
    }

    /// Returns a hint for the user's next step.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Mirrored { mirrors, error, .. } => match **error {
                // A mirror is configured already, and this machine may have no way to the registry.
                Self::Unreachable { .. } | Self::TimedOut { .. } => Some(mirror_hint(mirrors)),
                _ => error.hint(),
            },
            Self::InternalAddress { .. } => Some(
                "an operator who trusts this registry can configure it as its own mirror: --registry-mirror HOST=https://HOST",
            ),
            Self::InternalRegistry { .. } => Some(
                "an operator can allow it: configure the registry as its own mirror (--registry-mirror HOST=URL), add it to the file of registry credentials, or list its address in `[builds.egress] allow`",
            ),
            Self::Refused { status: 401, .. } => Some(
                "give credentials with --cred registry,username,password, or add them to the daemon's file of registry credentials",
            ),
            Self::Refused { status: 403, .. } => {
                Some("the credentials do not allow this; give others with --cred registry,username,password")
            }
            Self::Refused { status: 429, .. } => {
                Some("the registry limits requests: wait, give credentials, or use a mirror")
            }
            Self::NotFound { .. } => Some("check the name; private images need --cred"),
            Self::Unreachable { .. } | Self::TimedOut { .. } => {
                Some("check the network, or configure a mirror: --registry-mirror HOST=URL")
            }
            Self::Untrusted { .. } => Some(
                "add the issuer to the certificates that the system trusts (update-ca-certificates), or set SSL_CERT_FILE to a file with the issuer's certificate",
            ),
            Self::NoPlatform { .. } => Some("choose a platform that the image has"),
            _ => None,
        }
    }

    /// Reports whether another host may succeed where this one failed.
    pub(super) const fn allows_next_host(&self) -> bool {
        !matches!(self, Self::ReceiverStopped { .. } | Self::Content { .. } | Self::Tls(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(mirrors: Vec<RemoteError>, registry: RemoteError) -> RemoteError {
        let named = |(number, error)| MirrorFailure { mirror: format!("mirror-{number}"), error };
        let mirrors = mirrors.into_iter().enumerate().map(named).collect();
        registry.with_mirror_failures(mirrors, "docker.io")
    }

    fn unreachable(url: &str) -> RemoteError {
        RemoteError::Unreachable { url: url.to_owned(), reason: "connection refused".to_owned() }
    }

    fn refused(status: u16) -> RemoteError {
        RemoteError::Refused { url: "https://mirror-0".to_owned(), status, code: None, message: None }
    }

    #[test]
    fn each_place_is_named_with_its_answer_and_the_hint_is_about_the_mirror() {
        let absent = || RemoteError::NotFound {
            reference: "docker.io/library/busybox:9".to_owned(),
            registry: "mirror-0".to_owned(),
        };
        let hub = || unreachable("https://registry-1.docker.io");
        for (mirror, says, hint) in [
            (unreachable("http://127.0.0.1:1"), "http://127.0.0.1:1 cannot be reached", "start the mirror"),
            (refused(401), "401", "credentials in the daemon's file"),
            (absent(), "busybox:9", "put the image into the mirror"),
        ] {
            let error = failed(vec![mirror], hub());
            let text = error.to_string();
            assert!(text.contains("mirror mirror-0: ") && text.contains(says), "{text}");
            assert!(
                text.contains("docker.io itself: https://registry-1.docker.io cannot be reached"),
                "{text}"
            );
            assert!(error.hint().is_some_and(|given| given.contains(hint)), "{:?}", error.hint());
        }
        let none = failed(Vec::new(), hub());
        assert!(none.hint().is_some_and(|hint| hint.contains("configure a mirror")));
        let lacks = failed(vec![unreachable("http://127.0.0.1:1")], absent());
        assert!(
            lacks.hint().is_some_and(|hint| hint.contains("check the name")),
            "the registry has answered"
        );
    }
}
