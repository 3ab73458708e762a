//! The only module that spawns tasks and threads. Each task and thread has a name, a span and an owner.
//!
//! The span of the code that starts a task follows into it. At level debug, a span `task` with the task's name is below
//! it.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads where they need them"))]

pub mod sequential;

use std::future::Future;
use std::io;
use std::thread::{Scope, ScopedJoinHandle};

use tokio::runtime;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument as _, Span};

/// Returns the span of a task or thread: below the caller's span, or the caller's span where debug spans are disabled.
fn task_span(name: &str) -> Span {
    tracing::debug_span!("task", task.name = name).or_current()
}

/// Starts a named thread within `scope`, in the caller's span.
#[expect(clippy::disallowed_methods, reason = "this is the place that spawns")]
pub fn scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    let span = task_span(name);
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn_scoped(scope, move || span.in_scope(work))
}

/// Runs `work` on this thread and on up to `helpers` further threads, and returns when all have finished. Each call of
/// `work` receives the number of its thread: 0 on this thread. Blocking. A panic of `work` is propagated.
pub fn in_parallel<F>(name: &'static str, helpers: usize, work: F)
where
    F: Fn(usize) + Sync,
{
    std::thread::scope(|scope| {
        for number in 1..=helpers {
            let work = &work;
            // The running threads take over the work of a thread that could not be started.
            if let Err(error) = scoped(scope, name, move || work(number)) {
                tracing::debug!(%error, task.name = name, "failed to start a parallel thread");
                break;
            }
        }
        task_span(name).in_scope(|| work(0));
    });
}

/// Runs `work` on a new thread and returns its result. Meant for work that changes the state of its thread, such as the
/// network namespace. Blocking.
pub fn on_own_thread<T, F>(name: &'static str, work: F) -> std::io::Result<T>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    std::thread::scope(|scope| {
        let running = scoped(scope, name, work)?;
        running.join().map_err(|_| std::io::Error::other(format!("thread `{name}` panicked")))
    })
}

/// Starts a detached thread for work that may block for a long time, and that ends without being told to.
#[expect(clippy::disallowed_methods, reason = "this is the place that spawns")]
pub fn spawn_thread(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let span = task_span(name);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || span.in_scope(work)).map(drop)
}

/// Thread with its own single-threaded runtime. Tasks that are spawned on it, and the tasks that those spawn, run on
/// this thread only. Dropping this value ends the thread and drops its tasks.
pub struct WorkerThread {
    runtime: runtime::Handle,
    _stop: DropGuard,
}

impl WorkerThread {
    #[expect(clippy::disallowed_methods, reason = "this is the place that spawns")]
    pub fn start(name: &'static str) -> std::io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(move || runtime.block_on(stopped.cancelled()))?;
        Ok(Self { runtime: handle, _stop: stop.drop_guard() })
    }

    /// Spawns a task like [`spawn`], on this worker.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.runtime.spawn(future.instrument(task_span(name)))
    }
}

/// Spawns a task. The caller owns the task and keeps the handle.
#[expect(clippy::disallowed_methods, reason = "this is the place that spawns")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.instrument(task_span(name)))
}

/// Runs blocking work on tokio's blocking threads, in the caller's span.
#[expect(clippy::disallowed_methods, reason = "this is the place that spawns")]
pub async fn blocking<T, F>(name: &'static str, work: F) -> Result<T, JoinError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let span = task_span(name);
    tokio::task::spawn_blocking(move || span.in_scope(work)).await
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn the_span_of_the_caller_follows_into_tasks_and_threads() {
        let mut file = tempfile::tempfile().unwrap();
        // The subscriber is global, because the tasks run on other threads.
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(Arc::new(file.try_clone().unwrap()))
            .init();
        let span = tracing::info_span!("build", build.id = "b1");
        async {
            spawn("task", async { tracing::info!("1: task") }).await.unwrap();
            blocking("work", || tracing::info!("2: blocking")).await.unwrap();
            let worker = WorkerThread::start("worker").unwrap();
            worker.spawn("task", async { tracing::info!("3: worker") }).await.unwrap();
            let nested = spawn("task", async { blocking("work", || tracing::info!("4: nested")).await });
            nested.await.unwrap().unwrap();
            let mut work = sequential::SequentialWork::<(), ()>::new("work", ());
            let log = |(): &mut ()| {
                tracing::info!("5: sequential");
                Ok(())
            };
            work.next(log).await.unwrap();
            work.finish().await.unwrap();
            on_own_thread("thread", || tracing::info!("6: own thread")).unwrap();
            let (ended, end) = std::sync::mpsc::channel();
            spawn_thread("thread", move || {
                tracing::info!("7: thread");
                ended.send(()).unwrap();
            })
            .unwrap();
            end.recv().unwrap();
            in_parallel("threads", 1, |number| tracing::info!("{}: parallel", 8 + number));
        }
        .instrument(span)
        .await;
        let mut log = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut log).unwrap();
        assert_eq!(log.lines().count(), 9, "{log}");
        for line in log.lines() {
            assert!(line.contains(r#"build{build.id="b1"}: hearth_task"#), "{log}");
        }
    }
}
