use std::fmt;
use std::str::FromStr;

use super::serde_as_text;

/// Place of an annotation. The names are those of `docker buildx build --annotation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnnotationScope {
    /// The manifest of each image.
    Manifest,
    /// The index of a build for several platforms.
    Index,
    /// The entry of each image in the index. Without an index, the descriptor of the image in the result of the build.
    ManifestDescriptor,
    /// The descriptor of the index in the result of the build: a registry stores none.
    IndexDescriptor,
}

impl AnnotationScope {
    pub const ALL: [Self; 4] = [Self::Manifest, Self::Index, Self::ManifestDescriptor, Self::IndexDescriptor];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Index => "index",
            Self::ManifestDescriptor => "manifest-descriptor",
            Self::IndexDescriptor => "index-descriptor",
        }
    }

    /// Reports whether the scope has one place for each platform.
    pub const fn has_platforms(self) -> bool {
        matches!(self, Self::Manifest | Self::ManifestDescriptor)
    }
}

impl fmt::Display for AnnotationScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AnnotationScope {
    type Err = AnnotationError;

    fn from_str(text: &str) -> Result<Self, AnnotationError> {
        let scope = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        scope.ok_or_else(|| AnnotationError::Scope(text.chars().take(100).collect()))
    }
}

serde_as_text!(AnnotationScope);

/// Value of `--annotation`: one annotation, and each place that gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotationFlag {
    /// Scopes, each with the platform to which it is limited, if any.
    pub scopes: Vec<(AnnotationScope, Option<String>)>,
    pub key: String,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    #[error("there is no `=`")]
    NoValue,
    #[error("the key is missing")]
    NoKey,
    #[error("`{0}` is not a scope; there are manifest, index, manifest-descriptor and index-descriptor")]
    Scope(String),
    #[error("the scope `{0}` has no platform")]
    Platform(AnnotationScope),
}

impl AnnotationFlag {
    pub const GRAMMAR: &str = "[SCOPE[[PLATFORM]][,SCOPE...]:]KEY=VALUE";

    /// Parses `KEY=VALUE` for manifests, or `manifest[linux/amd64],index:KEY=VALUE`. A key may have a colon: text
    /// before the first one is scopes only if it looks like them.
    pub fn parse(text: &str) -> Result<Self, AnnotationError> {
        let (before, value) = text.split_once('=').ok_or(AnnotationError::NoValue)?;
        let (scopes, key) = match before.split_once(':') {
            Some((scopes, key)) if looks_like_scopes(scopes) => (scopes, key),
            _ => (AnnotationScope::Manifest.as_str(), before),
        };
        if key.is_empty() {
            return Err(AnnotationError::NoKey);
        }
        let scopes = scopes.split(',').map(|scope| {
            let (name, platform) = match scope.strip_suffix(']').and_then(|scope| scope.split_once('[')) {
                Some((name, platform)) => (name, Some(platform.to_owned())),
                None => (scope, None),
            };
            let scope: AnnotationScope = name.parse()?;
            if platform.is_some() && !scope.has_platforms() {
                return Err(AnnotationError::Platform(scope));
            }
            Ok((scope, platform))
        });
        let scopes = scopes.collect::<Result<_, _>>()?;
        Ok(Self { scopes, key: key.to_owned(), value: value.to_owned() })
    }
}

/// Reports whether every part is a lower-case word with or without a platform in brackets.
fn looks_like_scopes(text: &str) -> bool {
    text.split(',').all(|scope| {
        let (name, platform) = scope.split_once('[').unwrap_or((scope, "]"));
        let is_word = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        let is_platform = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'/' | b'-'))
        };
        is_word && platform.strip_suffix(']').is_some_and(is_platform)
    })
}

#[cfg(test)]
mod tests {
    use super::AnnotationScope::{Index, IndexDescriptor, Manifest, ManifestDescriptor};
    use super::*;

    #[test]
    fn an_annotation_goes_to_manifests_or_to_the_scopes_before_its_key() {
        let arm = || Some("linux/arm64".to_owned());
        for (text, scopes, key, value) in [
            ("a=b", vec![(Manifest, None)], "a", "b"),
            ("a=", vec![(Manifest, None)], "a", ""),
            ("a=b=c:d", vec![(Manifest, None)], "a", "b=c:d"),
            ("index:a=b", vec![(Index, None)], "a", "b"),
            ("index-descriptor:a=b", vec![(IndexDescriptor, None)], "a", "b"),
            ("manifest[linux/arm64],index:a=b", vec![(Manifest, arm()), (Index, None)], "a", "b"),
            ("manifest-descriptor[linux/arm64]:a:b=c", vec![(ManifestDescriptor, arm())], "a:b", "c"),
        ] {
            let expected = AnnotationFlag { scopes, key: key.to_owned(), value: value.to_owned() };
            assert_eq!(AnnotationFlag::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_mistake_in_an_annotation_is_named() {
        for (text, expected) in [
            ("a", AnnotationError::NoValue),
            ("=b", AnnotationError::NoKey),
            ("index:=b", AnnotationError::NoKey),
            ("images:a=b", AnnotationError::Scope("images".to_owned())),
            ("https://e.example/x=1", AnnotationError::Scope("https".to_owned())),
            ("index[linux/arm64]:a=b", AnnotationError::Platform(Index)),
        ] {
            assert_eq!(AnnotationFlag::parse(text), Err(expected), "{text}");
        }
    }
}
