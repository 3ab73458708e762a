//! Authentication of callers: by a participant token on TCP, by the peer's user id on the unix socket.
//!
//! A [`Caller`] in a request's extensions proves that the request was authenticated here.

use std::sync::Arc;

use axum::extract::connect_info::ConnectInfo;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};

use crate::access::policy::{CallerAction, GrpcMethod, decide};
use crate::access::running::RunningCall;
use crate::access::{AccessError, TokenAuthority};
use crate::api::audit::AuditedCall;
use crate::api::error::ApiError;
use crate::api::http::is_grpc;
use crate::api::revocable_body::{RevocationForm, revocable_answer, revocable_request};
use crate::api::serve::PeerIdentity;
use crate::audit::AuditTrail;
use crate::connections::ConnectionUse;
use crate::model::access::Caller;
use crate::registry;

/// Header that says where a client has its token from. A token from the environment may have been set for
/// another purpose.
const TOKEN_ORIGIN: HeaderName = HeaderName::from_static("hearth-token-from");
const ENVIRONMENT: &str = "environment";
/// Methods that invalidate tokens. They run without a registered call, so that a caller that invalidates its
/// own token still receives the answer.
const CHANGES_TOKENS: [&str; 2] = ["/hearth.v1.System/RevokeTokens", "/hearth.v1.System/RotateTokenSecret"];

/// State of the authentication layer.
#[derive(Clone)]
pub struct CallerAuthenticator {
    access: Arc<TokenAuthority>,
    trail: AuditTrail,
}

impl CallerAuthenticator {
    pub fn new(access: Arc<TokenAuthority>, trail: AuditTrail) -> Self {
        metrics::describe_counter!(
            "hearth_requests_refused_total",
            "Requests that were refused because their token was missing or invalid."
        );
        Self { access, trail }
    }
}

/// Authenticates a request and passes it on with its [`Caller`], or answers with an error in the protocol of
/// the request: gRPC or `/v2/`.
pub async fn require_caller(
    State(gate): State<CallerAuthenticator>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    request: Request,
    next: Next,
) -> Response {
    let call = AuditedCall::of(request.method(), request.uri().path(), peer);
    match identify(&gate.access, peer, request.headers()) {
        Ok((caller, token)) => {
            let name = caller.name.clone();
            let running = token
                .filter(|_| !CHANGES_TOKENS.contains(&request.uri().path()))
                .map(|token| gate.access.track_call(token));
            let answer = async {
                match running {
                    Some(running) => admit_while_valid(running, caller, request, next).await,
                    None => admit(caller, request, next).await,
                }
            };
            call.recorded(&gate.trail, &name, answer).await
        }
        Err(error) => {
            metrics::counter!("hearth_requests_refused_total").increment(1);
            tracing::debug!(?peer, action = call.action(), %error, "request refused");
            let refused = refuse(is_grpc(request.headers()), error);
            call.recorded(&gate.trail, "", std::future::ready(refused)).await
        }
    }
}

/// Handles a request as [`admit`] does, and ends the call with its request and response bodies when the caller's token
/// becomes invalid.
async fn admit_while_valid(running: RunningCall, caller: Caller, request: Request, next: Next) -> Response {
    let (running, grpc) = (Arc::new(running), is_grpc(request.headers()));
    let request = request.map(|body| revocable_request(body, &running));
    let answer = tokio::select! {
        biased;
        answer = admit(caller, request, next) => answer,
        error = running.ended() => return refuse(grpc, error),
    };
    let form = if grpc { RevocationForm::Trailers } else { RevocationForm::Error };
    answer.map(|body| revocable_answer(body, running, form))
}

fn refuse(grpc: bool, error: AccessError) -> Response {
    if !grpc && error == AccessError::Missing {
        return registry::unauthorized();
    }
    let error = ApiError::from(error);
    if grpc {
        tonic::Status::from(error).into_http::<axum::body::Body>().into_response()
    } else {
        registry::invalid_token(&error.detail().code, &error.detail().message)
    }
}

/// Checks that the caller may call a gRPC method, and passes the request on with its [`Caller`]. The rules for
/// `/v2/` depend on paths and methods, so the registry checks those.
pub(super) async fn admit(caller: Caller, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if !is_registry(path) {
        let Some(method) = GrpcMethod::find(path) else {
            return tonic::Status::unimplemented("this daemon has no such method").into_http();
        };
        if let Err(denied) = decide(&caller, &CallerAction::CallMethod(method)) {
            return tonic::Status::from(ApiError::from(denied)).into_http();
        }
    }
    if let Some(connection) = request.extensions().get::<ConnectionUse>() {
        connection.mark_admitted();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn is_registry(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/")
}

/// Returns the caller, with the token that identifies it, if any.
fn identify(
    access: &TokenAuthority,
    peer: PeerIdentity,
    headers: &HeaderMap,
) -> Result<(Caller, Option<String>), AccessError> {
    let verify = |token: String| access.verify(&token).map(|caller| (caller, Some(token)));
    let verified = token(headers).and_then(|given| given.map(verify).transpose());
    match verified {
        Ok(Some(identified)) => Ok(identified),
        Ok(None) => peer_caller(access, peer).map(|caller| (caller, None)).ok_or(AccessError::Missing),
        // A token in the request takes precedence, on the socket too, unless it was only found in the client's
        // environment.
        Err(error) => match peer_caller(access, peer) {
            Some(caller) if headers.get(TOKEN_ORIGIN).is_some_and(|from| from == ENVIRONMENT) => {
                tracing::info!(
                    %error,
                    "ignored an invalid token from the client's environment; using the rights of the unix socket peer"
                );
                Ok((caller, None))
            }
            _ => Err(error),
        },
    }
}

/// Returns the caller for the peer's user id: root or the daemon's own user, on the unix socket.
fn peer_caller(access: &TokenAuthority, peer: PeerIdentity) -> Option<Caller> {
    match peer {
        PeerIdentity::Unix { uid } if uid == 0 || uid == rustix::process::geteuid().as_raw() => {
            Some(access.local_caller(uid))
        }
        PeerIdentity::Unix { .. } | PeerIdentity::Tcp(_) => None,
    }
}

/// Reads the token from `Bearer TOKEN`, or from the password of `Basic` with any user name.
fn token(headers: &HeaderMap) -> Result<Option<String>, AccessError> {
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Ok(None);
    };
    let value = value.to_str().map_err(|_| AccessError::Invalid("the header is not text"))?;
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(rest.to_owned()));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let password = decoded.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
        return match password {
            Some(password) => Ok(Some(password.to_owned())),
            None => Err(AccessError::Invalid("the Basic header cannot be read")),
        };
    }
    Err(AccessError::Invalid("the header is neither Bearer nor Basic"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_token_comes_as_bearer_or_as_a_basic_password() {
        assert_eq!(token(&HeaderMap::new()), Ok(None));
        assert_eq!(token(&headers("Bearer abc")), Ok(Some("abc".to_owned())));
        assert_eq!(token(&headers("bearer  abc ")), Ok(Some("abc".to_owned())));
        let basic = format!("Basic {}", STANDARD.encode("anyone:a:b"));
        assert_eq!(token(&headers(&basic)), Ok(Some("a:b".to_owned())));
        for bad in ["Digest x", "Basic !!!", &format!("Basic {}", STANDARD.encode("no colon"))] {
            assert!(matches!(token(&headers(bad)), Err(AccessError::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn the_socket_trusts_root_and_its_own_user_and_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let access = TokenAuthority::open("r", &directory.path().join("secret")).unwrap();
        let own = rustix::process::geteuid().as_raw();
        let none = HeaderMap::new();
        for uid in [0, own] {
            assert!(identify(&access, PeerIdentity::Unix { uid }, &none).unwrap().0.scope.admin.is_some());
        }
        assert_eq!(
            identify(&access, PeerIdentity::Unix { uid: own + 1 }, &none).err(),
            Some(AccessError::Missing)
        );
        let tcp = PeerIdentity::Tcp(([127, 0, 0, 1], 1).into());
        assert_eq!(identify(&access, tcp, &none).err(), Some(AccessError::Missing));
        // An invalid token is an error on the socket too, unless it was only found in the environment.
        let bad = headers("Bearer x");
        assert!(identify(&access, PeerIdentity::Unix { uid: 0 }, &bad).is_err());
        let mut left_over = bad;
        left_over.insert(TOKEN_ORIGIN, http::HeaderValue::from_static(ENVIRONMENT));
        assert_eq!(identify(&access, PeerIdentity::Unix { uid: 0 }, &left_over).unwrap().0.name, "uid:0");
        assert!(identify(&access, PeerIdentity::Unix { uid: own + 1 }, &left_over).is_err());
        assert!(identify(&access, tcp, &left_over).is_err());
        // A valid one is used, whatever its origin.
        let (good, _) = access.mint("ann", "{}", std::time::Duration::from_secs(60)).unwrap();
        left_over.insert(AUTHORIZATION, format!("Bearer {good}").parse().unwrap());
        assert_eq!(identify(&access, PeerIdentity::Unix { uid: 0 }, &left_over).unwrap().0.name, "ann");
    }
}
