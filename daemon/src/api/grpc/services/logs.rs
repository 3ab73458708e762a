//! Streams the lines of a service's log, several in a message.

use futures::{StreamExt as _, stream};
use hearth_proto::v1;
use tonic::Status;

use super::super::super::convert;
use super::super::super::error::ApiError;
use super::super::response_stream::ResponseStream;
use crate::deploy::ServiceLogLines;
use crate::deploy::port::LogError;
use crate::model::deploy::{LogSource, ServiceLogLine, ServiceLogQuery};
use crate::model::fault::ErrorCode;

/// Number of lines if the request gives no bounds: an amount that an agent can read.
const DEFAULT_TAIL: usize = 200;
/// Maximum number of lines that are taken together, and so of the lines in one message.
const MAX_LINES: usize = 256;
/// Maximum number of bytes of the lines of a message. A single line is far smaller.
const MAX_BYTES: usize = 1 << 20;

pub(super) fn parse_log_request(
    request: &v1::ReadServiceLogsRequest,
) -> Result<(LogSource, ServiceLogQuery), ApiError> {
    use v1::read_service_logs_request::Source;
    let source = match &request.source {
        None | Some(Source::Revision(0)) => LogSource::Service,
        Some(Source::Revision(revision)) => LogSource::Revision(*revision),
        Some(Source::InstanceId(id)) => LogSource::Instance(id.parse().map_err(|error| {
            ApiError::invalid("instance_id", ErrorCode::InvalidInstanceId, format!("{error}"))
        })?),
    };
    let since = convert::time("since", request.since)?;
    let tail = match request.tail {
        Some(tail) => Some(tail as usize),
        None if since.is_some() => None,
        None => Some(DEFAULT_TAIL),
    };
    let grep = convert::line_pattern(&request.contains, &request.matches)?;
    Ok((source, ServiceLogQuery { tail, since, grep, follow: request.follow }))
}

/// Groups the lines that are available; no line waits for another.
pub(super) fn batches(lines: ServiceLogLines) -> ResponseStream<v1::ServiceLogLines> {
    lines.ready_chunks(MAX_LINES).flat_map(|lines| stream::iter(messages(lines))).boxed()
}

fn messages(lines: Vec<Result<ServiceLogLine, LogError>>) -> Vec<Result<v1::ServiceLogLines, Status>> {
    let mut messages = Vec::new();
    let mut open: Vec<v1::InstanceLogLine> = Vec::new();
    let mut bytes = 0;
    let mut close = |open: &mut Vec<v1::InstanceLogLine>| {
        let lines = std::mem::take(open);
        if !lines.is_empty() {
            messages.push(Ok(v1::ServiceLogLines { lines }));
        }
    };
    let mut failed = None;
    for line in lines {
        match line {
            Ok(ServiceLogLine { instance, line }) => {
                if bytes + line.text.len() > MAX_BYTES {
                    close(&mut open);
                    bytes = 0;
                }
                bytes += line.text.len();
                open.push(convert::instance_log_line(&instance, line));
            }
            Err(error) => {
                failed = Some(ApiError::internal("the log could not be read", error).into());
                break;
            }
        }
    }
    close(&mut open);
    messages.extend(failed.map(Err));
    messages
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::model::build::LogStream;
    use crate::model::deploy::LogLine;

    fn line(text: String) -> Result<ServiceLogLine, LogError> {
        let line = LogLine {
            at: Timestamp::UNIX_EPOCH,
            stream: LogStream::Stdout,
            text: text.into_bytes(),
            dropped_bytes: 0,
            unfinished: false,
        };
        Ok(ServiceLogLine { instance: "m7xh7f3k9wq2".parse().unwrap(), line })
    }

    fn asked(
        change: impl FnOnce(&mut v1::ReadServiceLogsRequest),
    ) -> Result<(LogSource, ServiceLogQuery), ApiError> {
        let mut request = v1::ReadServiceLogsRequest::default();
        change(&mut request);
        parse_log_request(&request)
    }

    #[test]
    fn a_question_without_bounds_is_answered_with_the_last_lines() {
        let (source, query) = asked(|_| {}).unwrap();
        assert_eq!((source, query.tail, query.grep), (LogSource::Service, Some(DEFAULT_TAIL), None));
        let since = Some(prost_types::Timestamp { seconds: 7, nanos: 0 });
        let (_, query) = asked(|request| request.since = since).unwrap();
        assert_eq!((query.tail, query.since), (None, Some(Timestamp::from_second(7).unwrap())));
        let (_, query) = asked(|request| (request.since, request.tail) = (since, Some(3))).unwrap();
        assert_eq!(query.tail, Some(3));
    }

    #[test]
    fn a_question_that_makes_no_sense_names_its_field() {
        use v1::read_service_logs_request::Source;
        let never = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 });
        let refused = [
            ("since", asked(|request| request.since = never)),
            ("instance_id", asked(|request| request.source = Some(Source::InstanceId("../x".to_owned())))),
            ("contains", asked(|request| request.contains = "x".repeat(4097))),
            ("matches", asked(|request| request.matches = "a(b".to_owned())),
            (
                "matches",
                asked(|request| (request.contains, request.matches) = ("a".to_owned(), "b".to_owned())),
            ),
        ];
        for (field, refused) in refused {
            assert_eq!(refused.unwrap_err().detail().field, field);
        }
    }

    #[tokio::test]
    async fn many_lines_go_in_messages_of_bounded_size_and_an_error_is_the_last() {
        let short = (0..MAX_LINES * 2 + 1).map(|n| line(n.to_string()));
        let long = (0..40).map(|_| line("x".repeat(64 << 10)));
        let failed = [Err(LogError("no disk".to_owned())), line("after".to_owned())];
        let lines: ServiceLogLines = Box::pin(stream::iter(short.chain(long).chain(failed)));
        let messages: Vec<_> = batches(lines).collect().await;
        let (last, good) = messages.split_last().unwrap();
        assert!(last.is_err(), "{last:?}");
        let good: Vec<_> = good.iter().map(|message| message.as_ref().unwrap()).collect();
        assert_eq!(good.iter().map(|message| message.lines.len()).sum::<usize>(), MAX_LINES * 2 + 41);
        for message in &good {
            let bytes: usize = message.lines.iter().map(|line| line.line.as_ref().unwrap().text.len()).sum();
            assert!(message.lines.len() <= MAX_LINES && bytes <= MAX_BYTES);
        }
        let second = &good[0].lines[1];
        assert_eq!(
            (&second.line.as_ref().unwrap().text[..], second.instance_id.as_str()),
            (&b"1"[..], "m7xh7f3k9wq2")
        );
    }
}
