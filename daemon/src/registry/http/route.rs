//! Routes below `/v2/`. Repository names contain slashes, so a path is parsed from its right end.

use http::Method;
use percent_encoding::percent_decode_str;

use super::error_response::RegistryErrorResponse;
use crate::access::policy::{CallerAction, PolicyRule};
use crate::model::{Digest, Repository, Tag};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RegistryRoute {
    Base,
    Catalog,
    Tags(Repository),
    Referrers(Repository, Digest),
    Manifest(Repository, ManifestName),
    /// A reference that is not a valid tag.
    InvalidTag(Repository, String),
    Uploads(Repository),
    Upload(Repository, String),
    Blob(Repository, Digest),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ManifestName {
    Tag(Tag),
    Digest(Digest),
}

impl RegistryRoute {
    pub(super) fn parse(path: &str) -> Result<Self, RegistryErrorResponse> {
        let nothing_here =
            || RegistryErrorResponse::unknown("NAME_UNKNOWN", "there is no such path in the registry's API");
        let path = percent_decode_str(path).decode_utf8().map_err(|_| nothing_here())?;
        let rest = path.strip_prefix("/v2").ok_or_else(nothing_here)?;
        let rest = match rest.strip_prefix('/') {
            None if rest.is_empty() => return Ok(Self::Base),
            None => return Err(nothing_here()),
            Some("") => return Ok(Self::Base),
            Some("_catalog") => return Ok(Self::Catalog),
            Some(rest) => rest,
        };
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Self::Tags(repository(name)?));
        }
        if let Some(name) =
            rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads"))
        {
            return Ok(Self::Uploads(repository(name)?));
        }
        let (front, last) = rest.rsplit_once('/').ok_or_else(nothing_here)?;
        if let Some(name) = front.strip_suffix("/manifests") {
            let name = repository(name)?;
            return if last.contains(':') {
                Ok(Self::Manifest(name, ManifestName::Digest(digest(last)?)))
            } else if let Ok(tag) = last.parse() {
                Ok(Self::Manifest(name, ManifestName::Tag(tag)))
            } else {
                Ok(Self::InvalidTag(name, last.chars().take(200).collect()))
            };
        }
        if let Some(name) = front.strip_suffix("/blobs/uploads") {
            return Ok(Self::Upload(repository(name)?, last.to_owned()));
        }
        if let Some(name) = front.strip_suffix("/blobs") {
            return Ok(Self::Blob(repository(name)?, digest(last)?));
        }
        if let Some(name) = front.strip_suffix("/referrers") {
            return Ok(Self::Referrers(repository(name)?, digest(last)?));
        }
        Err(nothing_here())
    }

    pub(super) const fn kind(&self) -> RouteKind {
        match self {
            Self::Base => RouteKind::Base,
            Self::Catalog => RouteKind::Catalog,
            Self::Tags(_) => RouteKind::Tags,
            Self::Referrers(..) => RouteKind::Referrers,
            Self::Manifest(..) | Self::InvalidTag(..) => RouteKind::Manifest,
            Self::Uploads(_) => RouteKind::Uploads,
            Self::Upload(..) => RouteKind::Upload,
            Self::Blob(..) => RouteKind::Blob,
        }
    }

    pub(super) fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Base | Self::Catalog => None,
            Self::Tags(name)
            | Self::Referrers(name, _)
            | Self::Manifest(name, _)
            | Self::InvalidTag(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _)
            | Self::Blob(name, _) => Some(name),
        }
    }

    /// Returns the digest in the path.
    pub(super) const fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Manifest(_, ManifestName::Digest(digest))
            | Self::Referrers(_, digest)
            | Self::Blob(_, digest) => Some(digest),
            _ => None,
        }
    }

    /// Returns the action that a request performs. `None` if any token of the room is enough.
    pub(super) fn action(&self, verb: RouteMethod) -> Option<CallerAction<'_>> {
        let name = self.repository()?;
        Some(match self.kind().rule(verb)? {
            PolicyRule::ListRepository => CallerAction::ListRepository(name),
            PolicyRule::PullRepository => CallerAction::PullRepository(name),
            PolicyRule::ProbeRepository => CallerAction::ProbeRepository(name),
            _ => CallerAction::WriteRepository(name),
        })
    }
}

/// HTTP methods that the API supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteMethod {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

impl RouteMethod {
    pub fn of(method: &Method) -> Option<Self> {
        Some(match *method {
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::PATCH => Self::Patch,
            Method::DELETE => Self::Delete,
            _ => return None,
        })
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// Kinds of routes, without the names in the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    Base,
    Catalog,
    Tags,
    Referrers,
    Manifest,
    Blob,
    Uploads,
    Upload,
}

impl RouteKind {
    pub const ALL: &'static [Self] = &[
        Self::Base,
        Self::Catalog,
        Self::Tags,
        Self::Referrers,
        Self::Manifest,
        Self::Blob,
        Self::Uploads,
        Self::Upload,
    ];

    /// Pattern as written in the documentation.
    pub const fn pattern(self) -> &'static str {
        match self {
            Self::Base => "/v2/",
            Self::Catalog => "/v2/_catalog",
            Self::Tags => "/v2/<repository>/tags/list",
            Self::Referrers => "/v2/<repository>/referrers/<digest>",
            Self::Manifest => "/v2/<repository>/manifests/<tag or digest>",
            Self::Blob => "/v2/<repository>/blobs/<digest>",
            Self::Uploads => "/v2/<repository>/blobs/uploads/",
            Self::Upload => "/v2/<repository>/blobs/uploads/<id>",
        }
    }

    /// Allowed methods; any other method is answered with 405.
    pub const fn methods(self) -> &'static [RouteMethod] {
        match self {
            Self::Base | Self::Catalog | Self::Tags | Self::Referrers => {
                &[RouteMethod::Get, RouteMethod::Head]
            }
            Self::Manifest => &[RouteMethod::Get, RouteMethod::Head, RouteMethod::Put, RouteMethod::Delete],
            Self::Blob => &[RouteMethod::Get, RouteMethod::Head, RouteMethod::Delete],
            Self::Uploads => &[RouteMethod::Post],
            Self::Upload => &[
                RouteMethod::Get,
                RouteMethod::Head,
                RouteMethod::Patch,
                RouteMethod::Put,
                RouteMethod::Delete,
            ],
        }
    }

    /// Policy rule that is checked before anything is looked up. `None` if any token of the room is enough.
    pub const fn rule(self, verb: RouteMethod) -> Option<PolicyRule> {
        match (self, verb) {
            // The list contains only the repositories that the caller may list.
            (Self::Base | Self::Catalog, _) => None,
            (Self::Tags, _) => Some(PolicyRule::ListRepository),
            (Self::Referrers, _) | (Self::Manifest | Self::Blob, RouteMethod::Get) => {
                Some(PolicyRule::PullRepository)
            }
            (Self::Manifest | Self::Blob, RouteMethod::Head) => Some(PolicyRule::ProbeRepository),
            (Self::Manifest | Self::Blob | Self::Uploads | Self::Upload, _) => {
                Some(PolicyRule::WriteRepository)
            }
        }
    }

    /// Label for metrics; one of a small set.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Catalog => "catalog",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Manifest => "manifest",
            Self::Uploads | Self::Upload => "upload",
            Self::Blob => "blob",
        }
    }
}

fn repository(name: &str) -> Result<Repository, RegistryErrorResponse> {
    name.parse().map_err(|_| {
        let name: String = name.chars().take(300).collect();
        RegistryErrorResponse::bad("NAME_INVALID", format!("`{name}` cannot be the name of a repository"))
    })
}

pub(super) fn digest(text: &str) -> Result<Digest, RegistryErrorResponse> {
    text.parse().map_err(|error: hearth_proto::value::DigestError| {
        RegistryErrorResponse::bad("DIGEST_INVALID", error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Repository {
        text.parse().unwrap()
    }

    #[test]
    fn names_with_any_words_in_them_are_read_from_the_right() {
        let sum = format!("sha256:{}", "0a".repeat(32));
        let digest: Digest = sum.parse().unwrap();
        for (path, route) in [
            ("/v2", RegistryRoute::Base),
            ("/v2/", RegistryRoute::Base),
            ("/v2/_catalog", RegistryRoute::Catalog),
            ("/v2/a/tags/list", RegistryRoute::Tags(name("a"))),
            ("/v2/tags/list/tags/list", RegistryRoute::Tags(name("tags/list"))),
            ("/v2/a/b/c/blobs/uploads/", RegistryRoute::Uploads(name("a/b/c"))),
            ("/v2/a/blobs/uploads", RegistryRoute::Uploads(name("a"))),
            ("/v2/blobs/uploads/blobs/uploads/", RegistryRoute::Uploads(name("blobs/uploads"))),
            ("/v2/a/blobs/uploads/01ab", RegistryRoute::Upload(name("a"), "01ab".to_owned())),
            (
                "/v2/manifests/manifests/x",
                RegistryRoute::Manifest(name("manifests"), ManifestName::Tag("x".parse().unwrap())),
            ),
            ("/v2/a/manifests/.x", RegistryRoute::InvalidTag(name("a"), ".x".to_owned())),
        ] {
            assert_eq!(RegistryRoute::parse(path).unwrap(), route, "{path}");
        }
        assert_eq!(
            RegistryRoute::parse(&format!("/v2/a/blobs/{sum}")).unwrap(),
            RegistryRoute::Blob(name("a"), digest)
        );
        let encoded = sum.replace(':', "%3A");
        assert_eq!(
            RegistryRoute::parse(&format!("/v2/a/blobs/{encoded}")).unwrap(),
            RegistryRoute::Blob(name("a"), digest)
        );
        assert_eq!(
            RegistryRoute::parse(&format!("/v2/a/b/manifests/{sum}")).unwrap(),
            RegistryRoute::Manifest(name("a/b"), ManifestName::Digest(digest))
        );
        assert_eq!(
            RegistryRoute::parse(&format!("/v2/a/referrers/{sum}")).unwrap(),
            RegistryRoute::Referrers(name("a"), digest)
        );
    }

    #[test]
    fn what_is_no_path_of_the_api_is_refused() {
        for path in [
            "/",
            "/v2x",
            "/v2/a",
            "/v2/a/b",
            "/v2/A/tags/list",
            "/v2/../a/tags/list",
            "/v2//tags/list",
            "/v2/a/blobs/sha256:12",
            "/v2/a/blobs/latest",
            "/v2/a/manifests/sha512:00",
            "/v2/%ff/tags/list",
            "/v2/a%2f..%2fb/tags/list",
        ] {
            assert!(RegistryRoute::parse(path).is_err(), "{path}");
        }
    }
}
