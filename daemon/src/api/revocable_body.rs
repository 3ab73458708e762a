//! Request and answer bodies that end when the caller's token becomes invalid. Their source is dropped at once,
//! whether or not anybody polls the body.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};
use tonic::Status;

use super::error::ApiError;
use crate::access::AccessError;
use crate::access::running::{CallResource, RunningCall};

/// Form in which a body reports that its call was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RevocationForm {
    /// gRPC trailers.
    Trailers,
    /// An error, which aborts the connection or stream.
    Error,
}

struct RevocableBody {
    slot: Arc<BodySlot>,
    form: RevocationForm,
    /// Keeps the call registered for as long as its answer is sent.
    _call: Option<Arc<RunningCall>>,
}

#[derive(Default)]
struct BodySlot(Mutex<SlotState>);

#[derive(Default)]
enum SlotState {
    Open {
        body: Body,
        waker: Option<Waker>,
    },
    Ended(AccessError),
    #[default]
    Finished,
}

/// Ends the body of a request with its call.
pub(super) fn revocable_request(body: Body, call: &RunningCall) -> Body {
    Body::new(RevocableBody { slot: BodySlot::of(body, call), form: RevocationForm::Error, _call: None })
}

/// Ends an answer with its call, and keeps the call registered until the answer has been sent.
pub(super) fn revocable_answer(body: Body, call: Arc<RunningCall>, form: RevocationForm) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::new(RevocableBody { slot: BodySlot::of(body, &call), form, _call: Some(call) })
}

impl BodySlot {
    fn of(body: Body, call: &RunningCall) -> Arc<Self> {
        let slot = Arc::new(Self(Mutex::new(SlotState::Open { body, waker: None })));
        let part: Weak<Self> = Arc::downgrade(&slot);
        call.attach(part);
        slot
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        // A body that panicked is not polled again, because its call has ended with it.
        self.0.lock()
    }
}

impl CallResource for BodySlot {
    fn end(&self, why: &AccessError) {
        let mut state = self.lock();
        if !matches!(*state, SlotState::Open { .. }) {
            return;
        }
        let open = std::mem::replace(&mut *state, SlotState::Ended(why.clone()));
        // Dropping the body stops its source, which may take locks of its own.
        drop(state);
        if let SlotState::Open { body, waker } = open {
            drop(body);
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

impl HttpBody for RevocableBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut state = self.slot.lock();
        if let SlotState::Open { body, waker } = &mut *state {
            let polled = Pin::new(body).poll_frame(cx);
            if polled.is_pending() && waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            return polled;
        }
        let SlotState::Ended(why) = std::mem::take(&mut *state) else { return Poll::Ready(None) };
        drop(state);
        let status = Status::from(ApiError::from(why));
        let mut trailers = HeaderMap::new();
        if self.form == RevocationForm::Trailers && status.add_header(&mut trailers).is_ok() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Poll::Ready(Some(Err(axum::Error::new(status))))
    }

    fn is_end_stream(&self) -> bool {
        match &*self.slot.lock() {
            SlotState::Open { body, .. } => body.is_end_stream(),
            SlotState::Ended(_) => false,
            SlotState::Finished => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &*self.slot.lock() {
            SlotState::Open { body, .. } => body.size_hint(),
            SlotState::Ended(_) | SlotState::Finished => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt as _;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::access::TokenAuthority;

    /// Returns a body that never yields a frame, and cancels the token when it is dropped.
    fn silent(dropped: CancellationToken) -> Body {
        let held = dropped.drop_guard();
        Body::from_stream(futures::stream::poll_fn(move |_| {
            let _ = &held;
            Poll::<Option<Result<Bytes, std::io::Error>>>::Pending
        }))
    }

    #[tokio::test]
    async fn a_revocation_ends_request_and_answer_though_nobody_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let access = TokenAuthority::open("r", &directory.path().join("secret")).unwrap();
        let token = access.mint("eve", "full", Duration::from_secs(60)).unwrap().0;
        let call = Arc::new(access.track_call(token));
        let (asked, answered) = (CancellationToken::new(), CancellationToken::new());
        let mut request = revocable_request(silent(asked.clone()), &call);
        let mut answer = revocable_answer(silent(answered.clone()), call, RevocationForm::Trailers);
        assert_eq!(access.end_invalid_calls(), 0);
        assert!(!asked.is_cancelled() && !answered.is_cancelled());
        access.revoke("eve", "op").unwrap();
        assert_eq!(access.end_invalid_calls(), 1);
        assert!(asked.is_cancelled() && answered.is_cancelled(), "what feeds them is dropped");
        let trailers = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
        let status = Status::from_header_map(&trailers).unwrap();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert!(status.message().contains("revoked"), "{status:?}");
        assert!(answer.frame().await.is_none());
        assert!(request.frame().await.unwrap().is_err(), "a cut request is not taken for a whole one");
        drop(answer);
        assert_eq!(access.end_invalid_calls(), 0);
    }
}
