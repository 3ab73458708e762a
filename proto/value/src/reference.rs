use std::fmt;
use std::str::FromStr;

use super::{Digest, DigestError, serde_as_text};

/// An image reference, `[registry/]repository[:tag][@digest]`.
///
/// The first component is a registry when it has a `.` or a `:` or is `localhost`. A reference keeps
/// the written form: whether a bare name means the room's registry or Docker Hub depends on the context
/// (see [`RoomRegistries`]).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Reference {
    pub registry: Option<Registry>,
    pub repository: Repository,
    pub tag: Option<Tag>,
    pub digest: Option<Digest>,
}

/// `host[:port]` of a registry; labels are lower-case alphanumerics and dashes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registry(String);

/// Path of a repository, such as `team/my-app`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

/// A tag, `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

/// Registry names that mean *this room's registry*. They are never resolved in DNS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoomRegistries(Vec<Registry>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("an image reference is empty; write `repository[:tag]`, such as `my-app:dev`")]
    Empty,
    #[error(
        "`{given}`: registry `{registry}` is not valid; labels are lower-case letters, digits and dashes, a port is digits"
    )]
    Registry { given: String, registry: String },
    #[error(
        "`{given}`: repository `{repository}` is not valid; components are lower-case letters and digits joined by one `.`, `_`, `__` or dashes"
    )]
    Repository { given: String, repository: String },
    #[error("`{given}`: repository is longer than 255 characters")]
    TooLong { given: String },
    #[error(
        "`{given}`: tag `{tag}` is not valid; a tag is up to 128 letters, digits, `_`, `.` and `-`, and does not start with `.` or `-`"
    )]
    Tag { given: String, tag: String },
    #[error("`{given}`: {source}")]
    Digest { given: String, source: DigestError },
    #[error(
        "`{given}`: `{name}` is the name of a registry, and no repository follows; write `{name}/REPOSITORY`, or `{DEFAULT}/{name}` for a repository of the room",
        DEFAULT = RoomRegistries::DEFAULT
    )]
    NoRepository { given: String, name: String },
    #[error("`{given}` names a digest; a tag to build must not, write `repository[:tag]`")]
    DigestInTag { given: String },
}

impl Reference {
    /// Parses a tag for an image that is still to be made. A digest is an error, and a missing tag becomes
    /// `latest`.
    pub fn parse_tag(text: &str) -> Result<Self, ReferenceError> {
        let mut reference: Self = text.parse()?;
        if reference.digest.is_some() {
            return Err(ReferenceError::DigestInTag { given: shown(text) });
        }
        let name = reference.repository.as_str();
        if reference.registry.is_none() && (name == "localhost" || name.contains('.')) && !name.contains('/')
        {
            return Err(ReferenceError::NoRepository { given: shown(text), name: name.to_owned() });
        }
        reference.tag.get_or_insert_with(Tag::latest);
        Ok(reference)
    }

    /// Returns the tag. Without a tag, returns `latest`, or `None` if there is a digest.
    pub fn tag_or_latest(&self) -> Option<Tag> {
        match (&self.tag, self.digest) {
            (Some(tag), _) => Some(tag.clone()),
            (None, Some(_)) => None,
            (None, None) => Some(Tag::latest()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let given = || shown(text);
        let rest = text.trim();
        if rest.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((name, digest)) => {
                let digest =
                    digest.parse().map_err(|source| ReferenceError::Digest { given: given(), source })?;
                (name, Some(digest))
            }
            None => (rest, None),
        };
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
                let registry = Registry::parse(first)
                    .ok_or_else(|| ReferenceError::Registry { given: given(), registry: first.to_owned() })?;
                (Some(registry), path)
            }
            _ => (None, rest),
        };
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => {
                let tag = Tag::parse(tag)
                    .ok_or_else(|| ReferenceError::Tag { given: given(), tag: tag.to_owned() })?;
                (repository, Some(tag))
            }
            None => (path, None),
        };
        if repository.len() > 255 {
            return Err(ReferenceError::TooLong { given: given() });
        }
        let repository = Repository::parse(repository).ok_or_else(|| ReferenceError::Repository {
            given: given(),
            repository: repository.to_owned(),
        })?;
        Ok(Self { registry, repository, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl Registry {
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let port_is_digits =
            port.is_none_or(|port| !port.is_empty() && port.parse::<u16>().is_ok() && !port.starts_with('+'));
        (host.split('.').all(label) && port_is_digits).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Repository {
    fn parse(text: &str) -> Option<Self> {
        (text.len() <= 255 && text.split('/').all(is_path_component)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` of the OCI distribution spec.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut runs = component.as_bytes().chunk_by(|a, b| alphanumeric(*a) == alphanumeric(*b)).peekable();
    let mut expect_name = true;
    let mut last_was_name = false;
    for run in runs.by_ref() {
        last_was_name = alphanumeric(run[0]);
        if last_was_name != expect_name {
            return false;
        }
        let joins = matches!(run, b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-');
        if !last_was_name && !joins {
            return false;
        }
        expect_name = !expect_name;
    }
    last_was_name
}

impl Tag {
    fn parse(text: &str) -> Option<Self> {
        let mut bytes = text.bytes();
        let first = bytes.next()?;
        let ok = (first.is_ascii_alphanumeric() || first == b'_')
            && text.len() <= 128
            && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        ok.then(|| Self(text.to_owned()))
    }

    pub fn latest() -> Self {
        Self("latest".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl RoomRegistries {
    /// Default name of the room's registry.
    pub const DEFAULT: &str = "room.meshagent.com";

    pub fn new(names: Vec<Registry>) -> Self {
        Self(names)
    }

    /// Reports whether `registry` is this room's.
    pub fn contains(&self, registry: &Registry) -> bool {
        self.0.contains(registry)
    }

    /// Reports whether a reference in a `--tag` means this room. A name without a registry does.
    pub fn owns_tag(&self, reference: &Reference) -> bool {
        reference.registry.as_ref().is_none_or(|registry| self.contains(registry))
    }

    /// Reports whether a reference in a `FROM` or `--base` means this room. A name without a registry does not: it
    /// means Docker Hub.
    pub fn owns_source(&self, reference: &Reference) -> bool {
        reference.registry.as_ref().is_some_and(|registry| self.contains(registry))
    }

    /// Returns the reference with the room's registry added if it has no registry.
    pub fn qualify(&self, reference: Reference) -> Reference {
        let registry = reference.registry.clone().or_else(|| self.0.first().cloned());
        Reference { registry, ..reference }
    }

    /// Returns the names. Users are shown the first one.
    pub fn names(&self) -> &[Registry] {
        &self.0
    }
}

impl Default for RoomRegistries {
    fn default() -> Self {
        Self(vec![Registry(Self::DEFAULT.to_owned())])
    }
}

macro_rules! text_value {
    ($type:ident, $variant:ident { $field:ident }) => {
        impl FromStr for $type {
            type Err = ReferenceError;
            fn from_str(text: &str) -> Result<Self, ReferenceError> {
                Self::parse(text)
                    .ok_or_else(|| ReferenceError::$variant { given: shown(text), $field: text.to_owned() })
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        serde_as_text!($type);
    };
}
text_value!(Registry, Registry { registry });
text_value!(Repository, Repository { repository });
text_value!(Tag, Tag { tag });
serde_as_text!(Reference);

/// Returns the input in a length that fits in a message.
fn shown(text: &str) -> String {
    text.trim().chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_split_into_registry_repository_tag_and_digest() {
        let sum = format!("sha256:{}", "0a".repeat(32));
        for (text, registry, repository, tag) in [
            ("my-app", None, "my-app", None),
            (" my-app:dev ", None, "my-app", Some("dev")),
            ("a/b:1", None, "a/b", Some("1")),
            ("room.meshagent.com/a/b:1", Some("room.meshagent.com"), "a/b", Some("1")),
            ("localhost/x", Some("localhost"), "x", None),
            ("localhost:5000/x:y", Some("localhost:5000"), "x", Some("y")),
            ("127.0.0.1:5000/x", Some("127.0.0.1:5000"), "x", None),
            ("a__b/c---d/e.f_g", None, "a__b/c---d/e.f_g", None),
        ] {
            let parsed: Reference = text.parse().unwrap();
            assert_eq!(parsed.registry.as_ref().map(Registry::as_str), registry, "{text}");
            assert_eq!(parsed.repository.as_str(), repository, "{text}");
            assert_eq!(parsed.tag.as_ref().map(Tag::as_str), tag, "{text}");
            assert_eq!(parsed.to_string(), text.trim());
        }
        let pinned: Reference = format!("a:b@{sum}").parse().unwrap();
        assert_eq!(pinned.digest.unwrap().to_string(), sum);
    }

    #[test]
    fn malformed_references_are_refused_and_name_the_part() {
        for (text, part) in [
            ("", "empty"),
            ("   ", "empty"),
            ("My-App", "repository"),
            ("a//b", "repository"),
            ("/a", "repository"),
            ("a/", "repository"),
            ("a..b", "repository"),
            ("a___b", "repository"),
            ("a._b", "repository"),
            ("-a", "repository"),
            ("a-", "repository"),
            ("a:", "tag"),
            ("a:.x", "tag"),
            ("a:x y", "tag"),
            ("a:b:c", "tag"),
            ("Room.x/a", "registry"),
            ("host:port/a", "registry"),
            ("host:99999/a", "registry"),
            ("-host.x/a", "registry"),
            ("a@sha256:12", "digest"),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        assert!(format!("a:{}", "x".repeat(128)).parse::<Reference>().is_ok());
        assert!(format!("a:{}", "x".repeat(129)).parse::<Reference>().is_err());
        assert!("x".repeat(256).parse::<Reference>().is_err());
    }

    #[test]
    fn a_digest_in_a_tag_to_build_is_refused_and_a_missing_tag_is_latest() {
        let pinned = format!("a@sha256:{}", "0a".repeat(32));
        assert!(matches!(Reference::parse_tag(&pinned), Err(ReferenceError::DigestInTag { .. })));
        assert_eq!(Reference::parse_tag("a").unwrap().to_string(), "a:latest");
    }

    #[test]
    fn a_bare_name_is_the_rooms_as_a_tag_and_not_as_a_source() {
        let rooms = RoomRegistries::default();
        let bare: Reference = "my-app:dev".parse().unwrap();
        assert!(rooms.owns_tag(&bare) && !rooms.owns_source(&bare));
        let full: Reference = "room.meshagent.com/my-app:dev".parse().unwrap();
        assert!(rooms.owns_tag(&full) && rooms.owns_source(&full));
        let other: Reference = "example.com/my-app".parse().unwrap();
        assert!(!rooms.owns_tag(&other) && !rooms.owns_source(&other));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_without_panic_and_what_parses_prints_back(text in ".{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text.trim());
            }
        }

        #[test]
        fn every_valid_reference_survives_a_round_trip(
            text in "([a-z][a-z0-9]{0,5}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?/)?([a-z0-9]{1,5}/)?[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,10})?"
        ) {
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(reference.to_string(), text);
        }
    }
}
