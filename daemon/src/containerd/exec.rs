//! Additional processes in an instance.
//!
//! ```text
//! caller --ExecInput--> feed --stdin fifo--> shim --> process
//!        <-ExecOutput-- drain <-stdout, stderr fifos-- shim <--'
//!                       end: the exit, then the rest of the pipes, then Exited
//! ```
//!
//! One task owns each process: it ends with the process, and kills the process when the receiver of its output is
//! dropped. The pipes are opened before the shim opens them, so that no side blocks on the other. Until the process has
//! exited, end of file on a pipe has no meaning, since the shim may not have opened it yet.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1 as services;
use rustix::fs::{FileType, Mode};
use services::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetContainerRequest, KillRequest,
    ResizePtyRequest, StartRequest, WaitRequest,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::channel::{call, limit};
use super::failure::ContainerdFault;
use super::spec::types::{ConsoleSize, PROCESS_URL, ProcessSpec, StoredSpec};
use super::{ContainerdContext, labels, observe};
use crate::deploy::port::{ExecInput, ExecOutput, ExecSpec, ExecStreams, RuntimeError};
use crate::model::fault::ErrorCode;
use crate::model::id::InstanceId;

/// Maximum number of queued messages in each direction.
const WAITING: usize = 16;
const CHUNK: usize = 32 << 10;
/// Polling interval for a pipe that has no writer yet.
const PAUSE: Duration = Duration::from_millis(5);
const SIGKILL: u32 = 9;

/// A running process, with its ids for calls to containerd.
struct ExecProcess {
    inner: Arc<ContainerdContext>,
    container_id: String,
    exec_id: String,
    terminal: bool,
    _pipes: ExecPipes,
}

/// Directory of the process's pipes, removed on drop.
struct ExecPipes(PathBuf);

impl Drop for ExecPipes {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "failed to remove the pipes of a process");
        }
    }
}

impl ExecPipes {
    fn make(parent: &Path, exec_id: &str, terminal: bool) -> io::Result<Self> {
        let pipes = Self(parent.join(exec_id));
        std::fs::create_dir_all(&pipes.0)?;
        let names: &[&str] = if terminal { &["in", "out"] } else { &["in", "out", "err"] };
        for name in names {
            rustix::fs::mknodat(rustix::fs::CWD, pipes.at(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        }
        Ok(pipes)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn named(&self, name: &str) -> String {
        self.at(name).to_string_lossy().into_owned()
    }
}

pub(super) async fn exec(
    inner: Arc<ContainerdContext>,
    instance: &InstanceId,
    spec: ExecSpec,
) -> Result<ExecStreams, RuntimeError> {
    let exec_id = format!("exec-{}", InstanceId::random());
    let terminal = spec.terminal.is_some();
    let process = process(&inner, instance, &spec).await?;
    let failed = |error: io::Error| RuntimeError::Other(format!("pipes of a process: {error}"));
    let pipes = ExecPipes::make(&inner.pipes, &exec_id, terminal).map_err(failed)?;
    let out = pipe::OpenOptions::new().open_receiver(pipes.at("out")).map_err(failed)?;
    let err = if terminal {
        None
    } else {
        Some(pipe::OpenOptions::new().open_receiver(pipes.at("err")).map_err(failed)?)
    };
    // A fifo cannot be opened only for writing before it has a reader.
    let stdin = pipe::OpenOptions::new().read_write(true).open_sender(pipes.at("in")).map_err(failed)?;
    let request = ExecProcessRequest {
        container_id: instance.to_string(),
        exec_id: exec_id.clone(),
        stdin: pipes.named("in"),
        stdout: pipes.named("out"),
        stderr: if terminal { String::new() } else { pipes.named("err") },
        terminal,
        spec: Some(prost_types::Any { type_url: PROCESS_URL.to_owned(), value: process }),
    };
    let added = call(limit::PROCESS, inner.connection.tasks().exec(request)).await;
    added.map_err(|fault| into_exec_error(fault, instance))?;
    let running = ExecProcess { inner, container_id: instance.to_string(), exec_id, terminal, _pipes: pipes };
    let request = StartRequest { container_id: instance.to_string(), exec_id: running.exec_id.clone() };
    if let Err(fault) = call(limit::PROCESS, running.inner.connection.tasks().start(request)).await {
        running.delete().await;
        return Err(fault.into_start_error());
    }
    // Recent versions of runc have started the process with this size already.
    if let Some(size) = spec.terminal {
        running.resize(size.columns, size.rows).await;
    }
    let (input, inputs) = mpsc::channel(WAITING);
    let (outputs, output) = mpsc::channel(WAITING);
    crate::task::spawn("exec", drive_process(running, stdin, out, err, inputs, outputs));
    Ok(ExecStreams { input, output })
}

/// Builds the specification of the process: that of the instance with another command.
async fn process(
    inner: &ContainerdContext,
    instance: &InstanceId,
    spec: &ExecSpec,
) -> Result<Vec<u8>, RuntimeError> {
    let request = GetContainerRequest { id: instance.to_string() };
    let container = call(limit::RECORD, inner.connection.containers().get(request)).await;
    let container =
        container.map_err(|fault| fault.into_instance_error(instance))?.container.unwrap_or_default();
    let invalid =
        |error: serde_json::Error| RuntimeError::Other(format!("specification of {instance}: {error}"));
    let stored: StoredSpec =
        serde_json::from_slice(&container.spec.unwrap_or_default().value).map_err(invalid)?;
    let mut process =
        ProcessSpec { terminal: spec.terminal.is_some(), args: spec.command.clone(), ..stored.process };
    process.console_size = spec.terminal.map(|size| ConsoleSize { height: size.rows, width: size.columns });
    if process.args.is_empty() {
        let message = "there is no command to run".to_owned();
        return Err(RuntimeError::StartFailed { code: ErrorCode::NoCommand, message });
    }
    if let Some(workdir) = &spec.workdir {
        process.cwd = workdir.to_string();
    }
    if spec.terminal.is_some() && !spec.env.contains_key("TERM") {
        set_variable(&mut process.env, "TERM", "xterm");
    }
    for (name, value) in &spec.confidential {
        set_variable(&mut process.env, name, value.reveal());
    }
    spec.env.iter().for_each(|(name, value)| set_variable(&mut process.env, name, value));
    serde_json::to_vec(&process).map_err(invalid)
}

fn set_variable(env: &mut Vec<String>, name: &str, value: &str) {
    env.retain(|entry| entry.split('=').next() != Some(name));
    env.push(format!("{name}={value}"));
}

/// Maps the error of an exec call: a process can be added only to a running instance.
fn into_exec_error(fault: ContainerdFault, instance: &InstanceId) -> RuntimeError {
    match fault {
        ContainerdFault::NotFound(_) | ContainerdFault::Precondition(_) => {
            RuntimeError::NotRunning(instance.clone())
        }
        other => other.into_runtime_error(),
    }
}

async fn drive_process(
    running: ExecProcess,
    stdin: pipe::Sender,
    out: pipe::Receiver,
    err: Option<pipe::Receiver>,
    inputs: mpsc::Receiver<ExecInput>,
    outputs: mpsc::Sender<ExecOutput>,
) {
    let (ended, over) = watch::channel(false);
    let drained = async {
        let out = drain(out, over.clone(), &outputs, ExecOutput::Stdout);
        let err = async {
            match err {
                Some(err) => drain(err, over.clone(), &outputs, ExecOutput::Stderr).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(out, err).map(|_| ())
    };
    let exit = async {
        let exit = running.wait(&outputs).await;
        // The call returns when the shim has copied all of the output.
        running.delete().await;
        ended.send_replace(true);
        exit
    };
    let feed = feed(&running, stdin, inputs);
    let finished = async { tokio::join!(exit, drained) };
    tokio::pin!(feed, finished);
    let (exit, drained) = tokio::select! {
        finished = &mut finished => finished,
        () = &mut feed => finished.await,
    };
    let last = match (exit, drained) {
        (Ok(exit), Ok(())) => ExecOutput::Exited(exit),
        (Err(fault), _) => ExecOutput::Lost(fault.to_string()),
        (_, Err(error)) => ExecOutput::Lost(format!("output of the process: {error}")),
    };
    // An error means that the receiver is gone.
    let _ = outputs.send(last).await;
}

/// Forwards the output of the process until it has exited and the pipe is empty.
async fn drain(
    mut pipe: pipe::Receiver,
    mut over: watch::Receiver<bool>,
    outputs: &mpsc::Sender<ExecOutput>,
    wrap: impl Fn(Bytes) -> ExecOutput,
) -> io::Result<()> {
    use tokio::io::AsyncReadExt as _;
    let mut buffer = vec![0; CHUNK];
    loop {
        let is_over = *over.borrow_and_update();
        let count = if is_over {
            // Other processes may still hold the write end and are not waited for.
            match pipe.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                other => other?,
            }
        } else {
            tokio::select! {
                count = pipe.read(&mut buffer) => count?,
                _ = over.changed() => continue,
            }
        };
        if count == 0 {
            let _ = tokio::time::timeout(PAUSE, over.changed()).await;
            continue;
        }
        // `wait` detects a dropped receiver and kills the process.
        let _ = outputs.send(wrap(Bytes::copy_from_slice(&buffer[..count]))).await;
    }
}

/// Executes the caller's inputs until their channel is closed.
async fn feed(running: &ExecProcess, stdin: pipe::Sender, mut inputs: mpsc::Receiver<ExecInput>) {
    let mut stdin = Some(stdin);
    while let Some(input) = inputs.recv().await {
        match input {
            ExecInput::Stdin(bytes) => {
                if let Some(pipe) = &mut stdin
                    && let Err(error) = pipe.write_all(&bytes).await
                {
                    tracing::debug!(%error, "process closed its input");
                    stdin = None;
                }
            }
            // Closing the input would make the shim hang up the terminal, which would end the process.
            ExecInput::StdinEnd if running.terminal => {}
            ExecInput::StdinEnd => running.close_input(&mut stdin).await,
            ExecInput::Resize(size) => running.resize(size.columns, size.rows).await,
            ExecInput::Signal(signal) => running.kill(u32::try_from(signal).unwrap_or(SIGKILL)).await,
        }
    }
    if running.terminal {
        // The pipe stays open for as long as the process runs.
        return std::future::pending().await;
    }
    running.close_input(&mut stdin).await;
}

impl ExecProcess {
    /// Waits for the exit of the process, and kills it when the receiver of its output is dropped.
    async fn wait(
        &self,
        outputs: &mpsc::Sender<ExecOutput>,
    ) -> Result<crate::model::service::ProcessExit, ContainerdFault> {
        let request = WaitRequest { container_id: self.container_id.clone(), exec_id: self.exec_id.clone() };
        let mut tasks = self.inner.connection.tasks();
        // Without a time limit: a process may run as long as its caller wants.
        let wait = tasks.wait(request);
        tokio::pin!(wait);
        let answer = tokio::select! {
            answer = &mut wait => answer,
            () = outputs.closed() => {
                self.kill(SIGKILL).await;
                let answer = call(limit::PROCESS, wait).await?;
                return Ok(exited(&answer));
            }
        };
        answer.map(|answer| exited(answer.get_ref())).map_err(ContainerdFault::from)
    }

    async fn resize(&self, columns: u16, rows: u16) {
        let request = ResizePtyRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            width: columns.into(),
            height: rows.into(),
        };
        self.try_call("resize", self.inner.connection.tasks().resize_pty(request)).await;
    }

    async fn kill(&self, signal: u32) {
        let (container_id, exec_id) = (self.container_id.clone(), self.exec_id.clone());
        let request = KillRequest { container_id, exec_id, signal, all: false };
        self.try_call("kill", self.inner.connection.tasks().kill(request)).await;
    }

    /// Closes the input pipe, on the shim's side as well.
    async fn close_input(&self, stdin: &mut Option<pipe::Sender>) {
        if stdin.take().is_some() {
            let (container_id, exec_id) = (self.container_id.clone(), self.exec_id.clone());
            let request = CloseIoRequest { container_id, exec_id, stdin: true };
            self.try_call("close input", self.inner.connection.tasks().close_io(request)).await;
        }
    }

    async fn delete(&self) {
        let (container_id, exec_id) = (self.container_id.clone(), self.exec_id.clone());
        let request = DeleteProcessRequest { container_id, exec_id };
        self.try_call("delete", self.inner.connection.tasks().delete_process(request)).await;
    }

    /// Makes a call that may fail because the process has exited meanwhile.
    async fn try_call<T>(
        &self,
        what: &str,
        asked: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) {
        if let Err(fault) = call(limit::PROCESS, asked).await {
            tracing::debug!(error = %fault, operation = what, exec.id = self.exec_id, "failed to call a process");
        }
    }
}

fn exited(answer: &services::WaitResponse) -> crate::model::service::ProcessExit {
    observe::exit(answer.exit_status, labels::time(answer.exited_at.as_ref()), || None)
}
