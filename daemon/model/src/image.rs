//! Images of the room: tags, platforms, and the names of cached images.

use std::collections::BTreeMap;

use hearth_oci as oci;
use hearth_oci::Descriptor;
use hearth_value::{AnnotationScope, Digest, Repository, Tag};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Tag of the room's registry and its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaggedImage {
    pub repository: Repository,
    pub tag: Tag,
    pub manifest: Descriptor,
    /// Compressed bytes of the config and layers.
    pub size_bytes: u64,
    pub updated_at: Timestamp,
}

/// Manifest in the registry whose config and layers are present too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedImage {
    pub repository: Repository,
    pub manifest: Descriptor,
    pub size_bytes: u64,
}

/// Instruction in the history of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInstruction {
    /// Example: `RUN /bin/sh -c make # buildkit`.
    pub text: String,
    /// Size of its layer in bytes, as stored; `None` if it made no layer.
    pub layer_bytes: Option<u64>,
}

/// Image of the room's registry by digest, independent of its tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedImage {
    pub repository: Repository,
    /// Digest of the manifest or index.
    pub digest: Digest,
}

/// Annotation that a build adds to its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageAnnotation {
    pub scope: AnnotationScope,
    /// Only the image of this platform; `None` means those of all platforms.
    pub platform: Option<Platform>,
    pub key: String,
    pub value: String,
}

impl ImageAnnotation {
    /// Returns the annotations of a place, which is for one platform if the scope has platforms. Those for the platform
    /// win over those for all.
    pub fn of_place(
        annotations: &[Self],
        scope: AnnotationScope,
        platform: Option<&Platform>,
    ) -> BTreeMap<String, String> {
        let of_scope = || annotations.iter().filter(move |annotation| annotation.scope == scope);
        let general = of_scope().filter(|annotation| annotation.platform.is_none());
        let own = of_scope().filter(|annotation| {
            annotation.platform.as_ref().zip(platform).is_some_and(|(own, platform)| own.is_same(platform))
        });
        general.chain(own).map(|annotation| (annotation.key.clone(), annotation.value.clone())).collect()
    }
}

/// Operating system, architecture and variant, such as `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform(String);

impl Platform {
    /// Returns the platform of this daemon.
    pub fn host() -> Self {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self(format!("linux/{arch}"))
    }

    /// Returns the platform that a document declares, if it is a valid one.
    pub fn declared(platform: &oci::DeclaredPlatform) -> Option<Self> {
        let variant = platform.variant.as_ref().filter(|variant| !variant.is_empty());
        let variant = variant.map_or_else(String::new, |variant| format!("/{variant}"));
        Self::parse(&format!("{}/{}{variant}", platform.os, platform.architecture))
    }

    /// Returns the platform as documents declare it.
    pub fn to_declared(&self) -> oci::DeclaredPlatform {
        let mut parts = self.0.splitn(3, '/').map(str::to_owned);
        oci::DeclaredPlatform {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next(),
        }
    }

    /// Parses `os/arch[/variant]` in lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        (matches!(parts.len(), 2 | 3) && parts.iter().all(word)).then(|| Self(text.to_owned()))
    }

    /// Parses the platform of a request: its architecture must be a known one.
    pub fn parse_requested(text: &str) -> Option<Self> {
        let known = |platform: &Self| platform.0.split('/').nth(1).is_some_and(oci::is_known_architecture);
        Self::parse(text).filter(known)
    }

    /// Reports whether an image that declares `declared` can be used where this platform is wanted. An image without a
    /// valid declaration can be used everywhere.
    pub fn accepts(&self, declared: &oci::DeclaredPlatform) -> bool {
        Self::declared(declared).is_none_or(|declared| declared.to_declared().satisfies(&self.to_declared()))
    }

    /// Parses a platform as people write it: also an architecture or operating system alone, and common aliases. The
    /// result has BuildKit's spelling.
    pub fn parse_loosely(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let host = Self::host();
        let own = host.0.split_once('/').unwrap_or(("linux", "amd64"));
        let (os, architecture, variant) = match *text.split('/').collect::<Vec<_>>() {
            [os @ ("linux" | "windows" | "darwin" | "freebsd")] => (os, own.1, None),
            [architecture] => (own.0, architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return None,
        };
        let os = if os == "macos" { "darwin" } else { os };
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant.filter(|variant| *variant != "v1")),
            ("aarch64" | "arm64", variant) => {
                ("arm64", variant.filter(|variant| !matches!(*variant, "8" | "v8")))
            }
            ("armhf", _) => ("arm", Some("v7")),
            ("armel", _) => ("arm", Some("v6")),
            ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("i386", _) => ("386", None),
            other => other,
        };
        Self::parse(&match variant {
            Some(variant) => format!("{os}/{architecture}/{variant}"),
            None => format!("{os}/{architecture}"),
        })
    }

    /// Reports whether two spellings mean the same platform, such as `linux/arm64` and `linux/arm64/v8`.
    pub fn is_same(&self, other: &Self) -> bool {
        Self::parse_loosely(&self.0) == Self::parse_loosely(&other.0)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Settings that builds inherit from a base image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageDefaults {
    /// Variables as `NAME=VALUE`.
    pub environment: Vec<String>,
    /// `ONBUILD` instructions.
    pub triggers: Vec<String>,
    /// All defaults of its containers.
    pub run: oci::RunConfig,
}

impl ImageDefaults {
    pub fn from_config(config: &oci::RunConfig) -> serde_json::Result<Self> {
        Ok(Self { environment: config.env.clone(), triggers: config.on_build()?, run: config.clone() })
    }
}

/// First component of the repositories that hold images of other registries for builds and services. No repository
/// grant opens what is below: the grant for the image's registry, and that registry itself, decide who may read an
/// image there.
pub const CACHED_IMAGES_PREFIX: &str = "cached.hearth";

/// Reports whether a repository name is that of cached images.
pub fn is_cached_name(name: &str) -> bool {
    name.strip_prefix(CACHED_IMAGES_PREFIX).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_known_by_all_their_names() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/ARM64/v8", "linux/arm64"),
            ("arm64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("armhf", "linux/arm/v7"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(Platform::parse_loosely(text).unwrap().as_str(), expected, "{text}");
        }
        assert_eq!(Platform::parse_loosely("linux"), Some(Platform::host()));
        for text in ["", "a/b/c/d", "linux/", "linux/$X"] {
            assert_eq!(Platform::parse_loosely(text), None, "{text}");
        }
    }

    #[test]
    fn cached_images_are_recognised_by_the_first_part_of_their_repository() {
        assert!(
            is_cached_name("cached.hearth/public/docker.io/library/alpine")
                && is_cached_name("cached.hearth")
        );
        assert!(!is_cached_name("cached.hearth2/a") && !is_cached_name("team/cached.hearth"));
    }
}
