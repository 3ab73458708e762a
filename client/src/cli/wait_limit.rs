//! Time limits of the commands that wait for something in the room.

use std::time::Duration;

use hearth_proto::error_code::ErrorCode;

use crate::duration;
use crate::error::Failure;

/// Time by which the limit of a call exceeds that of its wait, so that the wait ends first and says what it waited for.
pub(super) const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// Waits for `work` until `limit` is over. `what` completes "waited ... for", and `hint` names the next command.
/// `work` goes on in the room after the limit.
pub(super) async fn wait_within<T, E: Into<Failure>>(
    limit: Duration,
    what: &str,
    hint: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(_) => Err(timed_out(limit, what, "it goes on in the room").hint(hint)),
    }
}

/// Error of a wait that took longer than `limit`. `state` says what goes on in the room.
pub(super) fn timed_out(limit: Duration, what: &str, state: &str) -> Failure {
    let waited = duration::format_short(limit);
    Failure::failed(ErrorCode::WaitTimedOut, format!("waited {waited} for {what}; {state}"))
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::exit;

    #[tokio::test]
    async fn a_wait_ends_at_its_limit_and_says_what_it_waited_for() {
        let limit = Duration::from_millis(100);
        let done: Result<u8, Failure> = wait_within(limit, "7", "", ready(Ok::<_, Failure>(7))).await;
        assert_eq!(done.unwrap(), 7);
        let never = pending::<Result<u8, Failure>>();
        let failure = wait_within(limit, "the end of build a1", "see: hearth", never).await.unwrap_err();
        assert_eq!((failure.detail.code.as_str(), exit::exit_code(&failure)), ("wait_timed_out", 1));
        assert_eq!(failure.detail.message, "waited 0.1s for the end of build a1; it goes on in the room");
        assert_eq!(failure.detail.hint, "see: hearth");
    }
}
