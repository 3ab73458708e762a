//! Containers that a killed buildkitd left behind.
//!
//! runc keeps the state of every container of the machine in `/run/runc/<id>/state.json`, whoever
//! started it; ours are those whose root file system lies below our directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

const STATES: &str = "/run/runc";
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct State {
    id: String,
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    rootfs: PathBuf,
}

/// Ends every container whose root lies below `dir`.
pub(super) fn end_below(dir: &Path, runc: &Path) -> Result<(), String> {
    let entries = match fs::read_dir(STATES) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{STATES}: {error}")),
    };
    let mut failed = Vec::new();
    for entry in entries.flatten() {
        // A container that is going away while we look has no state any more.
        let Some(state) = read(&entry.path()) else { continue };
        if state.config.rootfs.starts_with(dir) {
            tracing::warn!(container = state.id, "removing a container of an earlier buildkitd");
            if let Err(error) = end(&state, runc) {
                failed.push(format!("container {}: {error}", state.id));
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

fn read(dir: &Path) -> Option<State> {
    serde_json::from_slice(&fs::read(dir.join("state.json")).ok()?).ok()
}

fn end(state: &State, runc: &Path) -> io::Result<()> {
    // Its processes ended with buildkitd's pid namespace; runc forgets it and removes its control
    // group, and kills by itself what it finds running, by pid and start time.
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

/// Removes the bundles of ended containers. Never recursively: a mount that is still there would
/// be emptied through it.
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
                tracing::debug!(bundle = %bundle.display(), %error, "bundle of an earlier step stays");
            }
        }
    }
    Ok(())
}
