//! The only module of the client that moves work to another thread. The client spawns no tasks.

/// Runs blocking work on tokio's blocking threads, in the caller's span.
#[expect(clippy::disallowed_methods, reason = "this is the place that moves work to a thread")]
pub async fn blocking<T, F>(name: &'static str, work: F) -> Result<T, tokio::task::JoinError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let span = tracing::debug_span!("task", task.name = name).or_current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await
}

/// Reads standard input in chunks, on a thread that the end of the process does not wait for. The
/// channel closes at the end of the input, or after an error.
#[expect(clippy::disallowed_methods, reason = "this is the place that moves work to a thread")]
pub fn standard_input() -> tokio::sync::mpsc::Receiver<std::io::Result<bytes::Bytes>> {
    const PIECE: usize = 32 * 1024;
    let (send, receive) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = std::io::Read::read(&mut std::io::stdin().lock(), &mut buffer);
            let piece = match read {
                Ok(0) => return,
                Ok(length) => Ok(bytes::Bytes::copy_from_slice(&buffer[..length])),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if send.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    receive
}

/// Runs work that may never end, such as a program that prompts the user, on a thread that the end of
/// the process does not wait for. Returns `None` when the work does not end in time, or panics.
#[expect(clippy::disallowed_methods, reason = "this is the place that moves work to a thread")]
pub async fn blocking_with_timeout<T, F>(limit: std::time::Duration, work: F) -> Option<T>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // The receiver is gone after the time limit.
        let _ = send.send(work());
    });
    tokio::time::timeout(limit, receive).await.ok()?.ok()
}
