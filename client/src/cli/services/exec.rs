//! `hearth services exec`
//!
//! ```text
//! keyboard or pipe --stdin--> process --stdout, stderr--> here, until `exited`
//! window size, signals ------^
//! ```

use std::future::pending;
use std::io::IsTerminal as _;

use clap::Args;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::exec_request::Message;
use hearth_proto::v1::exec_response::Message as Answer;
use hearth_proto::v1::{ExecBegin, ExecStdinEnd, Exit, TerminalSize};
use hearth_proto::value::MountTarget;
use tokio::io::AsyncWriteExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::assignments::variables;
use crate::cli::content::CollectedText;
use crate::cli::{GlobalArgs, complete, connect};
use crate::client::{ClientError, ExecProcess};
use crate::error::{Failure, FailureKind};
use crate::interrupt::InterruptListener;
use crate::terminal::{self, RawModeGuard};
use crate::{output, task};

/// Run a command in the instance that serves
///
/// Exits with the command's own exit code; like a shell, with 127 when the program does not exist, and
/// with 126 when it cannot be run. With --json its output is the text of one document, with its exit code.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth services exec web -- ls -l /srv
  hearth services exec -it web -- sh
  hearth services exec -i db -- psql < dump.sql")]
pub(in crate::cli) struct ExecArgs {
    /// Connect standard input to the command
    #[arg(long, short)]
    interactive: bool,
    /// Run the command in a terminal
    #[arg(long, short)]
    tty: bool,
    /// Environment variable, `NAME=value`; `NAME` alone takes its value from the environment of this command
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working directory of the command
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// Name or id
    #[arg(add = complete::services())]
    service: String,
    /// Command with its arguments, after `--`
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Columns and rows that stand in for a terminal without a known size.
const DEFAULT_SIZE: (u32, u32) = (80, 24);
const SIGINT: i32 = 2;

impl ExecArgs {
    fn begin(&self) -> Result<ExecBegin, Failure> {
        let env = variables("--env", &self.env, |name| std::env::var(name))?.into_iter().collect();
        let working_dir = match &self.workdir {
            None => String::new(),
            Some(text) => text.parse::<MountTarget>().map(|path| path.to_string()).map_err(|_| {
                Failure::usage(format!("--workdir: `{text}` is not an absolute path without `..`"))
            })?,
        };
        let terminal = self.tty.then(window);
        Ok(ExecBegin {
            service: self.service.clone(),
            command: self.command.clone(),
            env,
            working_dir,
            terminal,
        })
    }
}

fn window() -> TerminalSize {
    let (columns, rows) = terminal::window_size().unwrap_or(DEFAULT_SIZE);
    TerminalSize { columns, rows }
}

pub(super) async fn run(
    args: ExecArgs,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(), Failure> {
    let begin = args.begin()?;
    if args.interactive && args.tty && !std::io::stdin().is_terminal() {
        return Err(Failure::usage("-t with -i needs a terminal as standard input")
            .hint("leave -t out to give it a file or a pipe"));
    }
    if args.tty && globals.json {
        return Err(Failure::usage("-t shows a terminal, and --json prints a document: give one of the two"));
    }
    let starting = async {
        let client = connect(globals).await?;
        client.exec(begin).await.map_err(start_failure)
    };
    let mut process = interrupts.run_interruptible(Box::pin(starting)).await?;
    let mut output = ExecOutput::new(globals);
    let exit = {
        // Restore the terminal before anything else is printed, however the command ends.
        let raw = if args.interactive && args.tty { RawModeGuard::keyboard() } else { None };
        let exit = relay(&mut process, &args, &mut output, interrupts).await;
        drop(raw);
        exit?
    };
    finish(&exit, output)
}

/// Where the output of the process goes: to the client's own streams, or into the one document of `--json`.
enum ExecOutput {
    Streams(tokio::io::Stdout, tokio::io::Stderr),
    Document { stdout: CollectedText, stderr: CollectedText },
}

impl ExecOutput {
    fn new(globals: &GlobalArgs) -> Self {
        if globals.json {
            Self::Document { stdout: CollectedText::default(), stderr: CollectedText::default() }
        } else {
            Self::Streams(tokio::io::stdout(), tokio::io::stderr())
        }
    }

    async fn write(&mut self, is_stderr: bool, bytes: &[u8]) -> Result<(), Failure> {
        match (self, is_stderr) {
            (Self::Streams(out, _), false) => {
                out.write_all(bytes).await?;
                out.flush().await?;
            }
            (Self::Streams(_, err), true) => {
                err.write_all(bytes).await?;
                err.flush().await?;
            }
            (Self::Document { stdout, .. }, false) => stdout.push(bytes)?,
            (Self::Document { stderr, .. }, true) => stderr.push(bytes)?,
        }
        Ok(())
    }
}

/// Prints the document of `--json`, if one is asked for, and returns the outcome of the process.
fn finish(exit: &Exit, output: ExecOutput) -> Result<(), Failure> {
    let outcome = exit_outcome(exit);
    let ExecOutput::Document { stdout, stderr } = output else { return outcome };
    let document = serde_json::json!({
        "exit_code": exit.code, "out_of_memory": exit.out_of_memory,
        "stdout": stdout.into_text()?, "stderr": stderr.into_text()?,
    });
    match outcome {
        Err(failure) if !matches!(failure.kind, FailureKind::ProgramExited(_)) => {
            Err(failure.partial(&document))
        }
        outcome => crate::output::json(&document).and(outcome),
    }
}

/// Signals that end the command. Without a handler they would leave the terminal in raw mode.
struct TerminationSignals {
    terminate: Signal,
    hang_up: Signal,
}

impl TerminationSignals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}

/// Relays input, output, signals and window sizes until the process ends.
async fn relay(
    process: &mut ExecProcess,
    args: &ExecArgs,
    output: &mut ExecOutput,
    interrupts: &mut InterruptListener,
) -> Result<Exit, Failure> {
    let mut resized = signal(SignalKind::window_change())?;
    let mut ends = TerminationSignals {
        terminate: signal(SignalKind::terminate())?,
        hang_up: signal(SignalKind::hangup())?,
    };
    let mut outbox = ExecOutbox { to: process.input.clone(), waiting: None };
    let mut typed = if args.interactive {
        Some(task::standard_input())
    } else {
        outbox.waiting = Some(Message::StdinEnd(ExecStdinEnd {}));
        None
    };
    loop {
        // Only one message at a time waits to be sent to the process; its output is read in the meantime.
        let message = tokio::select! {
            answer = process.next() => match answer? {
                Answer::Stdout(bytes) => {
                    output.write(false, &bytes).await?;
                    continue;
                }
                Answer::Stderr(bytes) => {
                    output.write(true, &bytes).await?;
                    continue;
                }
                Answer::Exited(exit) => return Ok(exit),
            },
            () = outbox.send(), if outbox.waiting.is_some() => continue,
            _ = resized.recv(), if args.tty && outbox.waiting.is_none() => Message::Resize(window()),
            () = interrupts.next() => {
                if outbox.waiting.is_some() {
                    // The process does not read its input, and a signal cannot overtake the message that waits.
                    return Err(Failure::interrupted("interrupted; the process in the service is ended"));
                }
                Message::Signal(SIGINT)
            }
            piece = next_stdin_chunk(&mut typed), if outbox.waiting.is_none() => match piece {
                Some(Ok(bytes)) => Message::Stdin(bytes),
                Some(Err(error)) => return Err(error.into()),
                None => {
                    typed = None;
                    Message::StdinEnd(ExecStdinEnd {})
                }
            },
            name = ends.next() => {
                return Err(Failure::interrupted(format!("{name}; the process in the service is ended")));
            }
        };
        outbox.waiting = Some(message);
    }
}

async fn next_stdin_chunk(
    typed: &mut Option<mpsc::Receiver<std::io::Result<bytes::Bytes>>>,
) -> Option<std::io::Result<bytes::Bytes>> {
    match typed {
        Some(typed) => typed.recv().await,
        None => pending().await,
    }
}

/// The next message to the process, kept until its channel has capacity.
struct ExecOutbox {
    to: mpsc::Sender<Message>,
    waiting: Option<Message>,
}

impl ExecOutbox {
    /// Sends the waiting message. Cancel safe: dropping the future keeps the message for the next call.
    async fn send(&mut self) {
        match self.to.reserve().await {
            Ok(room) => {
                if let Some(message) = self.waiting.take() {
                    room.send(message);
                }
            }
            // The process reads no more input; its exit code follows on the other stream.
            Err(_) => {
                self.waiting = None;
                pending::<()>().await;
            }
        }
    }
}

/// Converts an error of starting the process. A missing or unusable program gets a shell's exit code.
fn start_failure(error: ClientError) -> Failure {
    let mut failure = Failure::from(error);
    let code = match failure.detail.code.parse() {
        Ok(ErrorCode::CommandNotFound) => 127,
        Ok(ErrorCode::NotExecutable | ErrorCode::ExecFormat) => 126,
        _ => return failure,
    };
    failure.kind = FailureKind::ProgramNotStarted(code);
    failure
}

fn exit_outcome(exit: &Exit) -> Result<(), Failure> {
    if exit.out_of_memory {
        output::note("the process was killed because it ran out of memory");
    }
    match exit.code {
        Some(0) => Ok(()),
        // A code that does not fit an exit code of this process becomes 255.
        Some(code) => Err(Failure::program_exited(u8::try_from(code).unwrap_or(u8::MAX))),
        None => {
            Err(Failure::failed(ErrorCode::ExitUnseen, "the process ended, and its exit was not observed"))
        }
    }
}

#[cfg(test)]
mod tests {
    use hearth_proto::v1::ErrorDetail;

    use super::*;
    use crate::exit;

    fn args(env: &[&str], workdir: Option<&str>) -> ExecArgs {
        ExecArgs {
            interactive: false,
            tty: false,
            env: env.iter().map(|text| (*text).to_owned()).collect(),
            workdir: workdir.map(str::to_owned),
            service: "web".into(),
            command: vec!["ls".into(), "-l".into()],
        }
    }

    #[test]
    fn a_command_is_begun_as_it_was_given() {
        let begin = args(&["A=b=c"], Some("/srv/")).begin().unwrap();
        assert_eq!((begin.command, begin.working_dir.as_str()), (vec!["ls".into(), "-l".into()], "/srv"));
        assert_eq!(begin.env.get("A").map(String::as_str), Some("b=c"));
        assert_eq!(begin.terminal, None);
        assert!(args(&["NOT_SET_72A"], None).begin().unwrap().env.is_empty());
        assert!(args(&["=A"], None).begin().unwrap_err().detail.message.contains("--env `=A`"));
        assert!(args(&[], Some("srv")).begin().unwrap_err().detail.message.contains("--workdir: `srv`"));
    }

    #[test]
    fn the_exit_code_is_that_of_the_process() {
        let code = |code| {
            let exit = Exit { code, ..Exit::default() };
            exit_outcome(&exit).map_err(|failure| exit::exit_code(&failure))
        };
        assert_eq!(code(Some(0)), Ok(()));
        assert_eq!(code(Some(3)), Err(3));
        assert_eq!(code(Some(137)), Err(137));
        assert_eq!(code(Some(-1)), Err(255));
        assert_eq!(code(None), Err(1));
    }

    #[test]
    fn a_program_that_cannot_be_run_has_the_exit_code_of_a_shell() {
        let code = |code: &str| {
            let detail = ErrorDetail { code: code.into(), message: "m".into(), ..Default::default() };
            let failure = start_failure(ClientError::Failed(Box::new(detail)));
            (exit::exit_code(&failure), exit::error_text(&failure))
        };
        assert_eq!(code("command_not_found"), (127, "error: m".to_owned()));
        assert_eq!(code("not_executable").0, 126);
        assert_eq!(code("exec_format").0, 126);
        assert_eq!(code("service_not_found").0, 1);
    }

    #[tokio::test]
    async fn a_message_waits_for_room_and_is_not_lost_when_the_wait_is_dropped() {
        let (to, mut from) = mpsc::channel(1);
        to.send(Message::Signal(1)).await.unwrap();
        let mut outbox = ExecOutbox { to, waiting: Some(Message::Signal(2)) };
        let full = tokio::time::timeout(std::time::Duration::from_millis(20), outbox.send()).await;
        assert!(full.is_err() && outbox.waiting.is_some());
        assert_eq!(from.recv().await, Some(Message::Signal(1)));
        outbox.send().await;
        assert_eq!((from.recv().await, outbox.waiting), (Some(Message::Signal(2)), None));
    }
}
