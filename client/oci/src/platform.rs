use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::null_as_default;

/// Platform as a document declares it, with Go's names: `linux`, `arm64`, `v8`. The document may declare any words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredPlatform {
    #[serde(default, deserialize_with = "null_as_default")]
    pub architecture: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Architectures for which Go programs, and therefore images, are made for Linux (`go tool dist list`).
const KNOWN_ARCHITECTURES: [&str; 14] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le",
    "riscv64", "s390x", "wasm",
];

/// Reports whether images exist for an architecture of this name; another name is a mistake.
pub fn is_known_architecture(name: &str) -> bool {
    KNOWN_ARCHITECTURES.contains(&name)
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a platform that is known; write an architecture such as amd64, arm64 or arm/v7")]
pub struct PlatformError {
    given: String,
}

impl DeclaredPlatform {
    pub fn linux(architecture: &str, variant: Option<&str>) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// Reports whether an image for `self` can be used where `wanted` was requested. A variant is ignored if it was
    /// not requested, is not declared, or is the usual one of its architecture.
    pub fn satisfies(&self, wanted: &Self) -> bool {
        let usual = |platform: &Self| match (platform.architecture.as_str(), platform.variant.as_deref()) {
            ("arm64", Some("v8")) | ("amd64", Some("v1")) => None,
            (_, variant) => variant.filter(|variant| !variant.is_empty()).map(str::to_owned),
        };
        let (have, want) = (usual(self), usual(wanted));
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (have == want || have.is_none() || want.is_none())
    }

    /// Returns the best of `candidates` for this platform: one with the requested variant (or the architecture's usual
    /// variant, if none was requested), else one that declares no variant, else the first one that can be used.
    pub fn best_match<T>(
        &self,
        candidates: impl IntoIterator<Item = T>,
        declared: impl Fn(&T) -> Option<&Self>,
    ) -> Option<T> {
        let rank = |own: &Self| match (own.variant.as_deref(), self.variant.as_deref()) {
            (own, wanted) if own == wanted => 0,
            // Most machines of the architecture have this variant.
            (Some("v7"), None) if self.architecture == "arm" => 0,
            (Some("v8"), None) if self.architecture == "arm64" => 0,
            (None, _) => 1,
            _ => 2,
        };
        let mut best: Option<(T, u8)> = None;
        for candidate in candidates {
            let Some(own) = declared(&candidate).filter(|own| own.satisfies(self)) else { continue };
            let rank = rank(own);
            if best.as_ref().is_none_or(|(_, before)| rank < *before) {
                best = Some((candidate, rank));
            }
        }
        best.map(|(candidate, _)| candidate)
    }
}

/// Default platform of a pack. It is the same on every machine, because the digest of a pack must not depend on the
/// machine that makes it.
impl Default for DeclaredPlatform {
    fn default() -> Self {
        Self::linux("amd64", None)
    }
}

/// Parses `[linux/]architecture[/variant]`; `x86_64` and `aarch64` are accepted.
impl FromStr for DeclaredPlatform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let error = || PlatformError { given: text.chars().take(100).collect() };
        let rest = text.strip_prefix("linux/").unwrap_or(text);
        let (architecture, variant) = match rest.split_once('/') {
            Some((architecture, variant)) => (architecture, Some(variant)),
            None => (rest, None),
        };
        let word = |word: &str| {
            !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        if !word(architecture) || !variant.is_none_or(word) {
            return Err(error());
        }
        let platform = match (architecture, variant) {
            ("x86_64", variant) => Self::linux("amd64", variant),
            ("aarch64", variant) => Self::linux("arm64", variant.filter(|variant| *variant != "v8")),
            ("arm64", Some("v8")) => Self::linux("arm64", None),
            ("armhf", None) => Self::linux("arm", Some("v7")),
            ("linux" | "windows" | "darwin", _) => return Err(error()),
            (architecture, variant) => Self::linux(architecture, variant),
        };
        if is_known_architecture(&platform.architecture) { Ok(platform) } else { Err(error()) }
    }
}

impl fmt::Display for DeclaredPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}
