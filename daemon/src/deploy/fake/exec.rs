//! The single program of every fake image: it echoes its input, reports the size of its terminal, and exits on request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::deploy::port::{ExecInput, ExecOutput, ExecSpec, ExecStreams, RuntimeError};
use crate::model::fault::ErrorCode;
use crate::model::service::ProcessExit;
use crate::task;

/// Additional processes in the instances.
#[derive(Default)]
pub struct FakeProcesses {
    pub running: AtomicUsize,
    /// Exit codes of the processes that have exited.
    pub ends: Mutex<Vec<i32>>,
}

pub fn start(processes: &Arc<FakeProcesses>, spec: &ExecSpec) -> Result<ExecStreams, RuntimeError> {
    if spec.command[0] != "cat" {
        let message = format!("exec: {:?}: not found", spec.command[0]);
        return Err(RuntimeError::StartFailed { code: ErrorCode::CommandNotFound, message });
    }
    let (input, mut inputs) = mpsc::channel(4);
    let (outputs, output) = mpsc::channel(4);
    let processes = Arc::clone(processes);
    processes.running.fetch_add(1, Ordering::SeqCst);
    task::spawn("cat", async move {
        let code = tokio::select! {
            code = cat(&mut inputs, &outputs) => code,
            () = outputs.closed() => 137,
        };
        let exit = ProcessExit { code: Some(code), out_of_memory: false, at: Timestamp::now() };
        processes.ends.lock().push(code);
        processes.running.fetch_sub(1, Ordering::SeqCst);
        let _ = outputs.send(ExecOutput::Exited(exit)).await;
    });
    Ok(ExecStreams { input, output })
}

async fn cat(inputs: &mut mpsc::Receiver<ExecInput>, outputs: &mpsc::Sender<ExecOutput>) -> i32 {
    while let Some(input) = inputs.recv().await {
        let said = match input {
            ExecInput::Stdin(bytes) => ExecOutput::Stdout(bytes),
            ExecInput::Resize(size) => ExecOutput::Stderr(format!("{}x{}", size.columns, size.rows).into()),
            ExecInput::StdinEnd => return 0,
            ExecInput::Signal(signal) => return 128 + signal,
        };
        let _ = outputs.send(said).await;
    }
    0
}
