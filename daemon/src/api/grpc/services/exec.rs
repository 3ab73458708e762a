//! Runs a process in a service's instance, and connects its input and output to the client's stream.
//!
//! ```text
//! client --ExecRequest--> feed --ExecInput--> process --ExecOutput--> ExecSession --ExecResponse--> client
//!                          '-- an invalid message ends the session ----'
//! ```
//!
//! The process is killed when the client disconnects: dropping the answers drops the process's output. The
//! process sees the end of its input only if the client ends its stream normally.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use hearth_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, Streaming};

use super::super::super::convert;
use super::super::super::error::ApiError;
use super::super::response_stream::ResponseStream;
use super::super::upload::begin_missing;
use crate::deploy::port::{ExecInput, ExecOutput, ExecSpec, ExecStreams, TerminalSize};
use crate::model::fault::ErrorCode;
use crate::task;

/// Time limit for the first message of a client.
const BEGIN_LIMIT: Duration = Duration::from_secs(30);
/// Time limit for a process to exit after its output has been dropped.
const KILL_LIMIT: Duration = Duration::from_secs(60);
/// Maximum size in bytes of one message of input.
const MAX_STDIN: usize = 1 << 20;
/// Highest signal number of Linux.
const MAX_SIGNAL: i32 = 64;

/// Reads the first message: the service, and the process to run.
pub(super) async fn begin(messages: &mut Streaming<v1::ExecRequest>) -> Result<(String, ExecSpec), Status> {
    use v1::exec_request::Message;
    let first = tokio::time::timeout(BEGIN_LIMIT, messages.message()).await;
    let first = first.map_err(|_| begin_missing())??;
    let Some(v1::ExecRequest { message: Some(Message::Begin(begin)) }) = first else {
        return Err(begin_missing());
    };
    Ok((begin.service.clone(), spec(begin)?))
}

fn spec(begin: v1::ExecBegin) -> Result<ExecSpec, ApiError> {
    Ok(ExecSpec {
        command: convert::arguments("begin.command", begin.command)?,
        env: convert::pairs("begin.env", begin.env)?,
        // The confidential values of the instance, which deploys add.
        confidential: BTreeMap::new(),
        workdir: match begin.working_dir.as_str() {
            "" => None,
            path => Some(path.parse().map_err(|error| {
                let message = format!("working directory: {error}");
                ApiError::invalid("begin.working_dir", ErrorCode::InvalidWorkingDir, message)
            })?),
        },
        terminal: begin.terminal.map(|size| terminal("begin.terminal", size)).transpose()?,
    })
}

fn terminal(field: &str, size: v1::TerminalSize) -> Result<TerminalSize, ApiError> {
    let count = |count: u32| u16::try_from(count).ok().filter(|count| *count > 0);
    match (count(size.columns), count(size.rows)) {
        (Some(columns), Some(rows)) => Ok(TerminalSize { columns, rows }),
        _ => {
            let message = "a terminal has 1 to 65535 columns and rows";
            Err(ApiError::invalid(field, ErrorCode::InvalidTerminal, message))
        }
    }
}

fn input(message: Option<v1::exec_request::Message>) -> Result<ExecInput, ApiError> {
    use v1::exec_request::Message;
    Ok(match message {
        Some(Message::Stdin(bytes)) if bytes.len() > MAX_STDIN => {
            let message = format!("a piece of input is at most {MAX_STDIN} bytes");
            return Err(ApiError::invalid("stdin", ErrorCode::ChunkTooLarge, message));
        }
        Some(Message::Stdin(bytes)) => ExecInput::Stdin(bytes),
        Some(Message::StdinEnd(_)) => ExecInput::StdinEnd,
        Some(Message::Resize(size)) => ExecInput::Resize(terminal("resize", size)?),
        Some(Message::Signal(signal)) if (1..=MAX_SIGNAL).contains(&signal) => ExecInput::Signal(signal),
        Some(Message::Signal(signal)) => {
            let message = format!("{signal} is not a signal: 1 to {MAX_SIGNAL}");
            return Err(ApiError::invalid("signal", ErrorCode::InvalidSignal, message));
        }
        Some(Message::Begin(_)) | None => {
            let message = "after `begin` come input, sizes and signals";
            return Err(ApiError::invalid("message", ErrorCode::InvalidMessage, message));
        }
    })
}

/// Connects a running process to its client.
pub(super) fn answers(
    exec: ExecStreams,
    messages: Streaming<v1::ExecRequest>,
) -> ResponseStream<v1::ExecResponse> {
    let ExecStreams { input, output } = exec;
    let (refuse, refused) = oneshot::channel();
    let over = CancellationToken::new();
    let session =
        ExecSession { output, refused: Some(refused), done: false, _over: over.clone().drop_guard() };
    task::spawn("exec-input", async move {
        tokio::select! {
            fed = feed(messages, &input) => match fed {
                // Dropping the input tells the process that there is no more to read.
                Ok(()) => return,
                Err(status) => {
                    // The session may have been dropped.
                    let _ = refuse.send(status);
                }
            },
            () = over.cancelled() => {}
        }
        // The process is killed now. Its input stays open until then, so that it does not take what it has read
        // for complete.
        let _ = tokio::time::timeout(KILL_LIMIT, input.closed()).await;
    });
    stream::unfold(session, |mut session| async move {
        let answer = session.next().await?;
        Some((answer, session))
    })
    .boxed()
}

/// Forwards the client's messages until the client ends its stream.
async fn feed(
    mut messages: Streaming<v1::ExecRequest>,
    process: &mpsc::Sender<ExecInput>,
) -> Result<(), Status> {
    while let Some(message) = messages.message().await? {
        if process.send(input(message.message)?).await.is_err() {
            // The process has ended; its output reports the exit.
            return Ok(());
        }
    }
    Ok(())
}

struct ExecSession {
    output: mpsc::Receiver<ExecOutput>,
    refused: Option<oneshot::Receiver<Status>>,
    done: bool,
    /// Stops the input task when the session is dropped.
    _over: DropGuard,
}

impl ExecSession {
    async fn next(&mut self) -> Option<Result<v1::ExecResponse, Status>> {
        use v1::exec_response::Message;
        if self.done {
            return None;
        }
        let output = loop {
            let Some(refused) = &mut self.refused else { break self.output.recv().await };
            tokio::select! {
                output = self.output.recv() => break output,
                refused = refused => {
                    self.refused = None;
                    if let Ok(status) = refused {
                        self.done = true;
                        return Some(Err(status));
                    }
                }
            }
        };
        let message = match output {
            Some(ExecOutput::Stdout(bytes)) => Message::Stdout(bytes),
            Some(ExecOutput::Stderr(bytes)) => Message::Stderr(bytes),
            Some(ExecOutput::Exited(exit)) => {
                self.done = true;
                Message::Exited(convert::exit(exit))
            }
            Some(ExecOutput::Lost(reason)) => {
                self.done = true;
                let message = format!("the process was lost: {reason}");
                return Some(Err(ApiError::new(ErrorCode::ProcessLost, message).into()));
            }
            None => {
                self.done = true;
                let cause = "its output ended without an exit";
                return Some(Err(ApiError::internal("the process was lost", cause).into()));
            }
        };
        Some(Ok(v1::ExecResponse { message: Some(message) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_of_a_process_names_its_field() {
        type Change = fn(&mut v1::ExecBegin);
        let cases: &[(&str, Change)] = &[
            ("begin.command", |begin| begin.command.clear()),
            ("begin.command", |begin| begin.command = vec!["a\0".to_owned()]),
            ("begin.command", |begin| begin.command.push("x".repeat(200 << 10))),
            ("begin.env", |begin| begin.env = [("A=B".to_owned(), String::new())].into()),
            ("begin.working_dir", |begin| begin.working_dir = "srv".to_owned()),
            ("begin.terminal", |begin| {
                begin.terminal = Some(v1::TerminalSize { columns: 80, rows: 0 });
            }),
        ];
        for (field, change) in cases {
            let mut begin = v1::ExecBegin { command: vec!["sh".to_owned()], ..v1::ExecBegin::default() };
            assert!(spec(begin.clone()).is_ok());
            change(&mut begin);
            assert_eq!(spec(begin).unwrap_err().detail().field, *field);
        }
    }

    #[test]
    fn what_makes_no_sense_as_input_is_refused() {
        use v1::exec_request::Message;
        let size = v1::TerminalSize { columns: 70_000, rows: 1 };
        for (field, message) in [
            ("stdin", Some(Message::Stdin(vec![0; MAX_STDIN + 1].into()))),
            ("resize", Some(Message::Resize(size))),
            ("signal", Some(Message::Signal(0))),
            ("signal", Some(Message::Signal(65))),
            ("message", Some(Message::Begin(v1::ExecBegin::default()))),
            ("message", None),
        ] {
            assert_eq!(input(message).unwrap_err().detail().field, field);
        }
        assert!(matches!(input(Some(Message::Signal(2))), Ok(ExecInput::Signal(2))));
    }
}
