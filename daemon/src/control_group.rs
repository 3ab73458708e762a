//! Control groups with resource limits, in both versions of the kernel's interface.
//!
//! In version 1 a group is a directory in each of the hierarchies `memory` and `pids`; in version 2 it is one
//! directory, with the controllers enabled in every group above it. A limit applies to the group and all groups below
//! it together.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;

const ROOT: &str = "/sys/fs/cgroup";
const CONTROLLERS: [&str; 2] = ["memory", "pids"];
/// Time limit for killed processes to leave their group.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);
const LEAVE_PAUSE: Duration = Duration::from_millis(10);
/// Value for no limit in version 1.
const UNLIMITED: &str = "-1";

/// A control group, identified by its path; it may not exist.
#[derive(Clone, Debug)]
pub struct ControlGroup {
    /// Path below the root of each hierarchy, without a leading slash.
    path: String,
    directories: Vec<PathBuf>,
}

/// Reports whether the kernel uses version 2 of the interface.
pub fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

impl ControlGroup {
    pub fn at(path: &str) -> Self {
        let path = path.trim_matches('/').to_owned();
        let directories = if is_unified() {
            vec![Path::new(ROOT).join(&path)]
        } else {
            CONTROLLERS.iter().map(|controller| Path::new(ROOT).join(controller).join(&path)).collect()
        };
        Self { path, directories }
    }

    /// Creates the group and those above it if they do not exist.
    pub fn create(&self) -> io::Result<()> {
        if is_unified() {
            return create_unified(&self.path);
        }
        self.directories.iter().try_for_each(fs::create_dir_all)
    }

    /// Limits memory, including swap if the kernel counts it.
    pub fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        let bytes = bytes.to_string();
        if is_unified() {
            self.write("memory.max", &bytes)?;
            return ignore_unsupported(self.write("memory.swap.max", "0"));
        }
        // The limit on memory and swap must never be below that on memory.
        ignore_unsupported(self.write("memory.memsw.limit_in_bytes", UNLIMITED))?;
        self.write("memory.limit_in_bytes", &bytes)?;
        ignore_unsupported(self.write("memory.memsw.limit_in_bytes", &bytes))
    }

    /// Limits processes and threads.
    pub fn limit_processes(&self, count: u64) -> io::Result<()> {
        self.write("pids.max", &count.to_string())
    }

    /// Files to which a process writes `0` to move itself into the group.
    pub fn member_files(&self) -> Vec<PathBuf> {
        self.directories.iter().map(|directory| directory.join("cgroup.procs")).collect()
    }

    /// Removes the group and those below it, whose processes have exited. Blocking: a killed process takes some time to
    /// leave its group.
    pub fn remove(&self) -> io::Result<()> {
        let started = Instant::now();
        loop {
            match self.all_directories()?.iter().try_for_each(|directory| remove(directory)) {
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && started.elapsed() < LEAVE_LIMIT =>
                {
                    std::thread::sleep(LEAVE_PAUSE);
                }
                removed => return removed,
            }
        }
    }

    /// Removes the group if it contains no process and no group.
    pub fn remove_if_empty(&self) {
        for directory in self.all_directories().unwrap_or_default() {
            // A group in use stays.
            let _ = fs::remove_dir(directory);
        }
    }

    /// Returns the group's directories in all hierarchies, since runc creates the groups above its own in each of them.
    fn all_directories(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = vec![Path::new(ROOT).join(&self.path)];
        if !is_unified() {
            for hierarchy in fs::read_dir(ROOT)? {
                found.push(hierarchy?.path().join(&self.path));
            }
        }
        found.retain(|directory| directory.is_dir());
        Ok(found)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let known = |directory: &&PathBuf| directory.join(file).exists();
        let path = self.directories.iter().find(known).map(|directory| directory.join(file));
        let path = path.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("the kernel has no `{file}` for `{}`", self.path))
        })?;
        fs::write(&path, value).map_err(|error| with_path(&path, &error))
    }
}

/// Ignores a limit that this kernel does not support.
fn ignore_unsupported(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Enables the controllers in each group above.
fn create_unified(path: &str) -> io::Result<()> {
    let mut above = PathBuf::from(ROOT);
    for part in path.split('/') {
        let file = above.join("cgroup.subtree_control");
        for controller in CONTROLLERS {
            fs::write(&file, format!("+{controller}")).map_err(|error| with_path(&file, &error))?;
        }
        above.push(part);
        match fs::create_dir(&above) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(with_path(&above, &error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Counts how often a group and those below it ran out of memory.
#[derive(Debug)]
pub enum MemoryWatch {
    /// Version 2 has a file with the count.
    File(PathBuf),
    /// Version 1 reports each such event once through an eventfd; its files do not count removed groups.
    Event(OwnedFd, AtomicU64),
}

impl MemoryWatch {
    pub fn of(group: &ControlGroup) -> io::Result<Self> {
        let Some(directory) = group.directories.first() else { return Err(io::ErrorKind::NotFound.into()) };
        if is_unified() {
            return Ok(Self::File(directory.join("memory.events")));
        }
        let events = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = File::open(directory.join("memory.oom_control"))?;
        let order = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
        fs::write(directory.join("cgroup.event_control"), order)?;
        Ok(Self::Event(events, AtomicU64::new(0)))
    }

    /// Returns the count, which never decreases while the group exists.
    pub fn count(&self) -> u64 {
        match self {
            Self::File(file) => {
                let text = fs::read_to_string(file).unwrap_or_default();
                let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
                kills.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
            }
            Self::Event(events, count) => {
                let mut new = [0; 8];
                // Nothing to read means that there was no event since the last time.
                let read = rustix::io::read(events, &mut new).is_ok_and(|read| read == new.len());
                let new = if read { u64::from_ne_bytes(new) } else { 0 };
                count.fetch_add(new, Ordering::Relaxed).saturating_add(new)
            }
        }
    }
}

/// Removes groups from the bottom up; their files disappear with them.
fn remove(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Returns the memory of the machine in bytes.
pub fn machine_memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    let kilobytes = total.and_then(|number| number.trim().parse::<u64>().ok());
    kilobytes.map(|number| number * 1024).ok_or_else(|| io::Error::other("/proc/meminfo has no `MemTotal`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// A group that is removed at the end of the test.
    struct Made(ControlGroup);

    impl Drop for Made {
        fn drop(&mut self) {
            self.0.remove().unwrap();
        }
    }

    fn made(name: &str) -> Made {
        let group = ControlGroup::at(&format!("/hearth-test-{name}-{}", std::process::id()));
        group.create().unwrap();
        Made(group)
    }

    /// Runs a script inside the group; returns whether it succeeded.
    fn run(group: &ControlGroup, script: &str) -> bool {
        let enter: String =
            group.member_files().iter().map(|file| format!("echo 0 > {}; ", file.display())).collect();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{enter}{script}")]).stdout(Stdio::null()).stderr(Stdio::null());
        shell.status().unwrap().success()
    }

    #[test]
    fn memory_and_processes_of_all_below_a_group_are_bounded() {
        let Made(group) = &made("bounds");
        let below = ControlGroup::at(&format!("{}/below", group.path));
        below.create().unwrap();
        group.limit_memory(32 << 20).unwrap();
        group.limit_processes(10).unwrap();
        let watch = MemoryWatch::of(group).unwrap();
        assert_eq!(watch.count(), 0);
        assert!(run(&below, "exit 0"));
        assert!(!run(&below, "head -c 200m /dev/zero | tail -c 100m > /dev/null"));
        below.remove().unwrap();
        let ended = watch.count();
        assert!(ended > 0, "the end for want of memory is counted when its group is gone");
        assert_eq!(watch.count(), ended);
        let many = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait";
        assert!(!run(group, many));
    }

    #[test]
    fn a_group_that_is_gone_is_no_error() {
        let Made(group) = &made("gone");
        group.remove().unwrap();
        group.remove().unwrap();
    }
}
