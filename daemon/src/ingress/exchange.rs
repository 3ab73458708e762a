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
use super::body::{AnswerBody, RequestBody, StreamEnds, Streamed};
use super::page::Refusal;
use super::serve::Connection;
use super::table::Entry;
use super::tunnel::Tunnel;
use super::upgrade::Protocols;
use super::upstream::{ConnectFailure, SendFailure, Upstream};
use super::{Ingress, headers, host, token, tunnel, upgrade};
use crate::access::running::RunningCall;
use crate::audit::{AuditOutcome, AuditRecord};
use crate::task;

/// Maximum size in bytes of a request body that is buffered so that it can be sent again.
const REPLAYED: u64 = 64 * 1024;
/// Maximum idle time of a kept connection that is used for a request that cannot be sent twice, because
/// instances close idle connections.
const FRESH: Duration = Duration::from_secs(1);
/// Pause between two attempts for a service without an instance; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// Maximum number of attempts for one request on connections that close before it is written.
const ATTEMPTS: u32 = 4;

/// A request in the form that is sent to an instance.
type Outgoing = Request<RequestBody>;

/// Failure of one attempt to get an answer.
enum Unanswered {
    /// The request can be sent again, on a new connection.
    Again(Box<Outgoing>),
    /// The request waits until this or another instance accepts connections.
    Held(Box<Outgoing>, Refusal),
    Over(Refusal),
}

/// Copy of a request, for sending it again.
struct Copy {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Option<Bytes>,
}

impl Ingress {
    /// Answers a request in any case; on failure, with an error page.
    pub(super) async fn answer(
        &self,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<AnswerBody> {
        let _in_use = connection.held.used().begin();
        let accept = request.headers().get(header::ACCEPT).cloned();
        let told = tracing::enabled!(tracing::Level::DEBUG).then(|| {
            (request.method().clone(), request.headers().get(header::HOST).cloned(), Instant::now())
        });
        let host = self.trail.as_ref().and_then(|_| host::written(&request).ok());
        let response = match self.forward(connection, request).await {
            Ok(response) => response,
            Err(refusal) => {
                if refusal.denies() {
                    self.record_denial(connection, host.as_ref(), &refusal);
                }
                tracing::debug!(client = %connection.client.address, ?refusal, "request refused by the ingress");
                refusal.page(accept.as_ref())
            }
        };
        let class = usize::from(response.status().as_u16() / 100);
        if let Some(counter) = self.answers.get(class.wrapping_sub(1)) {
            counter.increment(1);
        }
        if let Some((method, host, start)) = told {
            tracing::debug!(
                %method, ?host, status = response.status().as_u16(), head = ?start.elapsed(),
                "request answered"
            );
        }
        response
    }

    fn record_denial(&self, connection: &Connection, host: Option<&HeaderValue>, refusal: &Refusal) {
        let Some(trail) = &self.trail else { return };
        trail.record_now(AuditRecord {
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
        connection: &Arc<Connection>,
        mut request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, Refusal> {
        if request.method() == Method::CONNECT {
            return Err(Refusal::Method);
        }
        let host = host::written(&request)?;
        let name = host::name(&host)?;
        let version = self.version();
        let entry = self.find(&name).ok_or_else(|| Refusal::UnknownHost(name.clone().into_owned()))?;
        let token = entry.private.then(|| token::admit(request.headers_mut(), &self.access));
        let token = token.transpose().map_err(Refusal::Token)?;
        connection.held.used().is_known();
        // Must be checked before the cookies of the browser are removed.
        let with_cookies = request.headers().contains_key(header::COOKIE);
        token::strip(&mut request, &self.access)?;
        let has_body = !request.body().is_end_stream();
        let upgrade = headers::to_instance(&mut request, &connection.client, host.clone(), has_body)?;
        if with_cookies
            && upgrade.as_ref().is_some_and(|protocols| protocols.has(b"websocket"))
            && upgrade::is_foreign(request.headers(), &host, connection.client.trusted)
        {
            return Err(Refusal::ForeignOrigin);
        }
        let mut switching = upgrade.map(|protocols| Switching {
            protocols,
            client: hyper::upgrade::on(&mut request),
            running: token.map(|token| self.access.begin(token)),
        });
        let outgoing = self.outgoing(request, has_body).await?;
        let admitted = entry.private;
        self.send(connection, &name, (version, entry), admitted, outgoing, &mut switching).await
    }

    /// Converts a request for an instance. The body is streamed, or buffered if it is small and may have to be
    /// sent again.
    async fn outgoing(&self, request: Request<Incoming>, has_body: bool) -> Result<Box<Outgoing>, Refusal> {
        let (mut head, body) = request.into_parts();
        head.version = Version::HTTP_11;
        head.extensions.clear();
        if head.uri.authority().is_some() {
            head.uri = head.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
        }
        let small = || body.size_hint().exact().is_some_and(|length| length <= REPLAYED);
        let body = if !has_body {
            RequestBody::None
        } else if is_idempotent(&head.method, &head.headers) && small() {
            let whole = tokio::time::timeout(self.options.first_byte, body.collect()).await;
            let whole = whole.map_err(|_| Refusal::SlowBody)?.map_err(|_| Refusal::BrokenBody)?;
            RequestBody::Whole(Some(whole.to_bytes()))
        } else {
            RequestBody::Streamed { body, moved: Arc::default(), access: Arc::clone(&self.access) }
        };
        Ok(Box::new(Request::from_parts(head, body)))
    }

    async fn send(
        &self,
        connection: &Arc<Connection>,
        name: &str,
        (mut version, mut entry): (u64, Arc<Entry>),
        admitted: bool,
        mut request: Box<Outgoing>,
        switching: &mut Option<Switching>,
    ) -> Result<Response<AnswerBody>, Refusal> {
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
                    None => Err(Unanswered::Held(request, Refusal::NoInstance(entry.service.clone()))),
                };
            match unanswered {
                Ok(response) => return Ok(response),
                Err(Unanswered::Over(refusal)) => return Err(refusal),
                Err(Unanswered::Again(again)) => request = again,
                Err(Unanswered::Held(held, refusal)) => {
                    let since = *held_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.options.hold {
                        return Err(refusal);
                    }
                    request = held;
                    self.wait_for_change(version, pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            version = self.version();
            entry = self.find(name).ok_or_else(|| Refusal::UnknownHost(name.to_owned()))?;
            if entry.private && !admitted {
                return Err(Refusal::NoInstance(entry.service.clone()));
            }
        }
    }

    /// Waits until the table is newer than `version`, at most for `pause`.
    async fn wait_for_change(&self, version: u64, pause: Duration) {
        let told = self.changed.notified();
        if self.version() == version {
            // The caller reads the table again in both cases.
            let _ = tokio::time::timeout(pause, told).await;
        }
    }

    async fn attempt(
        &self,
        connection: &Arc<Connection>,
        entry: &Entry,
        entered: InFlight,
        request: Box<Outgoing>,
        attempt: u32,
        switching: &mut Option<Switching>,
    ) -> Result<Response<AnswerBody>, Unanswered> {
        let service = &entry.service;
        let replayed = replayed(&request);
        let idle = if replayed { self.options.kept_idle } else { self.options.kept_idle.min(FRESH) };
        let kept = if attempt == 1 { entered.take_kept(idle) } else { None };
        let (mut upstream, copy) = match kept {
            Some(upstream) => (upstream, replayed.then(|| Copy::of(&request))),
            None => match Upstream::connect(entered.backend(), self.options.connect).await {
                Ok(upstream) => (upstream, None),
                Err(failure) => {
                    tracing::debug!(
                        service.name = %service, backend = %entered.backend().address, %failure,
                        "failed to connect to an instance"
                    );
                    return Err(match failure {
                        ConnectFailure::Refused(_) => {
                            Unanswered::Held(request, Refusal::Unreachable(service.clone()))
                        }
                        ConnectFailure::TimedOut => {
                            Unanswered::Held(request, Refusal::TimedOut(service.clone()))
                        }
                        ConnectFailure::Other(_) => Unanswered::Over(Refusal::Unreachable(service.clone())),
                    });
                }
            },
        };
        let moved = match request.body() {
            RequestBody::Streamed { moved, .. } => Some(Arc::clone(moved)),
            RequestBody::None | RequestBody::Whole(_) => None,
        };
        match upstream.send(*request, self.options.first_byte, moved.as_deref()).await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let not_asked = || Unanswered::Over(Refusal::NoAnswer(service.clone()));
                let Switching { protocols, client, running } = switching.take().ok_or_else(not_asked)?;
                let chosen = protocols.chosen(response.headers()).ok_or_else(not_asked)?;
                let websocket = chosen.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket");
                Ok(self.switch(connection, response, (websocket, client, running), upstream, entered))
            }
            Ok(mut response) => {
                headers::to_client(response.headers_mut(), false);
                *response.version_mut() = Version::HTTP_11;
                let ends = StreamEnds {
                    upstream,
                    entered,
                    room: self.options.kept,
                    in_use: connection.held.used().begin(),
                };
                Ok(response.map(|body| AnswerBody::Streamed(Streamed::new(body, ends))))
            }
            Err(SendFailure::NotSent(request)) if attempt < ATTEMPTS => Err(Unanswered::Again(request)),
            Err(SendFailure::NoAnswer(error)) => {
                tracing::debug!(
                    service.name = %service, %error, again = copy.is_some(),
                    "instance closed the connection without an answer"
                );
                Err(match copy {
                    Some(copy) => Unanswered::Again(Box::new(copy.into())),
                    None => Unanswered::Over(Refusal::NoAnswer(service.clone())),
                })
            }
            Err(SendFailure::NotSent(_)) => Err(Unanswered::Over(Refusal::NoAnswer(service.clone()))),
            Err(SendFailure::Broken(error)) if error.is_user() => Err(Unanswered::Over(Refusal::BrokenBody)),
            Err(SendFailure::Broken(error)) => {
                tracing::debug!(service.name = %service, %error, "instance sent an invalid answer");
                Err(Unanswered::Over(Refusal::NoAnswer(service.clone())))
            }
            Err(SendFailure::TimedOut) => Err(Unanswered::Over(Refusal::TimedOut(service.clone()))),
        }
    }

    /// Forwards an instance's 101 response, and starts the tunnel that connects both ends once the client has
    /// received it.
    fn switch(
        &self,
        connection: &Arc<Connection>,
        mut response: Response<Incoming>,
        (websocket, client, running): (bool, OnUpgrade, Option<RunningCall>),
        upstream: Box<Upstream>,
        entered: InFlight,
    ) -> Response<AnswerBody> {
        headers::to_client(response.headers_mut(), true);
        let tunnel = Tunnel {
            entered,
            _in_use: connection.held.used().begin(),
            connection: Arc::clone(connection),
            websocket,
            running,
            idle: self.options.upgrade_idle,
        };
        task::spawn("tunnel", async move {
            if let Err(error) = tunnel::run(tunnel, client, upstream).await {
                tracing::debug!(%error, "upgraded connection failed");
            }
        });
        response.map(|_| AnswerBody::Page(None))
    }
}

/// A client's request to switch protocols.
struct Switching {
    protocols: Protocols,
    client: OnUpgrade,
    /// The registered call on private routes: the connection ends when the token becomes invalid.
    running: Option<RunningCall>,
}

/// Reports whether sending the request twice has the same effect as sending it once (RFC 9110, section 9.2.2).
fn is_idempotent(method: &Method, headers: &HeaderMap) -> bool {
    method.is_idempotent() || headers.contains_key("idempotency-key")
}

fn replayed(request: &Outgoing) -> bool {
    !matches!(request.body(), RequestBody::Streamed { .. })
        && is_idempotent(request.method(), request.headers())
}

impl Copy {
    fn of(request: &Outgoing) -> Self {
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

impl From<Copy> for Outgoing {
    fn from(copy: Copy) -> Self {
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
