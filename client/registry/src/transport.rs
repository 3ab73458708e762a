//! Sends one request: with retries, one authorization, and checked redirects.
//!
//! This module follows redirects itself instead of the HTTP client: the authorization header is only sent to the
//! registry's own host, and HTTPS is never redirected to plain HTTP.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::{Client, Method, Response, StatusCode, redirect};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tracing::{Instrument as _, Span};
use url::Url;

use super::RegistryClient;
use super::auth::AuthChallenge;
use super::error::RemoteError;
use super::guard::{AddressGuards, AddressRefused, refused_address};
use super::host::{RegistryHost, is_loopback, redacted_url};
use super::push::OpenContent;

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Maximum size of small JSON answers such as tokens, in bytes.
pub(super) const MAX_JSON_ANSWER: usize = 1024 * 1024;
const MAX_ERROR_ANSWER: usize = 64 * 1024;
const MAX_REDIRECTS: usize = 5;
/// Size of the chunks of an upload, in bytes.
const UPLOAD_CHUNK: usize = 256 * 1024;

/// HTTP clients with their connection pools, shared by all requests to registries.
#[derive(Debug, Default)]
pub(super) struct HttpTransport {
    /// Client for plain HTTP to this machine, without proxy and certificates.
    direct: OnceLock<Result<Client, String>>,
    /// Client for all other requests.
    outward: OnceLock<Result<Client, String>>,
    /// Client for registries that are not configured, and for the redirects and token services of others.
    unconfigured: OnceLock<Result<Client, String>>,
    guards: Option<AddressGuards>,
}

impl HttpTransport {
    /// Creates a transport that connects only to addresses that the guards allow.
    pub(super) fn guarded(guards: AddressGuards) -> Self {
        Self { guards: Some(guards), ..Self::default() }
    }

    /// Returns the client for a URL that belongs to a request to `host`.
    fn client(&self, host: &RegistryHost, url: &Url) -> Result<&Client, RemoteError> {
        let own = host.has_same_origin(url);
        let configured = host.is_configured || (host.has_operator_credentials && own);
        let guard = self.guards.as_ref();
        let guard = guard.map(|guards| if configured { &guards.configured } else { &guards.unconfigured });
        // An address that the operator has configured literally is always allowed.
        let written = configured && own;
        if let Some(guard) = guard.filter(|_| !written) {
            guard.check(url).map_err(|refused| internal_address_error(host, url, &refused))?;
        }
        let direct = url.scheme() == "http" && url.host_str().is_some_and(is_loopback);
        let (cell, builder) = match direct {
            true => (&self.direct, Client::builder().no_proxy().tls_certs_only([])),
            false if guard.is_some() && !configured => (&self.unconfigured, Client::builder()),
            false => (&self.outward, Client::builder()),
        };
        let builder = match guard {
            Some(guard) => builder.dns_resolver(guard.clone()),
            None => builder,
        };
        let made = cell.get_or_init(|| {
            // An error means that a provider is already installed.
            let _ = rustls::crypto::ring::default_provider().install_default();
            builder
                .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .referer(false)
                .connect_timeout(CONNECT_LIMIT)
                .build()
                .map_err(|error| reason(&error))
        });
        made.as_ref().map_err(|reason| RemoteError::Tls(reason.clone()))
    }
}

/// A request that can be sent more than once.
#[derive(Clone)]
pub(super) struct RegistryRequest {
    method: Method,
    pub(super) url: Url,
    headers: HeaderMap,
    body: RequestBody,
}

#[derive(Clone)]
enum RequestBody {
    Empty,
    Bytes(Bytes),
    Content { open: OpenContent, size: u64 },
}

impl RegistryRequest {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: RequestBody::Empty }
    }

    pub(super) fn get(url: Url) -> Self {
        Self::new(Method::GET, url)
    }

    pub(super) fn head(url: Url) -> Self {
        Self::new(Method::HEAD, url)
    }

    pub(super) fn post_form(url: Url, form: Vec<(String, String)>) -> Self {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        Self::new(Method::POST, url)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
            .bytes(body.into())
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Sets the authorization header for a token service. [`RegistryClient::send`] adds the header for a registry.
    pub(super) fn authorization(self, value: &str) -> Self {
        match HeaderValue::from_str(value) {
            Ok(mut value) => {
                value.set_sensitive(true);
                self.header(AUTHORIZATION, value)
            }
            // Base64 is always a valid header value.
            Err(_) => self,
        }
    }

    pub(super) fn bytes(mut self, body: Bytes) -> Self {
        self.headers.insert(CONTENT_LENGTH, body.len().into());
        self.body = RequestBody::Bytes(body);
        self
    }

    pub(super) fn content(mut self, open: OpenContent, size: u64) -> Self {
        self.headers.insert(CONTENT_LENGTH, size.into());
        self.body = RequestBody::Content { open, size };
        self
    }

    /// Span of this request to `host`. The URL is shown without its query, which may contain a signature.
    fn span(&self, host: &RegistryHost) -> Span {
        tracing::debug_span!(
            "remote_registry",
            registry = host.key,
            method = %self.method,
            url = redacted_url(&self.url),
        )
    }

    /// Reports whether redirects of this request are followed.
    fn follows_redirects(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }
}

/// Failure of one attempt.
struct FailedAttempt {
    error: RemoteError,
    /// Pause that the registry asked for.
    retry_after: Option<Duration>,
    is_retryable: bool,
}

impl From<RemoteError> for FailedAttempt {
    fn from(error: RemoteError) -> Self {
        let again = error.retryable();
        Self { error, retry_after: None, is_retryable: again }
    }
}

impl RegistryClient {
    /// Sends a request to `host`, with retries, authorization and redirects. Any answer without a success status is
    /// an error.
    pub(super) async fn send(
        &self,
        host: &RegistryHost,
        scope: &str,
        call: &RegistryRequest,
    ) -> Result<Response, RemoteError> {
        let sent = self.send_with_retries(|| self.send_authorized(host, scope, call));
        sent.instrument(call.span(host)).await
    }

    /// Sends a request with retries, but without a registry's authorization and without redirects.
    pub(super) async fn send_plain(
        &self,
        host: &RegistryHost,
        call: &RegistryRequest,
    ) -> Result<Response, RemoteError> {
        self.send_with_retries(|| async {
            let answer = self.execute(host, call, &call.url, None).await?;
            if answer.status().is_redirection() {
                let reason = "redirects of a token service are not followed";
                return Err(redirect_error(host, &answer, reason).into());
            }
            require_success(answer, self.retry.stall).await
        })
        .instrument(call.span(host))
        .await
    }

    async fn send_with_retries<F: Future<Output = Result<Response, FailedAttempt>>>(
        &self,
        once: impl Fn() -> F,
    ) -> Result<Response, RemoteError> {
        let mut attempt = 1;
        loop {
            let failed = match once().await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            if attempt >= self.retry.attempts || !failed.is_retryable {
                return Err(failed.error);
            }
            let pause = self.retry.pause(attempt, failed.retry_after);
            tracing::debug!(error = %failed.error, attempt, ?pause, "registry request failed; retrying");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    async fn send_authorized(
        &self,
        host: &RegistryHost,
        scope: &str,
        call: &RegistryRequest,
    ) -> Result<Response, FailedAttempt> {
        let mut url = call.url.clone();
        let mut authorized = false;
        let mut redirects = 0;
        loop {
            let own = host.has_same_origin(&url);
            let header = if own { self.tokens.get(host, scope) } else { None };
            let answer = self.execute(host, call, &url, header).await?;
            let status = answer.status();
            if status == StatusCode::UNAUTHORIZED && own && !authorized {
                // Authorization is tried once: a new token that is refused does not give access.
                authorized = true;
                self.tokens.remove(host, scope);
                let challenge = AuthChallenge::of(answer.headers());
                // Requests to a token service have their own retries.
                let made = self.authorize(host, &url, scope, challenge).await;
                let made =
                    made.map_err(|error| FailedAttempt { error, retry_after: None, is_retryable: false })?;
                if made.is_some() {
                    continue;
                }
            }
            if is_redirect(status) && call.follows_redirects() {
                redirects += 1;
                url = redirect_target(host, &url, &answer, redirects)?;
                continue;
            }
            return require_success(answer, self.retry.stall).await;
        }
    }

    async fn execute(
        &self,
        host: &RegistryHost,
        call: &RegistryRequest,
        url: &Url,
        own: Option<HeaderValue>,
    ) -> Result<Response, RemoteError> {
        let mut headers = call.headers.clone();
        if let Some(own) = own {
            headers.insert(AUTHORIZATION, own);
        }
        let sent = Arc::new(AtomicU64::new(0));
        let client = self.transport.client(host, url)?;
        let mut request = client.request(call.method.clone(), url.clone()).headers(headers);
        match &call.body {
            RequestBody::Empty => {}
            RequestBody::Bytes(bytes) => request = request.body(bytes.clone()),
            RequestBody::Content { open, size } => {
                request = request.body(upload(open, *size, Arc::clone(&sent))?);
            }
        }
        let answer = request.send();
        tokio::pin!(answer);
        let stall = self.retry.stall;
        loop {
            let before = sent.load(Ordering::Relaxed);
            match tokio::time::timeout(stall, &mut answer).await {
                Ok(answer) => return answer.map_err(|error| unreachable(host, url, &error)),
                // An upload that still progresses has not stalled.
                Err(_) if sent.load(Ordering::Relaxed) > before => {}
                Err(_) => {
                    return Err(RemoteError::TimedOut { url: redacted_url(url), seconds: stall.as_secs() });
                }
            }
        }
    }
}

fn upload(open: &OpenContent, size: u64, sent: Arc<AtomicU64>) -> Result<reqwest::Body, RemoteError> {
    let file = open.open()?;
    let limited = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), size);
    let chunks = tokio_util::io::ReaderStream::with_capacity(limited, UPLOAD_CHUNK);
    Ok(reqwest::Body::wrap_stream(chunks.inspect_ok(move |chunk| {
        sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
    })))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Returns the target of a redirect if it is allowed.
fn redirect_target(
    host: &RegistryHost,
    url: &Url,
    answer: &Response,
    count: usize,
) -> Result<Url, RemoteError> {
    if count > MAX_REDIRECTS {
        return Err(redirect_error(host, answer, "there are too many redirects"));
    }
    let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let Some(next) = location.and_then(|location| url.join(location).ok()) else {
        return Err(redirect_error(host, answer, "the location is not valid"));
    };
    match check_redirect(host, &next) {
        Ok(()) => Ok(next),
        Err(reason) => Err(redirect_error(host, answer, reason)),
    }
}

/// Checks whether a registry may redirect to this URL.
pub(super) fn check_redirect(host: &RegistryHost, next: &Url) -> Result<(), &'static str> {
    match next.scheme() {
        "https" => Ok(()),
        "http" if host.is_plain_http() => Ok(()),
        "http" => Err("it leads from https to plain http"),
        _ => Err("it is neither http nor https"),
    }
}

fn redirect_error(host: &RegistryHost, answer: &Response, reason: &'static str) -> RemoteError {
    let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let to =
        host.base.join(location).map_or_else(|_| "an invalid location".to_owned(), |to| redacted_url(&to));
    RemoteError::Redirect { url: redacted_url(answer.url()), to, reason }
}

async fn require_success(answer: Response, stall: Duration) -> Result<Response, FailedAttempt> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let asked = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let asked = asked.map(Duration::from_secs);
    let error = refusal_error(answer, stall).await;
    Err(FailedAttempt { retry_after: asked, ..FailedAttempt::from(error) })
}

/// Converts an error answer, with the code of the distribution spec if it has one.
async fn refusal_error(answer: Response, stall: Duration) -> RemoteError {
    #[derive(Deserialize)]
    struct ErrorBody {
        errors: Vec<ErrorEntry>,
    }
    #[derive(Deserialize)]
    struct ErrorEntry {
        code: Option<String>,
        message: Option<String>,
    }
    let (url, status) = (redacted_url(answer.url()), answer.status().as_u16());
    let body = answer_bytes(answer, MAX_ERROR_ANSWER, stall).await.unwrap_or_default();
    let first =
        serde_json::from_slice::<ErrorBody>(&body).ok().and_then(|body| body.errors.into_iter().next());
    let text = |text: Option<String>, limit: usize| {
        text.map(|text| text.chars().filter(|c| !c.is_control()).take(limit).collect::<String>())
            .filter(|text| !text.is_empty())
    };
    let (code, message) =
        first.map_or((None, None), |first| (text(first.code, 60), text(first.message, 300)));
    RemoteError::Refused { url, status, code, message }
}

/// Reads a whole answer, up to a limit.
pub(super) async fn answer_bytes(
    mut answer: Response,
    limit: usize,
    stall: Duration,
) -> Result<Vec<u8>, RemoteError> {
    let url = answer.url().clone();
    let mut bytes = Vec::new();
    while let Some(chunk) = next_chunk(&mut answer, &url, stall).await? {
        if bytes.len() + chunk.len() > limit {
            return Err(RemoteError::TooLarge { url: redacted_url(&url), limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

pub(super) async fn answer_json<T: DeserializeOwned>(
    answer: Response,
    limit: usize,
    stall: Duration,
) -> Result<T, RemoteError> {
    let url = redacted_url(answer.url());
    let bytes = answer_bytes(answer, limit, stall).await?;
    serde_json::from_slice(&bytes).map_err(|error| RemoteError::Answer { url, reason: error.to_string() })
}

pub(super) async fn next_chunk(
    answer: &mut Response,
    url: &Url,
    stall: Duration,
) -> Result<Option<Bytes>, RemoteError> {
    match tokio::time::timeout(stall, answer.chunk()).await {
        Ok(chunk) => chunk.map_err(|error| interrupted(url, &error)),
        Err(_) => Err(RemoteError::TimedOut { url: redacted_url(url), seconds: stall.as_secs() }),
    }
}

fn internal_address_error(host: &RegistryHost, url: &Url, refused: &AddressRefused) -> RemoteError {
    let (at, address) = (refused.host.clone(), refused.address);
    if host.has_same_origin(url) {
        RemoteError::InternalRegistry { registry: host.key.clone(), host: at, address }
    } else {
        RemoteError::InternalAddress { url: redacted_url(url), host: at, address }
    }
}

fn unreachable(host: &RegistryHost, url: &Url, error: &reqwest::Error) -> RemoteError {
    if let Some(refused) = refused_address(error) {
        return internal_address_error(host, url, refused);
    }
    interrupted(url, error)
}

fn interrupted(url: &Url, error: &reqwest::Error) -> RemoteError {
    let (url, reason) = (redacted_url(url), reason(error));
    if is_untrusted(error) {
        RemoteError::Untrusted { url, reason }
    } else {
        RemoteError::Unreachable { url, reason }
    }
}

/// Reports whether an error was caused by an untrusted certificate.
fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    // `io::Error::source` does not return the wrapped error itself.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match wrapped {
        Some(wrapped) => is_untrusted(wrapped),
        None => error.source().is_some_and(is_untrusted),
    }
}

/// Returns the innermost causes of an error. The outer ones repeat the URL, which may contain a signature.
fn reason(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        if cause.downcast_ref::<io::Error>().is_some() || cause.source().is_none() {
            causes.push(text);
        }
        next = cause.source();
    }
    causes.dedup();
    if causes.is_empty() {
        let kind = if error.is_body() { "the body was cut off" } else { "the request failed" };
        causes.push(kind.to_owned());
    }
    causes.join(": ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn an_untrusted_certificate_is_distinguished_from_an_unreachable_registry() {
        let transport = HttpTransport::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url: Url = format!("https://{}/v2/", listener.local_addr().unwrap()).parse().unwrap();
        let host = RegistryHost::registry("127.0.0.1".to_owned(), false);
        let client = transport.client(&host, &url).unwrap();
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = Arc::new(config.with_single_cert(vec![own.cert.der().clone()], key.into()).unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut tls = rustls::ServerConnection::new(config).unwrap();
            tls.complete_io(&mut stream).unwrap_err()
        });
        let error = unreachable(&host, &url, &client.get(url.clone()).send().await.unwrap_err());
        assert!(matches!(error, RemoteError::Untrusted { .. }) && !error.retryable(), "{error}");
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
        server.join().unwrap();
        // Nothing listens on that port any more.
        let error = unreachable(&host, &url, &client.get(url.clone()).send().await.unwrap_err());
        assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
    }
}
