//! Handling of Ctrl-C. A command that holds an [`InterruptListener`] decides what an interrupt does;
//! the signal does not end the process, so that temporary files are removed on the way out.

use std::future::Future;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Failure;

pub struct InterruptListener {
    signals: Signal,
}

impl InterruptListener {
    pub fn listen() -> io::Result<Self> {
        Ok(Self { signals: signal(SignalKind::interrupt())? })
    }

    /// Waits for Ctrl-C. Returns at once if it was pressed since the previous wait.
    pub async fn next(&mut self) {
        if self.signals.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs `work` unless Ctrl-C comes first, which drops `work` at its current await point.
    pub async fn run_interruptible<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.run_interruptible_with_message("interrupted; nothing was started in the room", work).await
    }

    /// Runs `work` that shows something until Ctrl-C, which is its usual end: as text, nothing is said about it.
    pub async fn run_until_interrupted<T>(
        &mut self,
        json: bool,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            outcome = work => outcome,
            () = self.next() => {
                Err(if json { Failure::interrupted("interrupted") } else { Failure::program_exited(130) })
            }
        }
    }

    /// Runs `work` like [`InterruptListener::run_interruptible`], with another message, for work that may have
    /// started something in the room.
    pub async fn run_interruptible_with_message<T>(
        &mut self,
        message: &str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            outcome = work => outcome,
            () = self.next() => Err(Failure::interrupted(message)),
        }
    }
}
