//! HTTP client that fetches one URL. It checks every redirect against the egress policy and sends no credentials.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use hearth_registry::{AddressGuard, refused_address};
use reqwest::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, LOCATION};
use reqwest::{Client, Response, StatusCode, redirect};
use url::{Host, Url};

use super::DownloadError;
use super::files::{DownloadFiles, UrlRecord};
use crate::fetch_policy::FetchPolicy;
use crate::model::egress::EgressPolicy;

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Time limit for each response header and each chunk of a body.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for one file, including its redirects and retries.
const TOTAL_LIMIT: Duration = Duration::from_secs(1800);
/// Maximum number of redirects, the same as in Go's HTTP client.
const MAX_REDIRECTS: usize = 10;
const MAX_ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(300);
/// Maximum size of one file, in bytes.
const MAX_FILE_SIZE: u64 = 16 << 30;

/// Outcome of fetching a URL.
pub(super) enum FetchOutcome {
    /// The cached record is still valid.
    Unchanged,
    Fetched(UrlRecord),
}

/// HTTP client with the egress policy of builds.
pub(super) struct FetchClient {
    policy: FetchPolicy,
    client: OnceLock<Result<Client, String>>,
}

impl FetchClient {
    pub(super) fn new(policy: EgressPolicy) -> Self {
        Self { policy: FetchPolicy::new(policy), client: OnceLock::new() }
    }

    fn client(&self, url: &Url) -> Result<&Client, DownloadError> {
        let policy = self.policy.clone();
        let made = self.client.get_or_init(|| {
            // An error means that a provider is already installed.
            let _ = rustls::crypto::ring::default_provider().install_default();
            Client::builder()
                .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .referer(false)
                .connect_timeout(CONNECT_LIMIT)
                .dns_resolver(AddressGuard::new(move |address| policy.allows_resolved(address)))
                .build()
                .map_err(|error| error.to_string())
        });
        made.as_ref().map_err(|reason| DownloadError::Unreachable {
            url: shown_url(url),
            reason: format!("cannot create an HTTP client: {reason}"),
        })
    }

    /// Fetches a URL into `files`, unless the server reports that the cached file has not changed.
    pub(super) async fn fetch(
        &self,
        text: &str,
        known: Option<&UrlRecord>,
        files: &DownloadFiles,
    ) -> Result<FetchOutcome, DownloadError> {
        let url = parse(text)?;
        let fetch = async {
            let mut attempt = 1;
            loop {
                match self.fetch_once(&url, known, files).await {
                    Err(error) if attempt < MAX_ATTEMPTS && is_transient(&error) => {
                        tracing::debug!(%error, attempt, "retrying download");
                        tokio::time::sleep(FIRST_PAUSE * 2u32.pow(attempt)).await;
                        attempt += 1;
                    }
                    answer => return answer,
                }
            }
        };
        let slow = || DownloadError::Slow { url: shown_url(&url), seconds: TOTAL_LIMIT.as_secs() };
        tokio::time::timeout(TOTAL_LIMIT, fetch).await.unwrap_or_else(|_| Err(slow()))
    }

    async fn fetch_once(
        &self,
        first: &Url,
        known: Option<&UrlRecord>,
        files: &DownloadFiles,
    ) -> Result<FetchOutcome, DownloadError> {
        let mut url = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            self.check(&url)?;
            let mut request = self.client(&url)?.get(url.clone());
            if let Some(known) = known {
                if let Some(etag) = &known.etag {
                    request = request.header(IF_NONE_MATCH, etag);
                } else if let Some(time) = &known.last_modified {
                    request = request.header(IF_MODIFIED_SINCE, time);
                }
            }
            let answer = match tokio::time::timeout(STALL_LIMIT, request.send()).await {
                Ok(answer) => answer.map_err(|error| unreachable(&url, &error))?,
                Err(_) => {
                    return Err(DownloadError::Slow { url: shown_url(&url), seconds: STALL_LIMIT.as_secs() });
                }
            };
            let status = answer.status();
            if status == StatusCode::NOT_MODIFIED && known.is_some() {
                return Ok(FetchOutcome::Unchanged);
            }
            if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let next = location.and_then(|location| url.join(location).ok());
                let wrong = || DownloadError::Status { url: shown_url(&url), status: status.as_u16() };
                url = parse(next.ok_or_else(wrong)?.as_str())?;
                continue;
            }
            if !status.is_success() {
                return Err(DownloadError::Status { url: shown_url(&url), status: status.as_u16() });
            }
            return self.store_body(&url, answer, files).await.map(FetchOutcome::Fetched);
        }
        Err(DownloadError::Redirects { url: shown_url(first), limit: MAX_REDIRECTS })
    }

    async fn store_body(
        &self,
        url: &Url,
        mut answer: Response,
        files: &DownloadFiles,
    ) -> Result<UrlRecord, DownloadError> {
        let header = |name| {
            let value = answer.headers().get(name)?.to_str().ok()?;
            (value.len() <= 1024).then(|| value.to_owned())
        };
        let (etag, last_modified) = (header(ETAG), header(LAST_MODIFIED));
        let too_large = || DownloadError::TooLarge { url: shown_url(url), limit: MAX_FILE_SIZE };
        if answer.content_length().is_some_and(|length| length > MAX_FILE_SIZE) {
            return Err(too_large());
        }
        let mut draft = files.draft()?;
        let mut size = 0u64;
        loop {
            let chunk = match tokio::time::timeout(STALL_LIMIT, answer.chunk()).await {
                Ok(chunk) => chunk.map_err(|error| unreachable(url, &error))?,
                Err(_) => {
                    return Err(DownloadError::Slow { url: shown_url(url), seconds: STALL_LIMIT.as_secs() });
                }
            };
            let Some(chunk) = chunk else { break };
            size += chunk.len() as u64;
            if size > MAX_FILE_SIZE {
                return Err(too_large());
            }
            draft = draft.write(chunk).await?;
        }
        let digest = draft.commit().await?;
        Ok(UrlRecord { digest, etag, last_modified, used: jiff::Timestamp::now() })
    }

    /// Checks whether the policy allows the host of a URL. The addresses of a host name are checked later, when the
    /// connection is made.
    fn check(&self, url: &Url) -> Result<(), DownloadError> {
        let (shown, host) = (shown_url(url), url.host_str().unwrap_or_default().to_owned());
        let Some(found) = url.host() else { return Err(DownloadError::Host { url: shown, host }) };
        if self.policy.allows_host(&found) {
            return Ok(());
        }
        let address: IpAddr = match found {
            Host::Domain(_) => return Err(DownloadError::Host { url: shown, host }),
            Host::Ipv4(address) => address.into(),
            Host::Ipv6(address) => address.into(),
        };
        Err(DownloadError::Address { url: shown, host, address })
    }

    /// Checks whether the builder may fetch from a host directly: the policy must allow its name and all of its
    /// current addresses.
    pub(super) async fn check_host(&self, host: &str) -> Result<(), DownloadError> {
        let url = parse(&format!("https://{host}/"))?;
        self.check(&url)?;
        let Some(Host::Domain(name)) = url.host() else { return Ok(()) };
        let resolved = tokio::time::timeout(CONNECT_LIMIT, tokio::net::lookup_host((name, 443))).await;
        let unreachable = |reason: String| DownloadError::Unreachable { url: host.to_owned(), reason };
        let addresses = match resolved {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable("its name was not resolved in time".to_owned())),
        };
        let refused =
            addresses.map(|address| address.ip()).find(|address| !self.policy.allows_resolved(*address));
        match refused {
            Some(address) => {
                Err(DownloadError::Address { url: shown_url(&url), host: name.to_owned(), address })
            }
            None => Ok(()),
        }
    }
}

fn parse(text: &str) -> Result<Url, DownloadError> {
    let wrong = |reason| DownloadError::Url { url: redacted_url(text), reason };
    let url: Url = text.parse().map_err(|_| wrong("it cannot be parsed"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("it is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("it contains credentials, and ADD sends none"));
    }
    Ok(url)
}

/// Returns a URL for messages, without query, fragment and user information.
pub(super) fn redacted_url(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let (host, path) =
        rest.split_once('/').map_or((rest, String::new()), |(host, path)| (host, format!("/{path}")));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}").chars().filter(|c| !c.is_control()).take(300).collect()
}

fn shown_url(url: &Url) -> String {
    redacted_url(url.as_str())
}

fn is_transient(error: &DownloadError) -> bool {
    match error {
        DownloadError::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
        DownloadError::Unreachable { .. } => true,
        _ => false,
    }
}

fn unreachable(url: &Url, error: &reqwest::Error) -> DownloadError {
    if let Some(refused) = refused_address(error) {
        let (host, address) = (refused.host.clone(), refused.address);
        return DownloadError::Address { url: shown_url(url), host, address };
    }
    // Only the innermost cause is shown; the outer ones repeat the URL.
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    DownloadError::Unreachable { url: shown_url(url), reason: cause.to_string().chars().take(300).collect() }
}
