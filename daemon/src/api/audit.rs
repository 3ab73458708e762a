//! Records calls of gRPC and `/v2/` in the audit trail.
//!
//! The layer that authenticates the caller sees the method and the outcome. The objects of the call are
//! reported by the handler ([`record_object`]), because only it parses the request.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, Method as Verb, StatusCode};
use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tonic::{Code, Status};

use crate::access::policy::{AccessDenied, GrpcMethod};
use crate::api::serve::PeerIdentity;
use crate::audit::{AuditOutcome, AuditRecord, AuditTrail};
use crate::registry;

/// Maximum length in bytes of the recorded objects of one call.
const MAX_OBJECTS: usize = 300;

tokio::task_local! {
    static CALL_NOTES: SharedCallNotes;
}

/// Notes of one call, shared by the handler and the code that records the call.
#[derive(Clone, Default)]
struct SharedCallNotes(Arc<Mutex<CallNotes>>);

impl SharedCallNotes {
    fn lock(&self) -> MutexGuard<'_, CallNotes> {
        // A panic while the lock is held leaves the notes consistent: every change is complete by itself.
        self.0.lock()
    }
}

#[derive(Default)]
struct CallNotes {
    objects: String,
    /// Denial that the answer hides.
    hidden: Option<String>,
}

/// Reports an object of the current call: a name only, never content of the request.
pub(super) fn record_object(object: impl std::fmt::Display) {
    // Without a current call, as in unit tests of a handler, nothing is recorded.
    let _ = CALL_NOTES.try_with(|notes| {
        let objects = &mut notes.lock().objects;
        if objects.len() < MAX_OBJECTS {
            let comma = if objects.is_empty() { "" } else { ", " };
            objects.push_str(&format!("{comma}{object}"));
        }
    });
}

/// Reports that the current call was denied although its answer is that of an object that does not exist.
pub(super) fn record_hidden_denial(denied: &AccessDenied) {
    let _ = CALL_NOTES.try_with(|notes| notes.lock().hidden = Some(denied.to_string()));
}

/// Description of a call, read from the head of its request.
pub(super) struct AuditedCall {
    action: String,
    object: String,
    changes: bool,
    source: String,
}

impl AuditedCall {
    pub(super) fn of(verb: &Verb, path: &str, peer: PeerIdentity) -> Self {
        let source = match peer {
            PeerIdentity::Tcp(address) => address.ip().to_canonical().to_string(),
            PeerIdentity::Unix { uid } => format!("unix:uid={uid}"),
        };
        if let Some(method) = GrpcMethod::find(path) {
            let action = method.path.trim_start_matches("/hearth.v1.").replace('/', ".");
            return Self { action, object: String::new(), changes: method.changes, source };
        }
        let changes = !matches!(*verb, Verb::GET | Verb::HEAD);
        // An unknown path is not recorded: it may contain anything, such as a misplaced token.
        let (action, object) = match registry::route_pattern(path) {
            Some(pattern) => (format!("{} {pattern}", known_verb(verb)), path.to_owned()),
            None => (format!("{} (unknown)", known_verb(verb)), String::new()),
        };
        Self { action, object, changes, source }
    }

    /// Name of the called method or route. It is always text of the API, never text that a client sent.
    pub(super) fn action(&self) -> &str {
        &self.action
    }

    /// Runs the call, and records it if it changed something or was denied.
    pub(super) async fn recorded(
        self,
        trail: &AuditTrail,
        caller: &str,
        call: impl Future<Output = Response>,
    ) -> Response {
        let notes = SharedCallNotes::default();
        let mut open = OpenCall { call: Some(self), trail, caller, notes: notes.clone() };
        let mut response = CALL_NOTES.scope(notes.clone(), call).await;
        let Some(call) = open.call.take() else { return response };
        let notes = std::mem::take(&mut *notes.lock());
        let hidden = response.extensions_mut().remove::<AccessDenied>().map(|denied| denied.to_string());
        let (outcome, detail) = match notes.hidden.or(hidden) {
            Some(denied) => (AuditOutcome::Denied, denied),
            None => outcome(response.status(), response.headers()),
        };
        if call.changes || outcome == AuditOutcome::Denied {
            trail.record(call.record(caller, notes.objects, outcome, detail)).await;
        }
        response
    }

    fn record(self, caller: &str, objects: String, outcome: AuditOutcome, detail: String) -> AuditRecord {
        AuditRecord {
            at: Timestamp::now(),
            caller: caller.to_owned(),
            action: self.action,
            object: if objects.is_empty() { self.object } else { objects },
            outcome,
            detail,
            source: self.source,
            more: 0,
        }
    }
}

/// Returns the method if it is a known one, because a client can send any text.
fn known_verb(verb: &Verb) -> &str {
    let known = [Verb::GET, Verb::HEAD, Verb::POST, Verb::PUT, Verb::PATCH, Verb::DELETE, Verb::OPTIONS];
    if known.contains(verb) { verb.as_str() } else { "(unknown)" }
}

/// A call that has not been answered yet. A disconnecting client ends the handler, but not always the work that
/// it started.
struct OpenCall<'a> {
    call: Option<AuditedCall>,
    trail: &'a AuditTrail,
    caller: &'a str,
    notes: SharedCallNotes,
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        let Some(call) = self.call.take().filter(|call| call.changes) else { return };
        let objects = std::mem::take(&mut self.notes.lock().objects);
        let detail = "the client went away before the answer".to_owned();
        self.trail.try_record(call.record(self.caller, objects, AuditOutcome::Failed, detail));
    }
}

/// Returns the outcome of a call, as far as the head of its answer shows it.
fn outcome(status: StatusCode, headers: &HeaderMap) -> (AuditOutcome, String) {
    if let Some(status) = Status::from_header_map(headers) {
        return match status.code() {
            Code::Ok => (AuditOutcome::Done, String::new()),
            Code::PermissionDenied | Code::Unauthenticated => {
                (AuditOutcome::Denied, status.message().to_owned())
            }
            code => (AuditOutcome::Failed, format!("{code:?}")),
        };
    }
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            (AuditOutcome::Denied, status.as_u16().to_string())
        }
        status if status.is_client_error() || status.is_server_error() => {
            (AuditOutcome::Failed, status.as_u16().to_string())
        }
        _ => (AuditOutcome::Done, String::new()),
    }
}

#[cfg(test)]
mod tests;
