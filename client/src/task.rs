//! The only place of the client that moves work to another thread. The client spawns no tasks.

/// Runs blocking work on tokio's blocking threads, in the caller's span.
#[expect(clippy::disallowed_methods, reason = "this is the place that moves work to a thread")]
pub async fn blocking<T, F>(name: &'static str, work: F) -> Result<T, tokio::task::JoinError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let span = tracing::debug_span!("blocking", name);
    tokio::task::spawn_blocking(move || span.in_scope(work)).await
}
