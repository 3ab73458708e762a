//! Cleanup of containers that a killed buildkitd left.
//!
//! runc keeps the state of every container of the machine in `/run/runc/<id>/state.json`, whoever started it. The
//! containers of this buildkitd are those whose root file system is below its directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

const STATES: &str = "/run/runc";
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct RuncState {
    id: String,
    config: RuncConfig,
}

#[derive(Deserialize)]
struct RuncConfig {
    rootfs: PathBuf,
}

/// Deletes every container whose root file system is below `dir`.
pub(super) fn delete_containers_below(dir: &Path, runc: &Path) -> Result<(), String> {
    let entries = match fs::read_dir(STATES) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{STATES}: {error}")),
    };
    let mut failed = Vec::new();
    for entry in entries.flatten() {
        // A container that is being deleted concurrently has no state file any more.
        let Some(state) = read(&entry.path()) else { continue };
        if state.config.rootfs.starts_with(dir) {
            tracing::info!(container.id = state.id, "found a container of an earlier buildkitd; removing it");
            if let Err(error) = end(&state, runc) {
                failed.push(format!("container {}: {error}", state.id));
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

fn read(dir: &Path) -> Option<RuncState> {
    serde_json::from_slice(&fs::read(dir.join("state.json")).ok()?).ok()
}

fn end(state: &RuncState, runc: &Path) -> io::Result<()> {
    // The processes of the container ended with buildkitd's pid namespace. `runc delete` removes its state and control
    // group, and kills remaining processes, identified by pid and start time.
    let mut command = Command::new(runc);
    command.args(["delete", "--force", &state.id]);
    let mut delete = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let deadline = Instant::now() + LIMIT;
    while delete.try_wait()?.is_none() {
        if Instant::now() > deadline {
            delete.kill()?;
            delete.wait()?;
            return Err(io::Error::other("`runc delete` does not end"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Removes the bundles of ended containers. Not recursive, because that would delete through a remaining mount.
pub(super) fn remove_bundles(executor: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(executor) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let bundle = entry?.path();
        if bundle.join("config.json").exists() || bundle.join("rootfs").exists() {
            let _ = fs::remove_dir(bundle.join("rootfs"));
            let _ = fs::remove_file(bundle.join("config.json"));
            if let Err(error) = fs::remove_dir(&bundle) {
                tracing::debug!(path = %bundle.display(), %error, "failed to remove the bundle of an earlier step");
            }
        }
    }
    Ok(())
}
