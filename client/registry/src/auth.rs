//! Authentication at registries and their token services.
//!
//! A registry that asks for a Bearer token names a token service, its *realm*, and credentials are sent there. A
//! malicious registry could name any realm. Therefore credentials are sent to a realm only if
//!
//! - it is on the registry's own host, or
//! - both hosts have the same owner: they are in the same registrable domain by the public suffix list, or they are
//!   Docker Hub's registry and its token service,
//!
//! and only over HTTPS, unless the registry itself uses plain HTTP and the realm is on its host. Any other realm is
//! used only if there are no credentials, for an anonymous token. With credentials it is refused, because an
//! anonymous token without access to the image would only hide the cause.

use std::collections::HashMap;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use url::Url;

use super::RegistryClient;
use super::credentials::HostCredential;
use super::error::RemoteError;
use super::host::{DOCKER_HUB, RegistryHost, is_loopback, redacted_url};
use super::transport::{MAX_JSON_ANSWER, RegistryRequest, answer_json};

/// Cache of authorization headers, by host and scope.
#[derive(Debug, Default)]
pub(super) struct TokenCache(Mutex<HashMap<(String, String), HeaderValue>>);

impl TokenCache {
    pub(super) fn get(&self, host: &RegistryHost, scope: &str) -> Option<HeaderValue> {
        self.0.lock().get(&(host.key.clone(), scope.to_owned())).cloned()
    }

    fn insert(&self, host: &RegistryHost, scope: &str, value: HeaderValue) {
        self.0.lock().insert((host.key.clone(), scope.to_owned()), value);
    }

    pub(super) fn remove(&self, host: &RegistryHost, scope: &str) {
        self.0.lock().remove(&(host.key.clone(), scope.to_owned()));
    }
}

/// Authentication challenge of a 401 answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AuthChallenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    Other(String),
}

impl AuthChallenge {
    /// Returns the preferred challenge of an answer: Bearer before Basic before others. `None` if the answer has none.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let all = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut found: Vec<Self> = all.map(parse).collect();
        found.sort_by_key(|challenge| match challenge {
            Self::Bearer { .. } => 0,
            Self::Basic => 1,
            Self::Other(_) => 2,
        });
        found.into_iter().next()
    }
}

/// Parses `Scheme key="value", key=value` (RFC 9110, section 11.6.1).
fn parse(text: &str) -> AuthChallenge {
    let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return AuthChallenge::Basic;
    }
    let mut parameters: HashMap<String, String> = parameters(rest);
    match parameters.remove("realm") {
        Some(realm) if scheme.eq_ignore_ascii_case("bearer") => AuthChallenge::Bearer {
            realm,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        },
        _ => AuthChallenge::Other(scheme.chars().filter(char::is_ascii_alphanumeric).take(30).collect()),
    }
}

fn parameters(mut rest: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        let value;
        if let Some(quoted) = after.strip_prefix('"') {
            let mut text = String::new();
            let mut characters = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((at, character)) = characters.next() {
                match character {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => text.extend(characters.next().map(|(_, escaped)| escaped)),
                    character => text.push(character),
                }
            }
            value = text;
            rest = &quoted[end..];
        } else {
            let (plain, more) = after.split_once(',').unwrap_or((after, ""));
            value = plain.trim().to_owned();
            rest = more;
        }
        found.entry(key).or_insert(value);
    }
    found
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
}

impl RegistryClient {
    /// Creates the authorization header for a challenge and caches it for `scope`. Returns `None` if there is no
    /// suitable credential.
    pub(super) async fn authorize(
        &self,
        host: &RegistryHost,
        url: &Url,
        scope: &str,
        challenge: Option<AuthChallenge>,
    ) -> Result<Option<HeaderValue>, RemoteError> {
        let credential = self.credentials.get(&host.key);
        let header = match (challenge, credential) {
            (None, _) | (Some(AuthChallenge::Basic), None) => return Ok(None),
            (Some(AuthChallenge::Basic), Some(HostCredential::Password { username, password })) => {
                basic(username, password)
            }
            (Some(AuthChallenge::Basic), Some(HostCredential::IdentityToken(_))) => return Ok(None),
            (Some(AuthChallenge::Other(scheme)), _) => {
                return Err(RemoteError::Challenge { url: redacted_url(url), scheme });
            }
            (Some(AuthChallenge::Bearer { realm, service, scope: asked }), credential) => {
                let scope = merge_scopes(scope, asked.as_deref());
                let token = self.token(host, url, &realm, service.as_deref(), &scope, credential).await?;
                format!("Bearer {token}")
            }
        };
        let mut header = HeaderValue::from_str(&header).map_err(|_| RemoteError::Answer {
            url: redacted_url(url),
            reason: "its token has characters that a header cannot have".to_owned(),
        })?;
        header.set_sensitive(true);
        self.tokens.insert(host, scope, header.clone());
        Ok(Some(header))
    }

    async fn token(
        &self,
        host: &RegistryHost,
        url: &Url,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        credential: Option<&HostCredential>,
    ) -> Result<String, RemoteError> {
        let wrong = |reason| RemoteError::Realm { url: redacted_url(url), realm: realm_shown(realm), reason };
        let mut target: Url = realm.parse().map_err(|_| wrong("it is not a URL"))?;
        match (realm_trust(host, &target), credential) {
            (RealmTrust::SameOwner, _) | (RealmTrust::Anonymous, None) => {}
            (RealmTrust::Anonymous, Some(_)) => {
                return Err(wrong("credentials are not sent to a host of another owner"));
            }
            (RealmTrust::Never(reason), _) => return Err(wrong(reason)),
        }
        let scopes = || scope.split(' ').filter(|scope| !scope.is_empty());
        let call = match credential {
            Some(HostCredential::IdentityToken(token)) => {
                let mut form = vec![
                    ("grant_type", "refresh_token"),
                    ("client_id", "hearth"),
                    ("refresh_token", token.as_str()),
                    ("scope", scope),
                ];
                form.extend(service.map(|service| ("service", service)));
                let form: Vec<_> =
                    form.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
                RegistryRequest::post_form(target, form)
            }
            credential => {
                {
                    let mut query = target.query_pairs_mut();
                    if let Some(service) = service {
                        query.append_pair("service", service);
                    }
                    for scope in scopes() {
                        query.append_pair("scope", scope);
                    }
                    if let Some(HostCredential::Password { username, .. }) = credential {
                        query.append_pair("account", username);
                    }
                }
                let mut call = RegistryRequest::get(target);
                if let Some(HostCredential::Password { username, password }) = credential {
                    call = call.authorization(&basic(username, password));
                }
                call
            }
        };
        // Redirects of a token service are not followed: the credentials are only for that service.
        let answer = self.send_plain(host, &call).await?;
        let answer: TokenResponse = answer_json(answer, MAX_JSON_ANSWER, self.retry.stall).await?;
        let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
        token.filter(|token| !token.is_empty()).ok_or_else(|| RemoteError::Answer {
            url: realm_shown(realm),
            reason: "it has no token".to_owned(),
        })
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

fn realm_shown(realm: &str) -> String {
    let without_query = realm.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = without_query.split_once("://").unwrap_or(("", without_query));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{rest}").chars().take(200).collect()
}

/// Merges two lists of scopes without duplicates.
fn merge_scopes(own: &str, asked: Option<&str>) -> String {
    let mut all: Vec<&str> = own.split(' ').filter(|scope| !scope.is_empty()).collect();
    for scope in asked.unwrap_or_default().split(' ').filter(|scope| !scope.is_empty()) {
        if !all.contains(&scope) {
            all.push(scope);
        }
    }
    all.join(" ")
}

#[derive(Debug, PartialEq, Eq)]
enum RealmTrust {
    /// The realm belongs to the owner of the registry.
    SameOwner,
    /// The realm belongs to another owner. It may learn which image is requested, but gets no credentials.
    Anonymous,
    /// The realm is not used at all, for this reason.
    Never(&'static str),
}

fn realm_trust(host: &RegistryHost, realm: &Url) -> RealmTrust {
    let (Some(own), Some(other)) = (host.base.host_str(), realm.host_str()) else {
        return RealmTrust::Never("it has no host");
    };
    if !realm.username().is_empty() || realm.password().is_some() {
        return RealmTrust::Never("it contains a user name or password");
    }
    match realm.scheme() {
        "https" => {}
        "http" if host.is_plain_http() && own == other => return RealmTrust::SameOwner,
        "http" => return RealmTrust::Never("it is not https"),
        _ => return RealmTrust::Never("it is neither http nor https"),
    }
    if own == other || same_owner(own, other) {
        return RealmTrust::SameOwner;
    }
    // A registry must not make this process send requests to hosts of the internal network.
    let internal = is_loopback(other)
        || !other.contains('.')
        || other.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if internal {
        RealmTrust::Never("it is an address of an internal network")
    } else {
        RealmTrust::Anonymous
    }
}

fn same_owner(registry: &str, realm: &str) -> bool {
    if registry.parse::<IpAddr>().is_ok() || realm.parse::<IpAddr>().is_ok() {
        return false;
    }
    if registry == "registry-1.docker.io" || registry == DOCKER_HUB {
        return realm == "auth.docker.io";
    }
    let domain = |host: &str| {
        let domain = psl::domain(host.as_bytes())?;
        // A suffix that is not on the list does not prove a common owner.
        domain.suffix().is_known().then(|| domain.as_bytes().to_vec())
    };
    domain(registry).is_some_and(|own| Some(own) == domain(realm))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MirrorList;

    fn trust(registry: &str, realm: &str) -> RealmTrust {
        let host = MirrorList::default().registry_host(&format!("{registry}/x").parse().unwrap());
        realm_trust(&host, &realm.parse().unwrap())
    }

    #[test]
    fn credentials_go_to_realms_of_the_same_owner_only() {
        for (registry, realm) in [
            ("docker.io", "https://auth.docker.io/token"),
            ("ghcr.io", "https://ghcr.io/token"),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            ("registry.example.co.uk", "https://auth.example.co.uk/token"),
            ("registry.example.com:5000", "https://registry.example.com:5001/token"),
            ("127.0.0.1:5000", "http://127.0.0.1:5001/token"),
        ] {
            assert_eq!(trust(registry, realm), RealmTrust::SameOwner, "{registry} {realm}");
        }
        for (registry, realm) in [
            ("evil.example", "https://auth.docker.io/token"),
            ("docker.io", "https://auth.evil.example/token"),
            ("a.co.uk", "https://b.co.uk/token"),
            ("one.github.io", "https://two.github.io/token"),
            ("registry.example.com", "https://example.com.evil.org/token"),
        ] {
            assert_eq!(trust(registry, realm), RealmTrust::Anonymous, "{registry} {realm}");
        }
        for (registry, realm) in [
            ("ghcr.io", "http://ghcr.io/token"),
            ("ghcr.io", "https://user@ghcr.io/token"),
            ("ghcr.io", "file:///etc/passwd"),
            ("ghcr.io", "https://169.254.169.254/latest"),
            ("ghcr.io", "https://localhost/token"),
            ("ghcr.io", "https://vault/v1/secret"),
            ("127.0.0.1:5000", "http://auth.example.com/token"),
            ("127.0.0.1:5000", "http://127.0.0.2:5000/token"),
        ] {
            assert!(matches!(trust(registry, realm), RealmTrust::Never(_)), "{registry} {realm}");
        }
    }

    #[test]
    fn challenges_are_parsed_with_quotes_and_commas_in_their_values() {
        let text = r#"Bearer realm="https://a/t?x=1,2",service="r \"q\"", scope="repository:a/b:pull,push", error=x"#;
        assert_eq!(
            parse(text),
            AuthChallenge::Bearer {
                realm: "https://a/t?x=1,2".to_owned(),
                service: Some("r \"q\"".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            }
        );
        assert_eq!(parse("basic realm=x"), AuthChallenge::Basic);
        assert_eq!(parse("Negotiate"), AuthChallenge::Other("Negotiate".to_owned()));
        assert_eq!(parse("Bearer"), AuthChallenge::Other("Bearer".to_owned()));
        for odd in ["", "=", "Bearer realm=\"", "Bearer =,=\"\\", "Bearer realm=\"\\"] {
            let _ = parse(odd);
        }
    }

    #[test]
    fn scopes_of_the_client_and_of_the_challenge_are_merged() {
        let own = "repository:a:pull,push repository:b:pull";
        assert_eq!(merge_scopes(own, Some("repository:a:pull,push")), own);
        assert_eq!(
            merge_scopes("repository:a:pull", Some("repository:c:pull")),
            "repository:a:pull repository:c:pull"
        );
    }
}
