//! Caches of build steps that a build reads and writes, in the form of `docker buildx build --cache-from` and
//! `--cache-to`.

use std::fmt;
use std::str::FromStr;

use super::fields::{FieldsError, split_fields};
use super::mount::MountError;
use super::{Digest, Reference, ReferenceError, Tag, serde_as_text, storage_path};

/// Location of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheLocation {
    Registry(Reference),
    /// OCI layout in a directory of room storage, and the name of the cache in its `index.json`.
    Directory {
        path: String,
        tag: Tag,
    },
    /// OCI archive in a file of room storage.
    Archive {
        path: String,
    },
}

/// Value of `--cache-from`: a cache whose steps a build need not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheImport {
    pub location: CacheLocation,
    /// Manifest of the cache in a directory, instead of the one that has the tag.
    pub digest: Option<Digest>,
}

/// Value of `--cache-to`: a cache that a build writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheExport {
    /// Part of the image's own config.
    Inline,
    To {
        location: CacheLocation,
        format: CacheFormat,
        /// The build succeeds even if the cache cannot be written.
        ignore_error: bool,
    },
}

/// Extent and encoding of a written cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheFormat {
    /// Includes the steps of all stages (`mode=max`), and not only those whose layers the image has.
    pub all_steps: bool,
    /// Has the form of an image manifest instead of an index of layers.
    pub image_manifest: bool,
    pub oci_media_types: bool,
}

impl Default for CacheFormat {
    fn default() -> Self {
        Self { all_steps: false, image_manifest: true, oci_media_types: true }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheOptionError {
    #[error("{0}")]
    Fields(#[from] FieldsError),
    #[error("`{0}` is no attribute; expected `KEY=VALUE`")]
    NotAnAttribute(String),
    #[error("type `{0}` is unknown; expected {1}")]
    Type(String, &'static str),
    #[error("type `{0}` has no attribute `{1}`; expected {2}")]
    Attribute(&'static str, String, &'static str),
    #[error("`{0}` is given twice")]
    Twice(String),
    #[error("type `{0}` needs `{1}`")]
    Missing(&'static str, &'static str),
    #[error("`{0}={1}`: expected {2}")]
    Value(&'static str, String, &'static str),
    #[error("`ref`: {0}")]
    Reference(#[from] ReferenceError),
    #[error("a cache is written under a tag, not under a digest")]
    WrittenByDigest,
    #[error("`{0}`: {1}")]
    Path(&'static str, MountError),
    #[error("`{0}`: the root of the storage holds no cache; name a path below it")]
    StorageRoot(&'static str),
    #[error(
        "a cache in the form of an image manifest has OCI media types; leave out `oci-mediatypes=false` or `image-manifest=true`"
    )]
    ManifestWithoutOci,
}

/// Attributes of one option, each given once.
struct Attributes {
    pairs: Vec<(String, String)>,
}

impl Attributes {
    /// Parses `type=TYPE,KEY=VALUE,...`; a text without `=` is the reference of a cache in a registry.
    fn parse(text: &str) -> Result<Self, CacheOptionError> {
        let fields = split_fields(text)?;
        if let [only] = fields.as_slice()
            && !only.contains('=')
        {
            let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
            return Ok(Self { pairs: vec![pair("type", "registry"), pair("ref", only)] });
        }
        let mut pairs: Vec<(String, String)> = Vec::new();
        for field in fields {
            let (key, value) =
                field.split_once('=').ok_or_else(|| CacheOptionError::NotAnAttribute(field.clone()))?;
            let key = key.trim().to_ascii_lowercase();
            if pairs.iter().any(|(other, _)| *other == key) {
                return Err(CacheOptionError::Twice(key));
            }
            pairs.push((key, value.to_owned()));
        }
        Ok(Self { pairs })
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.pairs.iter().position(|(other, _)| other == key)?;
        Some(self.pairs.remove(at).1)
    }

    fn take_flag(&mut self, key: &'static str) -> Result<Option<bool>, CacheOptionError> {
        self.take(key)
            .map(|value| match value.to_ascii_lowercase().as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(CacheOptionError::Value(key, value, "`true` or `false`")),
            })
            .transpose()
    }

    /// Takes the attributes that say where a cache is; `path_key` is the name of the attribute with a path.
    fn take_location(
        &mut self,
        kind: &'static str,
        path_key: &'static str,
    ) -> Result<CacheLocation, CacheOptionError> {
        if kind == "registry" {
            let reference = self.take("ref").ok_or(CacheOptionError::Missing(kind, "ref"))?;
            return Ok(CacheLocation::Registry(reference.parse()?));
        }
        let given = self.take(path_key).ok_or(CacheOptionError::Missing(kind, path_key))?;
        let path = storage_path(&given).map_err(|error| CacheOptionError::Path(path_key, error))?;
        if path.is_empty() {
            return Err(CacheOptionError::StorageRoot(path_key));
        }
        if kind == "oci-archive" {
            return Ok(CacheLocation::Archive { path });
        }
        let tag = match self.take("tag") {
            None => Tag::latest(),
            Some(tag) => tag.parse().map_err(|_| CacheOptionError::Value("tag", tag, "a tag"))?,
        };
        Ok(CacheLocation::Directory { path, tag })
    }

    /// Fails if an attribute was not taken.
    fn finish(self, kind: &'static str, known: &'static str) -> Result<(), CacheOptionError> {
        match self.pairs.into_iter().next() {
            None => Ok(()),
            Some((key, _)) => Err(CacheOptionError::Attribute(kind, key, known)),
        }
    }
}

impl FromStr for CacheImport {
    type Err = CacheOptionError;

    fn from_str(text: &str) -> Result<Self, CacheOptionError> {
        let mut attributes = Attributes::parse(text)?;
        let (kind, known) = match attributes.take("type").as_deref() {
            None => return Err(CacheOptionError::Missing("", "type")),
            Some("registry") => ("registry", "`ref`"),
            Some("local") => ("local", "`src`, `tag` or `digest`"),
            Some("oci-archive") => ("oci-archive", "`src`"),
            Some(other) => {
                return Err(CacheOptionError::Type(
                    other.to_owned(),
                    "`registry`, `local` or `oci-archive`; an inline cache is read as `registry`",
                ));
            }
        };
        let location = attributes.take_location(kind, "src")?;
        let digest = match attributes.take("digest").filter(|_| kind == "local") {
            None => None,
            Some(text) => {
                Some(text.parse().map_err(|_| CacheOptionError::Value("digest", text, "`sha256:...`"))?)
            }
        };
        attributes.finish(kind, known)?;
        Ok(Self { location, digest })
    }
}

impl FromStr for CacheExport {
    type Err = CacheOptionError;

    fn from_str(text: &str) -> Result<Self, CacheOptionError> {
        const REGISTRY: &str = "`ref`, `mode`, `image-manifest`, `oci-mediatypes` or `ignore-error`";
        const LOCAL: &str = "`dest`, `tag`, `mode`, `image-manifest`, `oci-mediatypes` or `ignore-error`";
        const ARCHIVE: &str = "`dest`, `mode`, `image-manifest`, `oci-mediatypes` or `ignore-error`";
        let mut attributes = Attributes::parse(text)?;
        let (kind, known) = match attributes.take("type").as_deref() {
            None => return Err(CacheOptionError::Missing("", "type")),
            Some("inline") => {
                attributes.finish("inline", "none")?;
                return Ok(Self::Inline);
            }
            Some("registry") => ("registry", REGISTRY),
            Some("local") => ("local", LOCAL),
            Some("oci-archive") => ("oci-archive", ARCHIVE),
            Some(other) => {
                return Err(CacheOptionError::Type(
                    other.to_owned(),
                    "`registry`, `inline`, `local` or `oci-archive`",
                ));
            }
        };
        let location = attributes.take_location(kind, "dest")?;
        if matches!(&location, CacheLocation::Registry(reference) if reference.digest.is_some()) {
            return Err(CacheOptionError::WrittenByDigest);
        }
        let all_steps = match attributes.take("mode") {
            None => false,
            Some(mode) if mode == "min" => false,
            Some(mode) if mode == "max" => true,
            Some(mode) => return Err(CacheOptionError::Value("mode", mode, "`min` or `max`")),
        };
        let oci_media_types = attributes.take_flag("oci-mediatypes")?.unwrap_or(true);
        let image_manifest = attributes.take_flag("image-manifest")?.unwrap_or(oci_media_types);
        let ignore_error = attributes.take_flag("ignore-error")?.unwrap_or(false);
        attributes.finish(kind, known)?;
        if image_manifest && !oci_media_types {
            return Err(CacheOptionError::ManifestWithoutOci);
        }
        let format = CacheFormat { all_steps, image_manifest, oci_media_types };
        Ok(Self::To { location, format, ignore_error })
    }
}

impl CacheLocation {
    /// Writes the location as attributes; `path_key` is the name of the attribute with a path.
    fn write(&self, f: &mut fmt::Formatter<'_>, path_key: &str) -> fmt::Result {
        let path_field = |path: &str| {
            let field = format!("{path_key}={path}");
            if field.contains([',', '"']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
        };
        match self {
            Self::Registry(reference) => write!(f, "type=registry,ref={reference}"),
            Self::Directory { path, tag } => {
                write!(f, "type=local,{}", path_field(path))?;
                if *tag == Tag::latest() { Ok(()) } else { write!(f, ",tag={tag}") }
            }
            Self::Archive { path } => write!(f, "type=oci-archive,{}", path_field(path)),
        }
    }
}

impl fmt::Display for CacheImport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.location.write(f, "src")?;
        self.digest.iter().try_for_each(|digest| write!(f, ",digest={digest}"))
    }
}

impl fmt::Display for CacheExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::To { location, format, ignore_error } = self else { return f.write_str("type=inline") };
        location.write(f, "dest")?;
        if format.all_steps {
            f.write_str(",mode=max")?;
        }
        if !format.oci_media_types {
            f.write_str(",oci-mediatypes=false")?;
        } else if !format.image_manifest {
            f.write_str(",image-manifest=false")?;
        }
        if *ignore_error { f.write_str(",ignore-error=true") } else { Ok(()) }
    }
}

serde_as_text!(CacheImport);
serde_as_text!(CacheExport);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_read_as_buildx_writes_it_and_shown_in_its_shortest_form() {
        for (text, shown) in [
            ("my-app:cache", "type=registry,ref=my-app:cache"),
            ("type=registry,ref=ghcr.io/me/app:c", "type=registry,ref=ghcr.io/me/app:c"),
            ("src=/caches/app/,type=local", "type=local,src=caches/app"),
            ("type=local,src=a,tag=v2", "type=local,src=a,tag=v2"),
            ("type=oci-archive,\"src=a,b.tar\"", "type=oci-archive,\"src=a,b.tar\""),
        ] {
            let parsed: CacheImport = text.parse().unwrap();
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(shown.parse::<CacheImport>().unwrap(), parsed);
        }
        for (text, shown) in [
            ("type=inline", "type=inline"),
            ("type=registry,ref=a:c,mode=max", "type=registry,ref=a:c,mode=max"),
            ("type=registry,ref=a:c,mode=min,oci-mediatypes=true", "type=registry,ref=a:c"),
            ("type=local,dest=c,oci-mediatypes=false", "type=local,dest=c,oci-mediatypes=false"),
            ("type=local,dest=c,image-manifest=false", "type=local,dest=c,image-manifest=false"),
            ("type=oci-archive,dest=c.tar,ignore-error=1", "type=oci-archive,dest=c.tar,ignore-error=true"),
        ] {
            let parsed: CacheExport = text.parse().unwrap();
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(shown.parse::<CacheExport>().unwrap(), parsed);
        }
    }

    #[test]
    fn a_wrong_option_says_what_is_expected() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, says) in [
            ("type=gha", "`registry`, `local` or `oci-archive`"),
            ("type=registry", "needs `ref`"),
            ("type=registry,ref=a,mode=max", "no attribute `mode`; expected `ref`"),
            ("type=registry,ref=a,ref=b", "`ref` is given twice"),
            ("type=local,src=../x", "`src`"),
            ("type=local,src=/", "root of the storage"),
            ("type=local,src=a,digest=x", "`digest=x`"),
            ("type=registry,ref=UPPER", "`ref`"),
            ("type=registry,oops", "`oops` is no attribute"),
        ] {
            let error = text.parse::<CacheImport>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        for (text, says) in [
            ("type=s3,bucket=x", "`registry`, `inline`, `local` or `oci-archive`"),
            ("type=inline,mode=max", "no attribute `mode`"),
            ("type=registry,ref=a,mode=all", "`min` or `max`"),
            ("type=local,dest=a,src=b", "no attribute `src`"),
            ("type=local,dest=a,image-manifest=true,oci-mediatypes=false", "OCI media types"),
            (&format!("type=registry,ref=a@{digest}"), "not under a digest"),
        ] {
            let error = text.parse::<CacheExport>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
