//! Ctrl-C. A command that holds an [`Interrupts`] decides itself what an interrupt means; the
//! process is not ended by the signal, so that temporary files are removed on the way out.

use std::future::Future;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Failure;

pub struct Interrupts {
    signals: Signal,
}

impl Interrupts {
    pub fn listen() -> io::Result<Self> {
        Ok(Self { signals: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next Ctrl-C. Interrupts that came before the call count.
    pub async fn next(&mut self) {
        if self.signals.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs `work` unless Ctrl-C comes first: then it is dropped where it stands.
    pub async fn or<T>(&mut self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        self.or_say("interrupted; nothing was started in the room", work).await
    }

    /// The same for what may have begun in the room when Ctrl-C comes.
    pub async fn or_say<T>(
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
