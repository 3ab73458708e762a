//! One more process in an instance.
//!
//! ```text
//! caller --ExecInput--> feed --stdin fifo--> shim --> process
//!        <-ExecOutput-- drain <-stdout, stderr fifos-- shim <--'
//!                       end: the exit, then what the pipes still hold, then Exited
//! ```
//!
//! One task owns it: it ends with the process, and kills the process when nobody takes its output any more. The
//! pipes are opened before the shim opens them, so that no end waits for the other; until the process has ended, an
//! empty pipe says nothing, since the shim may not have opened it yet.

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
use super::failure::Fault;
use super::spec::types::{ConsoleSize, PROCESS_URL, Process, Stored};
use super::{Inner, labels, observe};
use crate::deploy::port::{Exec, ExecInput, ExecOutput, ExecSpec, RuntimeError};
use crate::model::id::InstanceId;

/// Messages that wait, each way.
const WAITING: usize = 16;
const CHUNK: usize = 32 << 10;
/// Between two looks at a pipe that nobody has opened yet.
const PAUSE: Duration = Duration::from_millis(5);
const SIGKILL: u32 = 9;

/// A process that runs, and how it is named in calls.
struct Running {
    inner: Arc<Inner>,
    container_id: String,
    exec_id: String,
    terminal: bool,
    _pipes: Pipes,
}

/// The directory of its pipes, which goes with it.
struct Pipes(PathBuf);

impl Drop for Pipes {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), "pipes of a process remain");
        }
    }
}

impl Pipes {
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
    inner: Arc<Inner>,
    instance: &InstanceId,
    spec: ExecSpec,
) -> Result<Exec, RuntimeError> {
    let exec_id = format!("exec-{}", InstanceId::random());
    let terminal = spec.terminal.is_some();
    let process = process(&inner, instance, &spec).await?;
    let failed = |error: io::Error| RuntimeError::Other(format!("pipes of a process: {error}"));
    let pipes = Pipes::make(&inner.pipes, &exec_id, terminal).map_err(failed)?;
    let out = pipe::OpenOptions::new().open_receiver(pipes.at("out")).map_err(failed)?;
    let err = if terminal {
        None
    } else {
        Some(pipe::OpenOptions::new().open_receiver(pipes.at("err")).map_err(failed)?)
    };
    // For writing alone it could not be opened before its reader.
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
    added.map_err(|fault| missing(fault, instance))?;
    let running = Running { inner, container_id: instance.to_string(), exec_id, terminal, _pipes: pipes };
    let request = StartRequest { container_id: instance.to_string(), exec_id: running.exec_id.clone() };
    if let Err(fault) = call(limit::PROCESS, running.inner.connection.tasks().start(request)).await {
        running.delete().await;
        return Err(fault.of_start());
    }
    // It began with this size, where runc is not too old for that.
    if let Some(size) = spec.terminal {
        running.resize(size.columns, size.rows).await;
    }
    let (input, inputs) = mpsc::channel(WAITING);
    let (outputs, output) = mpsc::channel(WAITING);
    crate::task::spawn("exec", own(running, stdin, out, err, inputs, outputs));
    Ok(Exec { input, output })
}

/// The process's specification: the instance's own, with another command.
async fn process(inner: &Inner, instance: &InstanceId, spec: &ExecSpec) -> Result<Vec<u8>, RuntimeError> {
    let request = GetContainerRequest { id: instance.to_string() };
    let container = call(limit::RECORD, inner.connection.containers().get(request)).await;
    let container = container.map_err(|fault| fault.of(instance))?.container.unwrap_or_default();
    let invalid =
        |error: serde_json::Error| RuntimeError::Other(format!("specification of {instance}: {error}"));
    let stored: Stored =
        serde_json::from_slice(&container.spec.unwrap_or_default().value).map_err(invalid)?;
    let mut process =
        Process { terminal: spec.terminal.is_some(), args: spec.command.clone(), ..stored.process };
    process.console_size = spec.terminal.map(|size| ConsoleSize { height: size.rows, width: size.columns });
    if process.args.is_empty() {
        let message = "there is no command to run".to_owned();
        return Err(RuntimeError::Start { code: "no_command", message });
    }
    if let Some(workdir) = &spec.workdir {
        process.cwd = workdir.to_string();
    }
    if spec.terminal.is_some() && !spec.env.contains_key("TERM") {
        set(&mut process.env, "TERM", "xterm");
    }
    for (name, value) in &spec.confidential {
        set(&mut process.env, name, value.reveal());
    }
    spec.env.iter().for_each(|(name, value)| set(&mut process.env, name, value));
    serde_json::to_vec(&process).map_err(invalid)
}

fn set(env: &mut Vec<String>, name: &str, value: &str) {
    env.retain(|entry| entry.split('=').next() != Some(name));
    env.push(format!("{name}={value}"));
}

/// A process can be added only to one that runs.
fn missing(fault: Fault, instance: &InstanceId) -> RuntimeError {
    match fault {
        Fault::NotFound(_) | Fault::Precondition(_) => RuntimeError::NotRunning(instance.clone()),
        other => other.plain(),
    }
}

async fn own(
    running: Running,
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
        // Returns when the shim has copied all of the output.
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
    // Where nobody listens any more, nobody needs to know.
    let _ = outputs.send(last).await;
}

/// Hands on what the process writes, until it has ended and the pipe is empty.
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
            // Whoever still holds the other end is not waited for.
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
        // A caller that went away is seen by `wait`, which kills the process.
        let _ = outputs.send(wrap(Bytes::copy_from_slice(&buffer[..count]))).await;
    }
}

/// Does what the caller asks for, until it asks no more.
async fn feed(running: &Running, stdin: pipe::Sender, mut inputs: mpsc::Receiver<ExecInput>) {
    let mut stdin = Some(stdin);
    while let Some(input) = inputs.recv().await {
        match input {
            ExecInput::Stdin(bytes) => {
                if let Some(pipe) = &mut stdin
                    && let Err(error) = pipe.write_all(&bytes).await
                {
                    tracing::debug!(%error, "a process takes no more input");
                    stdin = None;
                }
            }
            // The shim would hang the terminal up, and that end the process.
            ExecInput::StdinEnd if running.terminal => {}
            ExecInput::StdinEnd => running.close_input(&mut stdin).await,
            ExecInput::Resize(size) => running.resize(size.columns, size.rows).await,
            ExecInput::Signal(signal) => running.kill(u32::try_from(signal).unwrap_or(SIGKILL)).await,
        }
    }
    if running.terminal {
        // The pipe is open for as long as the process runs.
        return std::future::pending().await;
    }
    running.close_input(&mut stdin).await;
}

impl Running {
    /// How the process ended. It is killed when the caller goes away.
    async fn wait(&self, outputs: &mpsc::Sender<ExecOutput>) -> Result<crate::model::service::Exit, Fault> {
        let request = WaitRequest { container_id: self.container_id.clone(), exec_id: self.exec_id.clone() };
        let mut tasks = self.inner.connection.tasks();
        // A process may run as long as it likes; its caller is what limits it.
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
        answer.map(|answer| exited(answer.get_ref())).map_err(Fault::from)
    }

    async fn resize(&self, columns: u16, rows: u16) {
        let request = ResizePtyRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            width: columns.into(),
            height: rows.into(),
        };
        self.tried("resize", self.inner.connection.tasks().resize_pty(request)).await;
    }

    async fn kill(&self, signal: u32) {
        let (container_id, exec_id) = (self.container_id.clone(), self.exec_id.clone());
        let request = KillRequest { container_id, exec_id, signal, all: false };
        self.tried("kill", self.inner.connection.tasks().kill(request)).await;
    }

    /// The shim holds an end of the pipe too, and is told.
    async fn close_input(&self, stdin: &mut Option<pipe::Sender>) {
        if stdin.take().is_some() {
            let (container_id, exec_id) = (self.container_id.clone(), self.exec_id.clone());
            let request = CloseIoRequest { container_id, exec_id, stdin: true };
            self.tried("close input", self.inner.connection.tasks().close_io(request)).await;
        }
    }

    async fn delete(&self) {
        let (container_id, exec_id) = (self.container_id.clone(), self.exec_id.clone());
        let request = DeleteProcessRequest { container_id, exec_id };
        self.tried("delete", self.inner.connection.tasks().delete_process(request)).await;
    }

    /// What may come too late: the process may have ended.
    async fn tried<T>(
        &self,
        what: &str,
        asked: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) {
        if let Err(fault) = call(limit::PROCESS, asked).await {
            tracing::debug!(%fault, what, exec.id = self.exec_id, "a process was not reached");
        }
    }
}

fn exited(answer: &services::WaitResponse) -> crate::model::service::Exit {
    observe::exit(answer.exit_status, labels::time(answer.exited_at.as_ref()), || None)
}
