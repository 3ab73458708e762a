use axum::body::Body;
use futures::{StreamExt as _, stream};
use hearth_proto::status::RpcStatus;
use http_body_util::BodyExt as _;
use prost::Message as _;

use super::super::super::shares::{CallerShares, ShareLimits};
use super::*;

const STALL: Duration = Duration::from_millis(100);

fn shares(receiving: u64) -> CallerShares {
    CallerShares::new(ShareLimits { requests: 10, receiving })
}

fn message(size: usize) -> Vec<u8> {
    let prefix = u32::try_from(size).unwrap().to_be_bytes();
    [&[0], prefix.as_slice(), &vec![7; size]].concat()
}

fn body_of(parts: Vec<Vec<u8>>) -> Body {
    Body::from_stream(stream::iter(parts.into_iter().map(Ok::<_, std::io::Error>)))
}

/// A body whose sender is silent after these parts.
fn silent_after(parts: Vec<Vec<u8>>) -> Body {
    let parts = stream::iter(parts.into_iter().map(Ok::<_, std::io::Error>));
    Body::from_stream(parts.chain(stream::pending()))
}

fn received(body: Body, framing: MessageFraming, share: RequestShare) -> ReceivedBody {
    ReceivedBody::new(body, Some(framing), Some(STALL), Some(Arc::new(share)))
}

fn code(status: &Status) -> String {
    let envelope = RpcStatus::decode(status.details()).unwrap();
    hearth_proto::v1::ErrorDetail::decode(&*envelope.details[0].value).unwrap().code
}

async fn next(body: &mut ReceivedBody) -> Result<Option<Bytes>, Status> {
    let frame = body.frame().await.transpose()?;
    Ok(frame.map(|frame| frame.into_data().unwrap()))
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_by_its_prefix() {
    let share = shares(1 << 20).begin("a").unwrap();
    // The prefix is sufficient, however it is split.
    let parts = message(2000)[..5].iter().map(|byte| vec![*byte]).collect();
    let mut body = received(silent_after(parts), MessageFraming::new(1000, false), share);
    let refused = loop {
        match next(&mut body).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(code(&refused), "message_too_large");
}

#[tokio::test]
async fn messages_of_any_cut_within_the_limit_pass() {
    let all: Vec<u8> = [0, 1, 1000, 999].into_iter().flat_map(message).collect();
    for cut in [1, 3, 6, 700, 5000] {
        let parts = all.chunks(cut).map(<[u8]>::to_vec).collect();
        let share = shares(1 << 20).begin("a").unwrap();
        let body = received(body_of(parts), MessageFraming::new(1000, true), share);
        assert!(body.collect().await.unwrap().to_bytes() == all, "{cut}");
    }
}

#[tokio::test]
async fn a_sender_that_is_silent_is_ended() {
    let share = shares(1 << 20).begin("a").unwrap();
    let mut body = received(silent_after(vec![message(10)]), MessageFraming::new(1000, true), share);
    next(&mut body).await.unwrap();
    assert_eq!(code(&next(&mut body).await.unwrap_err()), "upload_stalled");
}

#[tokio::test]
async fn what_a_stream_was_sent_is_free_when_the_next_message_is_asked_for() {
    let shares = shares(2000);
    let share = shares.begin("a").unwrap();
    // Each request takes most of the share of one caller.
    let parts = (0..20).map(|_| message(900)).collect();
    let body = received(body_of(parts), MessageFraming::new(1000, true), share);
    assert_eq!(body.collect().await.unwrap().to_bytes().len(), 20 * 905);
    assert!(shares.begin("a").unwrap().grow(1000), "nothing is held any more");
}

#[tokio::test]
async fn open_messages_hold_memory_and_others_wait_for_it_but_not_for_ever() {
    let shares = shares(2000);
    let framing = || MessageFraming::new(1000, false);
    let half = || message(1000)[..600].to_vec();
    let mut first = received(silent_after(vec![half()]), framing(), shares.begin("a").unwrap());
    next(&mut first).await.unwrap();
    let mut second = received(silent_after(vec![half()]), framing(), shares.begin("a").unwrap());
    assert_eq!(code(&next(&mut second).await.unwrap_err()), "busy");
    let mut third = received(silent_after(vec![half()]), framing(), shares.begin("a").unwrap());
    let waiting = next(&mut third);
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(STALL, &mut waiting).await.is_err());
    drop(first);
    assert_eq!(waiting.await.unwrap().unwrap().len(), 600);
    // Another caller has memory during all of this.
    let mut other = received(silent_after(vec![half()]), framing(), shares.begin("b").unwrap());
    next(&mut other).await.unwrap();
}

#[tokio::test]
async fn plain_content_is_counted_until_it_is_let_go() {
    let shares = shares(2000);
    let share = Arc::new(shares.begin("a").unwrap());
    let body = body_of(vec![vec![1; 600], vec![2; 600]]);
    let mut body = ReceivedBody::new(body, None, None, Some(share));
    let first = next(&mut body).await.unwrap().unwrap();
    let waiting = next(&mut body);
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(STALL, &mut waiting).await.is_err());
    drop(first);
    assert_eq!(waiting.await.unwrap().unwrap().len(), 600);
}
