use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

use super::fields::{FieldsError, split_fields};
use super::{ReferenceError, serde_as_text};

mod source;

pub use source::{
    BuildMountKind, BuildMountSource, MountKind, MountOrigin, MountSource, ServiceMountKind,
    ServiceMountSource,
};

/// Default target of a build's mounts.
pub const DEFAULT_TARGET: &str = "/context";

/// One mount: source, target, and access mode. `S` is the type of sources that builds or services can mount.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct MountSpec<S> {
    pub source: S,
    pub target: MountTarget,
    pub mode: MountAccess,
    /// Reports whether a deploy makes the source, a directory of room storage, where it is missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create: bool,
}

/// A mount of the files that a build or a context is made of.
pub type BuildMount = MountSpec<BuildMountSource>;

/// A mount inside the instances of a service.
pub type ServiceMount = MountSpec<ServiceMountSource>;

/// An absolute path inside a build or a service, normalised: no `.`, no `..`, no doubled `/`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MountTarget(String);

#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountAccess {
    ReadOnly,
    ReadWrite,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    #[error("mount `{given}`: expected `{grammar}`")]
    Grammar { given: String, grammar: &'static str },
    #[error("mount `{given}`: mode `{mode}` is not `ro` or `rw`; expected `{grammar}`")]
    Mode { given: String, mode: String, grammar: &'static str },
    #[error("mount `{given}`: {source}; expected `{grammar}`")]
    Fields { given: String, source: FieldsError, grammar: &'static str },
    #[error("mount `{given}`: option `{option}` is not known here, or given twice; expected `{grammar}`")]
    Option { given: String, option: String, grammar: &'static str },
    #[error("mount `{given}`: target `{target}` is not absolute; expected `{grammar}`")]
    RelativeTarget { given: String, target: String, grammar: &'static str },
    #[error("`{path}` is not an absolute path; it must start with `/`")]
    Relative { path: String },
    #[error("`{path}` has a `..` component; write the path without it")]
    Parent { path: String },
    #[error("`{path}` has a NUL byte")]
    Nul { path: String },
    #[error("mount target `{target}` is used twice; each target can be mounted once")]
    Duplicate { target: MountTarget },
    #[error("mount `{given}`: {source}")]
    Image { given: String, source: ReferenceError },
}

impl<S: MountSource> MountSpec<S> {
    /// Parses the text of a mount flag: source, target, mode, and options after commas. A text without a target gets the
    /// default target of builds; for services the target is required.
    pub fn parse<K: MountKind<Source = S>>(kind: K, text: &str) -> Result<Self, MountError> {
        let grammar = kind.grammar();
        let malformed = || MountError::Grammar { given: text.to_owned(), grammar };
        let MountParts { source, target_and_mode, options } = MountParts::split(kind.separator(), text)
            .map_err(|source| MountError::Fields { given: text.to_owned(), source, grammar })?;
        let options = MountOptions::parse(&options)
            .and_then(|options| kind.check_options(&options).map(|()| options))
            .map_err(|option| MountError::Option { given: text.to_owned(), option, grammar })?;
        let source = kind.source(text, &source, &options)?;
        let (target, mode) = match target_and_mode.as_deref() {
            None => (K::DEFAULT_TARGET.ok_or_else(malformed)?, None),
            Some(target_and_mode) => match target_and_mode.split_once(':') {
                Some((target, mode)) if kind.has_mode() => (target, Some(mode)),
                Some(_) => return Err(malformed()),
                None => (target_and_mode, None),
            },
        };
        if target.is_empty() {
            return Err(malformed());
        }
        let mode = match mode {
            None => source.default_mode(),
            Some(mode) if mode.eq_ignore_ascii_case("ro") => MountAccess::ReadOnly,
            Some(mode) if mode.eq_ignore_ascii_case("rw") => MountAccess::ReadWrite,
            Some(mode) => {
                return Err(MountError::Mode { given: text.to_owned(), mode: mode.to_owned(), grammar });
            }
        };
        let target = target.parse().map_err(|error| match error {
            MountError::Relative { path } => {
                MountError::RelativeTarget { given: text.to_owned(), target: path, grammar }
            }
            error => error,
        })?;
        Ok(Self { source, target, mode, create: options.create })
    }
}

/// A mount flag, split where its kind separates source and target.
struct MountParts {
    source: String,
    target_and_mode: Option<String>,
    options: Vec<String>,
}

impl MountParts {
    /// Splits a text. Options follow the target, or the source if there is no target; a field with a comma is written
    /// in double quotes. Without a separator the text is the target.
    fn split(separator: Option<char>, text: &str) -> Result<Self, FieldsError> {
        let split = |text: &str, separator| {
            let (source, target) = text.split_once(separator)?;
            Some((source.to_owned(), target.to_owned()))
        };
        // The source of a storage mount may have commas, so it is split off first.
        let (before, rest) = match separator {
            Some(':') => {
                split(text, ':').map_or((None, text.to_owned()), |(source, rest)| (Some(source), rest))
            }
            _ => (None, text.to_owned()),
        };
        let mut fields = split_fields(&rest)?.into_iter();
        let first = fields.next().unwrap_or_default();
        let (source, target_and_mode) = match (separator, before) {
            (None, _) => (String::new(), Some(first)),
            (Some(_), Some(source)) => (source, Some(first)),
            (Some(separator), None) => match split(&first, separator) {
                Some((source, target)) => (source, Some(target)),
                None => (first, None),
            },
        };
        Ok(Self { source, target_and_mode, options: fields.collect() })
    }
}

/// Options of a mount flag.
#[derive(Default)]
pub struct MountOptions {
    /// Part of an image that is mounted.
    subpath: Option<String>,
    /// Makes a missing directory of room storage.
    create: bool,
}

impl MountOptions {
    /// Parses the options. The error is the option that is not known or given twice.
    fn parse(texts: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        for text in texts {
            let taken = match text.split_once('=') {
                Some(("subpath", path)) => options.subpath.replace(path.to_owned()).is_none(),
                None if text == "create" => !std::mem::replace(&mut options.create, true),
                _ => false,
            };
            if !taken {
                return Err(text.clone());
            }
        }
        Ok(options)
    }
}

/// Refuses two mounts with the same target.
pub fn check_distinct<S>(mounts: &[MountSpec<S>]) -> Result<(), MountError> {
    let mut seen = std::collections::BTreeSet::new();
    for mount in mounts {
        if !seen.insert(&mount.target) {
            return Err(MountError::Duplicate { target: mount.target.clone() });
        }
    }
    Ok(())
}

/// Normalises a path below a storage root to a relative path; `.`, `/` and the empty string mean the
/// root itself.
pub fn storage_path(text: &str) -> Result<String, MountError> {
    normalise(text).map(|parts| parts.join("/"))
}

fn normalise(text: &str) -> Result<Vec<&str>, MountError> {
    if text.contains('\0') {
        return Err(MountError::Nul { path: text.replace('\0', "\\0") });
    }
    let mut parts = Vec::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::ParentDir => return Err(MountError::Parent { path: text.to_owned() }),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(parts)
}

impl MountTarget {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the components below the root. The target `/` has none.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|part| !part.is_empty())
    }

    /// Returns `path` relative to this target, or `None` when it lies outside.
    pub fn relative<'a>(&self, path: &'a MountTarget) -> Option<&'a str> {
        if self.0 == "/" {
            return Some(&path.0[1..]);
        }
        let rest = path.0.strip_prefix(&self.0)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }

    /// Returns the path `relative` below this target.
    pub fn join(&self, relative: &str) -> Result<Self, MountError> {
        format!("{}/{relative}", self.0).parse()
    }
}

impl FromStr for MountTarget {
    type Err = MountError;

    fn from_str(text: &str) -> Result<Self, MountError> {
        if !text.starts_with('/') {
            return Err(MountError::Relative { path: text.to_owned() });
        }
        Ok(Self(format!("/{}", normalise(text)?.join("/"))))
    }
}

impl fmt::Display for MountTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MountTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

serde_as_text!(MountTarget);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Parsed<S> = (S, String, MountAccess);

    fn parse<K: MountKind>(kind: K, text: &str) -> Result<Parsed<K::Source>, MountError> {
        MountSpec::parse(kind, text).map(|m| (m.source, m.target.to_string(), m.mode))
    }

    #[test]
    fn build_mounts_follow_the_contract() {
        use BuildMountKind::{Image, Pack, Project, Room};
        use MountAccess::{ReadOnly, ReadWrite};
        let image = |text: &str, subpath: &str| BuildMountSource::Image {
            reference: text.parse().unwrap(),
            subpath: subpath.to_owned(),
        };
        let room = |path: &str| BuildMountSource::Room(path.to_owned());
        for (kind, text, source, target, mode) in [
            (Room, "/apps/my-app:/context:ro", room("apps/my-app"), "/context", ReadOnly),
            (Room, "apps", room("apps"), "/context", ReadWrite),
            (Room, ".", room(""), "/context", ReadWrite),
            (Room, "/", room(""), "/context", ReadWrite),
            (Room, ":/x", room(""), "/x", ReadWrite),
            (Room, "a//b/./c:/x//y/.:RW", room("a/b/c"), "/x/y", ReadWrite),
            (Project, "p:/x", BuildMountSource::Project("p".to_owned()), "/x", ReadOnly),
            (Project, "p:/x:Rw", BuildMountSource::Project("p".to_owned()), "/x", ReadWrite),
            (Image, "a/b:1", image("a/b:1", ""), "/context", ReadOnly),
            (Image, "h:5/a/b:1=/x:rw", image("h:5/a/b:1", ""), "/x", ReadWrite),
            (Image, "a=/x,subpath=/y/z", image("a", "y/z"), "/x", ReadOnly),
            (Image, "a,subpath=y", image("a", "y"), "/context", ReadOnly),
            (Image, "a=/x:rw,\"subpath=a,b\"", image("a", "a,b"), "/x", ReadWrite),
            (Room, "a,b:/x", room("a,b"), "/x", ReadWrite),
            (Pack, "./my-app", BuildMountSource::Pack("./my-app".to_owned()), "/context", ReadOnly),
            (Pack, "./my-app:/src", BuildMountSource::Pack("./my-app".to_owned()), "/src", ReadOnly),
        ] {
            assert_eq!(parse(kind, text).unwrap(), (source, target.to_owned(), mode), "{text}");
        }
        for (text, mode) in [("/x:ro", ReadOnly), ("/x", ReadWrite)] {
            let parsed = parse(ServiceMountKind::EmptyDir, text).unwrap();
            assert_eq!(parsed, (ServiceMountSource::EmptyDir, "/x".to_owned(), mode), "{text}");
        }
    }

    #[test]
    fn options_are_those_of_the_kind() {
        let refused = |parsed: Result<(), MountError>, option: &str| {
            let error = parsed.unwrap_err().to_string();
            assert!(error.contains(&format!("option `{option}` is not known here")), "{error}");
        };
        for (kind, text, option) in [
            (BuildMountKind::Image, "busybox:1=/ctx,foo=bar", "foo=bar"),
            (BuildMountKind::Image, "busybox:1,foo=bar", "foo=bar"),
            (BuildMountKind::Image, "a=/x,subpath=b,subpath=c", "subpath=c"),
            (BuildMountKind::Image, "a=/x,subpath=b,c", "c"),
            (BuildMountKind::Room, "a:/x,create", "create"),
            (BuildMountKind::Room, "a,foo", "foo"),
            (BuildMountKind::Project, "a:/x:ro,", ""),
            (BuildMountKind::Pack, "a:/x,foo", "foo"),
        ] {
            refused(BuildMount::parse(kind, text).map(|_| ()), option);
        }
        for (kind, text, option) in [
            (ServiceMountKind::Room, "a:/x,subpath=b", "subpath=b"),
            (ServiceMountKind::Room, "a:/x,create,create", "create"),
            (ServiceMountKind::Room, "a:/x,create=1", "create=1"),
            (ServiceMountKind::Project, "a:/x,create", "create"),
            (ServiceMountKind::Image, "a=/x,create", "create"),
            (ServiceMountKind::Project, "a:/x,foo", "foo"),
            (ServiceMountKind::EmptyDir, "/x,foo", "foo"),
        ] {
            refused(ServiceMount::parse(kind, text).map(|_| ()), option);
        }
        let error = BuildMount::parse(BuildMountKind::Image, "a=/x,\"subpath=b").unwrap_err().to_string();
        assert!(error.contains("a double quote is not closed"), "{error}");
    }

    #[test]
    fn only_a_room_mount_of_a_service_can_ask_for_its_directory() {
        for (text, mode, create) in [
            ("a:/x", MountAccess::ReadWrite, false),
            ("a:/x,create", MountAccess::ReadWrite, true),
            ("a:/x:ro,create", MountAccess::ReadOnly, true),
        ] {
            let mount = ServiceMount::parse(ServiceMountKind::Room, text).unwrap();
            assert_eq!((mount.mode, mount.create), (mode, create), "{text}");
        }
    }

    #[test]
    fn malformed_mounts_show_the_grammar_or_name_the_fault() {
        use BuildMountKind::{Image, Pack, Room};
        for (kind, text, says) in [
            (Room, "a:b", "not absolute"),
            (Room, "a:", "<source>[:<mount>[:ro|rw]]"),
            (Room, "a:/b:rx", "<source>[:<mount>[:ro|rw]]"),
            (Room, "a:/b:ro:rw", "`ro:rw`"),
            (Room, "../a:/b", ".."),
            (Room, "a:/b/../c", ".."),
            (Room, "a\0b:/c", "NUL"),
            (Image, "A=/x", "repository"),
            (Image, "a=x", "not absolute"),
            (Pack, "p:/x:ro", "<path>[:<mount>]"),
            (Pack, "", "<path>[:<mount>]"),
        ] {
            let error = parse(kind, text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let error = parse(ServiceMountKind::EmptyDir, "x").unwrap_err().to_string();
        assert!(error.contains("not absolute"), "{error}");
        let error = parse(ServiceMountKind::Room, "a").unwrap_err().to_string();
        assert!(error.contains("<source>:<mount>[:ro|rw][,create]"), "{error}");
    }

    #[test]
    fn a_target_can_be_mounted_once() {
        let mount = |text| MountSpec::parse(BuildMountKind::Room, text).unwrap();
        assert!(check_distinct(&[mount("a:/x"), mount("b:/x/y")]).is_ok());
        let error = check_distinct(&[mount("a:/x"), mount("b:/x/")]).unwrap_err();
        assert_eq!(error, MountError::Duplicate { target: "/x".parse().unwrap() });
    }

    #[test]
    fn a_path_is_made_relative_to_a_target_above_it() {
        let target = |text: &str| text.parse::<MountTarget>().unwrap();
        assert_eq!(target("/a").relative(&target("/a/b/c")), Some("b/c"));
        assert_eq!(target("/a").relative(&target("/a")), Some(""));
        assert_eq!(target("/a").relative(&target("/ab")), None);
        assert_eq!(target("/").relative(&target("/ab")), Some("ab"));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_without_panic(text in ".{0,60}") {
            use BuildMountKind::{Image, Pack, Project, Room};
            let built = [Room, Project, Image, Pack].map(|kind| MountSpec::parse(kind, &text).map(|m| m.target));
            let served = MountSpec::parse(ServiceMountKind::EmptyDir, &text).map(|mount| mount.target);
            for target in built.into_iter().chain([served]).flatten() {
                prop_assert!(target.as_str().starts_with('/'));
                prop_assert!(!target.as_str().split('/').any(|part| part == ".." || part == "."));
            }
        }
    }
}
