//! Handling of one request, from its head to the head of its answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use jiff::Timestamp;
use tokio::time::Instant;

use super::backend::InFlight;
use super::body::{AnswerBody, RequestBody, StreamedAnswer, StreamedAnswerParts};
use super::page::IngressError;
use super::serve::ClientConnection;
use super::table::RouteEntry;
use super::tunnel::UpgradeTunnel;
use super::upgrade::UpgradeProtocols;
use super::upstream::{ConnectFailure, MAX_HEAD, SendFailure, UpstreamConnection};
use super::{Ingress, headers, host, http2_upstream, token, tunnel, upgrade};
use crate::access::running::RunningCall;
use crate::audit::{AuditOutcome, AuditRecord};
use crate::task;

/// Maximum size in bytes of a request body that is buffered so that it can be sent again.
const MAX_REPLAYED_BYTES: u64 = 64 * 1024;
/// Maximum idle time of a kept connection that is used for a request that cannot be sent twice, because
/// instances close idle connections.
const MAX_FRESH_IDLE: Duration = Duration::from_secs(1);
/// Pause between two attempts for a service without an instance; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// Maximum number of attempts for one request on connections that close before it is written.
const MAX_ATTEMPTS: u32 = 4;

/// A request in the form that is sent to an instance.
pub(super) type InstanceRequest = Request<RequestBody>;

/// Failure of one attempt to get an answer.
pub(super) enum AttemptFailure {
    /// The request can be sent again, on a new connection.
    Retry(Box<InstanceRequest>),
    /// The request waits until this or another instance accepts connections.
    Hold(Box<InstanceRequest>, IngressError),
    Fail(IngressError),
}

/// Copy of a request, for sending it again.
pub(super) struct RequestCopy {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Option<Bytes>,
}

impl Ingress {
    /// Answers a request in any case; on failure, with an error page.
    pub(super) async fn answer(
        &self,
        connection: &Arc<ClientConnection>,
        request: Request<Incoming>,
    ) -> Response<AnswerBody> {
        let _in_use = connection.permit.usage().begin();
        let accept = request.headers().get(header::ACCEPT).cloned();
        let logged = tracing::enabled!(tracing::Level::DEBUG).then(|| {
            (request.method().clone(), request.headers().get(header::HOST).cloned(), Instant::now())
        });
        let host = self.trail.as_ref().and_then(|_| host::request_host(&request).ok());
        let response = match self.forward(connection, request).await {
            Ok(response) => response,
            Err(refusal) => {
                if refusal.is_denial() {
                    self.record_denial(connection, host.as_ref(), &refusal);
                }
                tracing::debug!(peer = %connection.client.address, error = ?refusal, "request refused by the ingress");
                refusal.page(accept.as_ref())
            }
        };
        let class = usize::from(response.status().as_u16() / 100);
        if let Some(counter) = self.answers.get(class.wrapping_sub(1)) {
            counter.increment(1);
        }
        if let Some((method, host, start)) = logged {
            tracing::debug!(
                %method, ?host, status = response.status().as_u16(), head = ?start.elapsed(),
                "request answered"
            );
        }
        response
    }

    fn record_denial(
        &self,
        connection: &ClientConnection,
        host: Option<&HeaderValue>,
        refusal: &IngressError,
    ) {
        let Some(trail) = &self.trail else { return };
        trail.try_record(AuditRecord {
            at: Timestamp::now(),
            caller: String::new(),
            action: "ingress".to_owned(),
            object: host
                .map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned())
                .unwrap_or_default(),
            outcome: AuditOutcome::Denied,
            detail: refusal.message(),
            source: connection.client.address.to_string(),
            more: 0,
        });
    }

    async fn forward(
        &self,
        connection: &Arc<ClientConnection>,
        mut request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, IngressError> {
        if request.method() == Method::CONNECT {
            return Err(IngressError::ConnectMethod);
        }
        let limit = self.options.max_head_bytes;
        if head_size(&request) > limit {
            return Err(IngressError::LargeRequestHead(limit));
        }
        let host = host::request_host(&request)?;
        let name = host::route_name(&host)?;
        let version = self.version();
        let entry = self.find(&name).ok_or_else(|| IngressError::UnknownHost(name.clone().into_owned()))?;
        let token = entry.private.then(|| token::admit(request.headers_mut(), &self.access));
        let token = token.transpose().map_err(IngressError::Token)?;
        connection.permit.usage().mark_admitted();
        // Must be checked before the cookies of the browser are removed.
        let with_cookies = request.headers().contains_key(header::COOKIE);
        token::strip(&mut request, &self.access)?;
        let has_body = !request.body().is_end_stream();
        let upgrade = headers::to_instance(&mut request, &connection.client, host.clone(), has_body)?;
        if with_cookies
            && upgrade.as_ref().is_some_and(|protocols| protocols.has(b"websocket"))
            && upgrade::is_foreign_origin(request.headers(), &host, connection.client.trusted)
        {
            return Err(IngressError::ForeignOrigin);
        }
        let mut switching = upgrade.map(|protocols| RequestedUpgrade {
            protocols,
            client: hyper::upgrade::on(&mut request),
            running: token.map(|token| self.access.track_call(token)),
        });
        let outgoing = self.instance_request(request, has_body).await?;
        let admitted = entry.private;
        self.send(connection, &name, (version, entry), admitted, outgoing, &mut switching).await
    }

    /// Converts a request for an instance. The body is streamed, or buffered if it is small and may have to be
    /// sent again.
    async fn instance_request(
        &self,
        request: Request<Incoming>,
        has_body: bool,
    ) -> Result<Box<InstanceRequest>, IngressError> {
        let (mut head, body) = request.into_parts();
        head.version = Version::HTTP_11;
        head.extensions.clear();
        if head.uri.authority().is_some() {
            head.uri = head.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
        }
        let small = || body.size_hint().exact().is_some_and(|length| length <= MAX_REPLAYED_BYTES);
        let body = if !has_body {
            RequestBody::None
        } else if is_idempotent(&head.method, &head.headers) && small() {
            let whole = tokio::time::timeout(self.options.first_byte_timeout, body.collect()).await;
            let whole = whole.map_err(|_| IngressError::SlowBody)?.map_err(|_| IngressError::BrokenBody)?;
            RequestBody::Whole(Some(whole.to_bytes()))
        } else {
            RequestBody::Streamed { body, moved: Arc::default(), access: Arc::clone(&self.access) }
        };
        Ok(Box::new(Request::from_parts(head, body)))
    }

    async fn send(
        &self,
        connection: &Arc<ClientConnection>,
        name: &str,
        (mut version, mut entry): (u64, Arc<RouteEntry>),
        admitted: bool,
        mut request: Box<InstanceRequest>,
        switching: &mut Option<RequestedUpgrade>,
    ) -> Result<Response<AnswerBody>, IngressError> {
        let mut held_since = None;
        let mut pause = FIRST_PAUSE;
        let mut attempt = 0;
        loop {
            let unanswered =
                match entry.backend.as_ref().and_then(|backend| backend.enter(connection.seat.worker)) {
                    Some(entered) => {
                        attempt += 1;
                        self.attempt(connection, &entry, entered, request, attempt, switching).await
                    }
                    None => {
                        Err(AttemptFailure::Hold(request, IngressError::NoInstance(entry.service.clone())))
                    }
                };
            match unanswered {
                Ok(response) => return Ok(response),
                Err(AttemptFailure::Fail(refusal)) => return Err(refusal),
                Err(AttemptFailure::Retry(again)) => request = again,
                Err(AttemptFailure::Hold(held, refusal)) => {
                    let since = *held_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.options.hold_timeout {
                        return Err(refusal);
                    }
                    request = held;
                    self.wait_for_change(version, pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            version = self.version();
            entry = self.find(name).ok_or_else(|| IngressError::UnknownHost(name.to_owned()))?;
            if entry.private && !admitted {
                return Err(IngressError::NoInstance(entry.service.clone()));
            }
        }
    }

    /// Waits until the table is newer than `version`, at most for `pause`.
    async fn wait_for_change(&self, version: u64, pause: Duration) {
        let changed = self.changed.notified();
        if self.version() == version {
            // The caller reads the table again in both cases.
            let _ = tokio::time::timeout(pause, changed).await;
        }
    }

    async fn attempt(
        &self,
        connection: &Arc<ClientConnection>,
        entry: &RouteEntry,
        entered: InFlight,
        request: Box<InstanceRequest>,
        attempt: u32,
        switching: &mut Option<RequestedUpgrade>,
    ) -> Result<Response<AnswerBody>, AttemptFailure> {
        if entry.http2 {
            let response = http2_upstream::attempt(&self.options, entry, &entered, request, attempt).await?;
            return self.streamed(connection, entry, response, (None, entered));
        }
        let service = &entry.service;
        let replayed = can_be_replayed(&request);
        let idle = if replayed {
            self.options.kept_idle_timeout
        } else {
            self.options.kept_idle_timeout.min(MAX_FRESH_IDLE)
        };
        let kept = if attempt == 1 { entered.take_kept(idle) } else { None };
        let (mut upstream, copy) = match kept {
            Some(upstream) => (upstream, replayed.then(|| RequestCopy::of(&request))),
            None => {
                match UpstreamConnection::connect(entered.backend(), self.options.connect_timeout).await {
                    Ok(upstream) => (upstream, None),
                    Err(failure) => return Err(connect_failure(entry, &entered, request, &failure)),
                }
            }
        };
        let moved = request.body().moved();
        match upstream.send(*request, self.options.first_byte_timeout, moved.as_deref()).await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let not_asked = || AttemptFailure::Fail(IngressError::NoAnswer(service.clone()));
                let RequestedUpgrade { protocols, client, running } =
                    switching.take().ok_or_else(not_asked)?;
                let chosen = protocols.chosen(response.headers()).ok_or_else(not_asked)?;
                let websocket = chosen.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket");
                Ok(self.switch(connection, response, (websocket, client, running), upstream, entered))
            }
            Ok(response) => self.streamed(connection, entry, response, (Some(upstream), entered)),
            Err(failure) => Err(attempt_failure(entry, failure, copy, attempt)),
        }
    }

    /// Returns an instance's answer with its body as it comes.
    fn streamed(
        &self,
        connection: &Arc<ClientConnection>,
        entry: &RouteEntry,
        mut response: Response<Incoming>,
        (upstream, entered): (Option<Box<UpstreamConnection>>, InFlight),
    ) -> Result<Response<AnswerBody>, AttemptFailure> {
        if headers::size(response.headers()) > MAX_HEAD {
            return Err(AttemptFailure::Fail(IngressError::LargeAnswerHead(entry.service.clone(), MAX_HEAD)));
        }
        headers::to_client(response.headers_mut(), false);
        *response.version_mut() = Version::HTTP_11;
        let ends = StreamedAnswerParts {
            upstream,
            entered,
            max_kept: self.options.max_kept_connections,
            in_use: connection.permit.usage().begin(),
        };
        Ok(response.map(|body| AnswerBody::Streamed(StreamedAnswer::new(body, ends))))
    }

    /// Forwards an instance's 101 response, and starts the tunnel that connects both ends once the client has
    /// received it.
    fn switch(
        &self,
        connection: &Arc<ClientConnection>,
        mut response: Response<Incoming>,
        (websocket, client, running): (bool, OnUpgrade, Option<RunningCall>),
        upstream: Box<UpstreamConnection>,
        entered: InFlight,
    ) -> Response<AnswerBody> {
        headers::to_client(response.headers_mut(), true);
        let tunnel = UpgradeTunnel {
            entered,
            _in_use: connection.permit.usage().begin(),
            connection: Arc::clone(connection),
            websocket,
            running,
            idle: self.options.upgrade_idle_timeout,
        };
        task::spawn("tunnel", async move {
            if let Err(error) = tunnel::run(tunnel, client, upstream).await {
                tracing::debug!(%error, "upgraded connection failed");
            }
        });
        response.map(|_| AnswerBody::Page(None))
    }
}

/// Returns what becomes of a request whose instance could not be connected to.
pub(super) fn connect_failure(
    entry: &RouteEntry,
    entered: &InFlight,
    request: Box<InstanceRequest>,
    failure: &ConnectFailure,
) -> AttemptFailure {
    let service = &entry.service;
    tracing::debug!(
        service.name = %service, backend = %entered.backend().address, error = %failure,
        "failed to connect to an instance"
    );
    match failure {
        ConnectFailure::Refused(_) => {
            AttemptFailure::Hold(request, IngressError::Unreachable(service.clone()))
        }
        ConnectFailure::TimedOut => AttemptFailure::Hold(request, IngressError::TimedOut(service.clone())),
        ConnectFailure::Other(_) => AttemptFailure::Fail(IngressError::Unreachable(service.clone())),
    }
}

/// Returns what becomes of a request that an instance did not answer. `copy` is there if it can be sent again.
pub(super) fn attempt_failure(
    entry: &RouteEntry,
    failure: SendFailure,
    copy: Option<RequestCopy>,
    attempt: u32,
) -> AttemptFailure {
    let service = entry.service.clone();
    AttemptFailure::Fail(match failure {
        SendFailure::NotSent(request) if attempt < MAX_ATTEMPTS => return AttemptFailure::Retry(request),
        SendFailure::NotSent(_) => IngressError::NoAnswer(service),
        SendFailure::NoAnswer(error) => {
            tracing::debug!(
                service.name = %service, %error, again = copy.is_some(),
                "instance closed the connection without an answer"
            );
            match copy {
                Some(copy) => return AttemptFailure::Retry(Box::new(copy.into())),
                None => IngressError::NoAnswer(service),
            }
        }
        SendFailure::LargeHead => IngressError::LargeAnswerHead(service, MAX_HEAD),
        SendFailure::Broken(error) if error.is_user() => IngressError::BrokenBody,
        SendFailure::Broken(error) => {
            tracing::debug!(service.name = %service, %error, "instance sent an invalid answer");
            IngressError::NoAnswer(service)
        }
        SendFailure::TimedOut => IngressError::TimedOut(service),
    })
}

/// Returns the size of a request's head in bytes: its method, its target and its header fields.
fn head_size(request: &Request<Incoming>) -> usize {
    let uri = request.uri();
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len())
        + uri.authority().map_or(0, |authority| authority.as_str().len());
    request.method().as_str().len() + target + headers::size(request.headers())
}

/// A client's request to switch protocols.
struct RequestedUpgrade {
    protocols: UpgradeProtocols,
    client: OnUpgrade,
    /// The registered call on private routes: the connection ends when the token becomes invalid.
    running: Option<RunningCall>,
}

/// Reports whether sending the request twice has the same effect as sending it once (RFC 9110, section 9.2.2).
fn is_idempotent(method: &Method, headers: &HeaderMap) -> bool {
    method.is_idempotent() || headers.contains_key("idempotency-key")
}

pub(super) fn can_be_replayed(request: &InstanceRequest) -> bool {
    !matches!(request.body(), RequestBody::Streamed { .. })
        && is_idempotent(request.method(), request.headers())
}

impl RequestCopy {
    pub(super) fn of(request: &InstanceRequest) -> Self {
        let body = match request.body() {
            RequestBody::Whole(bytes) => bytes.clone(),
            RequestBody::None | RequestBody::Streamed { .. } => None,
        };
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
            body,
        }
    }
}

impl From<RequestCopy> for InstanceRequest {
    fn from(copy: RequestCopy) -> Self {
        let body = match copy.body {
            Some(bytes) => RequestBody::Whole(Some(bytes)),
            None => RequestBody::None,
        };
        let mut request = Request::new(body);
        *request.method_mut() = copy.method;
        *request.uri_mut() = copy.uri;
        *request.headers_mut() = copy.headers;
        request
    }
}
