//! Hosts for a reference: the mirrors of its registry, then the registry itself.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hearth_value::Reference;
use url::Url;

use super::credentials::registry_key;

/// Name of Docker Hub in references. Its API is at [`DOCKER_HUB_HOST`].
pub(super) const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// Mirror `HOST=URL`: the URL is tried before the registry `HOST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryMirror {
    /// Canonical name of the registry, see [`registry_key`].
    pub registry: String,
    pub url: Url,
}

/// Error: the text is not a mirror `HOST=URL`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mirror `{given}`: write HOST=URL, such as `docker.io=https://mirror.example`; {reason}")]
pub struct MirrorError {
    given: String,
    reason: &'static str,
}

/// Mirrors in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MirrorList(Vec<RegistryMirror>);

impl RegistryMirror {
    pub fn new(registry: &str, url: &str) -> Result<Self, MirrorError> {
        let error = |reason| {
            // A password in the URL must not appear in the error.
            let url = url.rsplit_once('@').map_or(url, |(_, host)| host);
            MirrorError { given: format!("{registry}={url}").chars().take(200).collect(), reason }
        };
        let registry = registry.trim();
        if format!("{registry}/x").parse::<Reference>().ok().and_then(|found| found.registry).is_none() {
            return Err(error("the host is that of a registry"));
        }
        let mut url: Url = url.trim().parse().map_err(|_| error("the URL cannot be read"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(error("the URL begins with http:// or https:// and has a host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(error("credentials are given elsewhere, not in the URL"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(error("the URL has no query"));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self { registry: registry_key(registry), url })
    }

    /// Returns `host[:port]` of the URL.
    pub fn authority(&self) -> String {
        authority(&self.url)
    }

    pub fn is_plain_http(&self) -> bool {
        self.url.scheme() == "http"
    }
}

impl FromStr for RegistryMirror {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<Self, MirrorError> {
        match text.split_once('=') {
            Some((registry, url)) => Self::new(registry, url),
            None => Err(MirrorError { given: text.chars().take(200).collect(), reason: "there is no `=`" }),
        }
    }
}

impl fmt::Display for RegistryMirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.registry, self.url.as_str().trim_end_matches('/'))
    }
}

impl MirrorList {
    pub fn new(mirrors: Vec<RegistryMirror>) -> Self {
        Self(mirrors)
    }

    pub fn iter(&self) -> impl Iterator<Item = &RegistryMirror> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the hosts for `reference` in the order in which they are tried, the registry itself last.
    pub(super) fn hosts(&self, reference: &Reference) -> Vec<RegistryHost> {
        let own = self.registry_host(reference);
        let named = self.0.iter().filter(|mirror| mirror.registry == own.key && mirror.url != own.base);
        named.map(|mirror| RegistryHost::mirror(mirror, &own.key)).chain([own.clone()]).collect()
    }

    /// Returns the host of the registry itself, which is also the only target of a push.
    pub(super) fn registry_host(&self, reference: &Reference) -> RegistryHost {
        let key = registry_key(reference.registry.as_ref().map_or(DOCKER_HUB, |registry| registry.as_str()));
        let itself = self.0.iter().find(|mirror| mirror.registry == key && mirror.authority() == key);
        let host = RegistryHost::registry(key, itself.is_some_and(RegistryMirror::is_plain_http));
        RegistryHost { is_configured: itself.is_some(), ..host }
    }

    /// Returns the keys of the hosts whose credentials a reference may need.
    pub fn authorities(&self, reference: &Reference) -> Vec<String> {
        self.hosts(reference).into_iter().map(|host| host.key).collect()
    }
}

/// Returns the repository path of a reference at its registry. Official images of Docker Hub are below `library/`.
pub(super) fn repository(reference: &Reference) -> String {
    let path = reference.repository.as_str();
    let registry = reference.registry.as_ref().map_or(DOCKER_HUB, |registry| registry.as_str());
    if registry_key(registry) == DOCKER_HUB && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    }
}

/// Returns the canonical `registry/repository` of a reference, such as `docker.io/library/python`.
pub fn full_name(reference: &Reference) -> String {
    let registry = reference.registry.as_ref().map_or(DOCKER_HUB, |registry| registry.as_str());
    format!("{}/{}", registry_key(registry), repository(reference))
}

/// One host with a registry API (`/v2/`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RegistryHost {
    /// Key for credentials: `host[:port]`, or `docker.io`.
    pub(super) key: String,
    /// Base URL with a trailing slash, to which `v2/` is appended.
    pub(super) base: Url,
    /// Key of the mirrored registry, if the host is a mirror.
    pub(super) mirror_of: Option<String>,
    /// True if the host is configured as a mirror of another registry or of itself.
    pub(super) is_configured: bool,
    /// True if the operator has credentials for the host.
    pub(super) has_operator_credentials: bool,
}

impl RegistryHost {
    fn mirror(mirror: &RegistryMirror, of: &str) -> Self {
        Self {
            key: registry_key(&mirror.authority()),
            base: mirror.url.clone(),
            mirror_of: Some(of.to_owned()),
            is_configured: true,
            has_operator_credentials: false,
        }
    }

    pub(super) fn registry(key: String, plain_http: bool) -> Self {
        let host = if key == DOCKER_HUB { DOCKER_HUB_HOST } else { key.as_str() };
        let scheme = if plain_http || is_loopback(host_part(host)) { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{host}/"));
        // A valid reference always gives a valid URL.
        let base = base.unwrap_or_else(|_| unusable());
        Self { key, base, mirror_of: None, is_configured: false, has_operator_credentials: false }
    }

    /// Returns a URL below `/v2/<repository>/`.
    pub(super) fn url(&self, repository: &str, rest: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}v2/{repository}/{rest}", self.base.path()));
        if let Some(registry) = &self.mirror_of {
            // A mirror of several registries distinguishes them by this parameter.
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }

    /// Reports whether `url` has the origin of this host, and may get the host's credentials.
    pub(super) fn has_same_origin(&self, url: &Url) -> bool {
        self.base.origin() == url.origin()
    }

    pub(super) fn is_plain_http(&self) -> bool {
        self.base.scheme() == "http"
    }
}

fn unusable() -> Url {
    #[expect(clippy::expect_used, reason = "the text is a constant")]
    Url::parse("https://invalid./").expect("a URL")
}

pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn host_part(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Reports whether a host name or address is loopback, without a DNS lookup.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Returns a URL for messages, without query and user information.
pub(super) fn redacted_url(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), authority(url), url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    fn mirrors(texts: &[&str]) -> MirrorList {
        MirrorList(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn a_bare_name_is_docker_hubs_and_a_single_word_is_in_its_library() {
        for text in ["python:3.13", "docker.io/python", "index.docker.io/python", "docker.io/library/python"]
        {
            let host = MirrorList::default().registry_host(&reference(text));
            assert_eq!(
                (host.key.as_str(), host.base.as_str()),
                ("docker.io", "https://registry-1.docker.io/")
            );
            assert_eq!(repository(&reference(text)), "library/python", "{text}");
        }
        assert_eq!(repository(&reference("me/app")), "me/app");
        assert_eq!(repository(&reference("ghcr.io/app")), "app");
    }

    #[test]
    fn plain_http_is_for_this_machine_and_for_hosts_that_are_configured_so() {
        let scheme = |mirrors: &MirrorList, text: &str| {
            mirrors.registry_host(&reference(text)).base.scheme().to_owned()
        };
        let none = MirrorList::default();
        for (text, expected) in [
            ("localhost/x", "http"),
            ("localhost:5000/x", "http"),
            ("127.0.0.1:5000/x", "http"),
            ("127.8.9.1/x", "http"),
            ("127.0.0.1.example.com/x", "https"),
            ("localhost.example.com/x", "https"),
            ("registry.internal:5000/x", "https"),
            ("10.0.0.1:5000/x", "https"),
        ] {
            assert_eq!(scheme(&none, text), expected, "{text}");
        }
        let configured = mirrors(&["registry.internal:5000=http://registry.internal:5000"]);
        assert_eq!(scheme(&configured, "registry.internal:5000/x"), "http");
        assert_eq!(configured.hosts(&reference("registry.internal:5000/x")).len(), 1);
    }

    #[test]
    fn mirrors_are_asked_in_order_before_the_registry_and_learn_its_name() {
        let mirrors = mirrors(&[
            "docker.io=http://127.0.0.1:5000",
            "ghcr.io=https://ghcr.mirror",
            "index.docker.io=https://hub.mirror/proxy/",
        ]);
        let hosts = mirrors.hosts(&reference("python:3.13"));
        let urls: Vec<String> =
            hosts.iter().map(|host| host.url("library/python", "manifests/3.13").to_string()).collect();
        assert_eq!(
            urls,
            [
                "http://127.0.0.1:5000/v2/library/python/manifests/3.13?ns=docker.io",
                "https://hub.mirror/proxy/v2/library/python/manifests/3.13?ns=docker.io",
                "https://registry-1.docker.io/v2/library/python/manifests/3.13",
            ]
        );
    }

    #[test]
    fn a_mirror_that_is_wrong_says_how_it_is_written_and_shows_no_password() {
        for text in [
            "docker.io",
            "=https://x",
            "docker.io=x",
            "docker.io=ftp://x",
            "docker.io=https://",
            "a/b=https://x",
        ] {
            let error = text.parse::<RegistryMirror>().unwrap_err().to_string();
            assert!(error.contains("HOST=URL"), "{text}: {error}");
        }
        let error = "docker.io=https://user:hunter2@x".parse::<RegistryMirror>().unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        let mirror: RegistryMirror = "docker.io=http://m.example:80/a/".parse().unwrap();
        assert_eq!(
            (mirror.authority().as_str(), mirror.to_string().as_str()),
            ("m.example", "docker.io=http://m.example/a")
        );
    }
}
