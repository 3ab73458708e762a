//! Shutdown of the process: the first SIGTERM or SIGINT drains, a second one exits at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::task;

/// Exit code after a second signal, as a shell shows a process ended by SIGINT.
const INTERRUPTED: i32 = 130;

/// Returns a token that is cancelled by the first signal.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let fired = token.clone();
    task::spawn("signals", async move {
        for last in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if last {
                tracing::warn!("received a second signal; exiting at once");
                std::process::exit(INTERRUPTED);
            }
            tracing::info!("received a signal; draining, and a second signal exits at once");
            fired.cancel();
        }
    });
    Ok(token)
}
