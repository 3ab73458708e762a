//! Worker threads that serve connections.
//!
//! Each worker has its own runtime. A connection stays on the worker where it started, and so do the kept
//! connections to instances: the two halves of a request never wake another thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::task::WorkerThread;

pub(super) struct IngressWorkers {
    all: Vec<(WorkerThread, Arc<AtomicUsize>)>,
}

/// Place of a client's connection on a worker.
pub(super) struct WorkerSlot {
    /// Index of the worker, from 0.
    pub(super) worker: usize,
    connections: Arc<AtomicUsize>,
}

impl IngressWorkers {
    /// Starts `count` workers, at least one.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let start = |_| Ok((WorkerThread::start("ingress")?, Arc::default()));
        Ok(Self { all: (0..count.max(1)).map(start).collect::<io::Result<_>>()? })
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Runs a task on every worker. `begin` gets the index of the worker.
    pub(super) fn each<F>(&self, name: &'static str, begin: impl Fn(usize) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        for (number, (worker, _)) in self.all.iter().enumerate() {
            worker.spawn(name, begin(number));
        }
    }

    /// Runs a task on the worker with the fewest connections. `begin` creates the task there.
    pub(super) fn spawn<F>(&self, name: &'static str, begin: impl FnOnce(WorkerSlot) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let load = |(_, (_, connections)): &(usize, &(WorkerThread, Arc<AtomicUsize>))| {
            connections.load(Ordering::Relaxed)
        };
        if let Some((number, (worker, connections))) = self.all.iter().enumerate().min_by_key(load) {
            connections.fetch_add(1, Ordering::Relaxed);
            worker.spawn(name, begin(WorkerSlot { worker: number, connections: Arc::clone(connections) }));
        }
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_spread_and_places_are_given_back() {
        let workers = IngressWorkers::start(2).unwrap();
        let seat = || {
            let mut seat = None;
            workers.spawn("connection", |slot| {
                seat = Some(slot);
                async {}
            });
            seat.unwrap()
        };
        let (first, second, third) = (seat(), seat(), seat());
        assert_eq!([first.worker, second.worker, third.worker], [0, 1, 0]);
        drop((first, third));
        assert_eq!([seat().worker, seat().worker], [0, 0], "both are given back at once");
    }

    #[test]
    fn what_runs_on_a_worker_ends_with_it() {
        let workers = IngressWorkers::start(1).unwrap();
        let (held, dropped) = std::sync::mpsc::channel::<()>();
        workers.spawn("connection", |seat| async move {
            let _held = (held, seat);
            std::future::pending::<()>().await;
        });
        drop(workers);
        let ended = dropped.recv_timeout(std::time::Duration::from_secs(20));
        assert_eq!(ended, Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
    }
}
