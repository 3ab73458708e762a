//! Liveness of shared resources: a probe of the blocking threads, the database and the disk, with a time limit.
//!
//! A daemon whose threads are all blocked still answers probes that need none of them; this probe needs all of them. The
//! probe of the disk writes a small file, since free bytes alone do not tell that a write can work: inodes, a quota or
//! a file system that became read-only can prevent it.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;
use std::{fs, io};

use tokio::sync::watch;

use crate::model::component::ComponentStatus;
use crate::store::StateStore;
use crate::task;

const PROBE_INTERVAL: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(2) };
/// Longer than any legitimate work occupies a thread, or the lock of the database.
const PROBE_LIMIT: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(15) };

/// Name of the probe's file in the state directory, and its size in bytes.
const PROBE_FILE: &str = "write.probe";
const PROBE_BYTES: usize = 64 << 10;

/// Result of the last probe; the error says why work is stuck.
pub(super) type LivenessReceiver = watch::Receiver<Result<(), String>>;

pub(super) fn component(pulse: &LivenessReceiver) -> ComponentStatus {
    let state = pulse.borrow().clone();
    ComponentStatus { name: "work", ready: state.is_ok(), detail: state.err().unwrap_or_default() }
}

/// Probes periodically until nobody watches the result.
pub(super) fn watch(store: StateStore, state_dir: PathBuf) -> LivenessReceiver {
    let (send, pulse) = watch::channel(Ok(()));
    task::spawn("pulse", async move {
        while !send.is_closed() {
            let mut asked = pin!(probe(&store, &state_dir));
            let state = match tokio::time::timeout(PROBE_LIMIT, asked.as_mut()).await {
                Ok(state) => state,
                Err(_) => {
                    let stuck =
                        format!("work is stuck: the state was not read within {} s", PROBE_LIMIT.as_secs());
                    tracing::error!(limit = ?PROBE_LIMIT, "failed to read the state in time; work is stuck");
                    publish(&send, Err(stuck));
                    // One pending probe waits; further ones are not started.
                    asked.await
                }
            };
            publish(&send, state);
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    });
    pulse
}

/// Runs a query on a blocking thread, after everything that already waits for the database; then writes a file.
async fn probe(store: &StateStore, state_dir: &Path) -> Result<(), String> {
    let read = store.transaction(|transaction| {
        Ok(transaction.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get::<_, i64>(0))?)
    });
    read.await.map_err(|error| format!("state database: {error}"))?;
    let path = state_dir.join(PROBE_FILE);
    let written = task::blocking("write probe", move || {
        let written = fs::write(&path, [0; PROBE_BYTES]);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => written.and(Err(error)),
            _ => written,
        }
    });
    let written = written.await.map_err(io::Error::other).flatten();
    written.map_err(|error| format!("nothing can be written to the state directory, only read: {error}"))
}

fn publish(send: &watch::Sender<Result<(), String>>, state: Result<(), String>) {
    send.send_if_modified(|known| {
        let changed = *known != state;
        if changed {
            match &state {
                Ok(()) => tracing::info!("state directory can be read and written again"),
                Err(error) => tracing::error!(error, "state directory is not usable"),
            }
            *known = state;
        }
        changed
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_stands_still_is_noticed_and_so_is_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let store = StateStore::open(&directory.path().join("state.db")).unwrap();
        let mut pulse = watch(store.clone(), directory.path().to_owned());
        assert!(component(&pulse).ready);
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let stuck = task::spawn("stuck", async move {
            store
                .transaction(move |_| {
                    // It ends when the test lets go of the other end.
                    let _ = wait.recv();
                    Ok(())
                })
                .await
        });
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, pulse.wait_for(Result::is_err)).await.unwrap().unwrap();
        assert!(component(&pulse).detail.contains("work is stuck"));
        drop(end);
        tokio::time::timeout(limit, pulse.wait_for(Result::is_ok)).await.unwrap().unwrap();
        stuck.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_state_directory_that_cannot_be_written_is_noticed_and_so_is_its_recovery() {
        let directory = tempfile::tempdir().unwrap();
        let store = StateStore::open(&directory.path().join("state.db")).unwrap();
        let state_dir = directory.path().join("state");
        let mut pulse = watch(store, state_dir.clone());
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, pulse.wait_for(Result::is_err)).await.unwrap().unwrap();
        assert!(component(&pulse).detail.contains("nothing can be written"), "{:?}", component(&pulse));
        fs::create_dir(&state_dir).unwrap();
        tokio::time::timeout(limit, pulse.wait_for(Result::is_ok)).await.unwrap().unwrap();
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}
