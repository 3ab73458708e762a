//! Leftovers of a killed child: processes that carry its marker, and mounts below its root.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

const MARKER_VARIABLE: &str = "HEARTH_CHILD";
/// Time limit for killed processes to disappear.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Identity of a child, carried in the environment of its processes.
#[derive(Clone, Debug)]
pub struct ProcessMarker(OsString);

impl ProcessMarker {
    /// Returns the marker of a child. It contains the inode and not the path: two daemons in two containers may share
    /// the path and see each other's processes.
    pub fn of(name: &str, root: &Path) -> io::Result<Self> {
        let stat = fs::metadata(root)?;
        Ok(Self(format!("{name}:{}:{}", stat.dev(), stat.ino()).into()))
    }

    pub(super) fn variable(&self) -> (&'static str, &OsStr) {
        (MARKER_VARIABLE, &self.0)
    }

    fn is_carried_by(&self, pid: Pid) -> bool {
        let Ok(environ) = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) else {
            return false;
        };
        let wanted = [MARKER_VARIABLE.as_bytes(), b"=", self.0.as_bytes()].concat();
        environ.split(|b| *b == 0).any(|entry| entry == wanted)
    }
}

/// Kills every process that carries the marker, and waits until they are gone; with `only`, just those that run this
/// program. Returns the number of processes.
pub fn kill_marked_processes(mark: &ProcessMarker, only: Option<&Path>) -> io::Result<usize> {
    kill_until_gone(|pid| mark.is_carried_by(pid) && only.is_none_or(|program| runs_program(pid, program)))
}

/// Kills every process of this program whose command line contains these consecutive words, and waits until they are
/// gone. Returns the number of processes.
pub fn kill_started_with(program: &Path, words: &[&str]) -> io::Result<usize> {
    kill_until_gone(|pid| {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let line: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let together = |part: &[&[u8]]| part.iter().zip(words).all(|(have, word)| *have == word.as_bytes());
        line.windows(words.len().max(1)).any(together) && runs_program(pid, program)
    })
}

fn kill_until_gone(is_wanted: impl Fn(Pid) -> bool) -> io::Result<usize> {
    let deadline = Instant::now() + KILL_LIMIT;
    let mut ended = 0;
    loop {
        let alive = kill_all(&is_wanted)?;
        if alive == 0 {
            return Ok(ended);
        }
        ended = ended.max(alive);
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("{alive} processes that were left do not end")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Compares file names only: the program may have been replaced by a newer one since.
fn runs_program(pid: Pid, program: &Path) -> bool {
    let Ok(exe) = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())) else { return false };
    let name = exe.file_name().unwrap_or_default().as_bytes();
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    program.file_name().is_some_and(|program| program.as_bytes() == name)
}

fn kill_all(is_wanted: &impl Fn(Pid) -> bool) -> io::Result<usize> {
    let me = rustix::process::getpid();
    let mut found = 0;
    for entry in fs::read_dir("/proc")? {
        let Some(pid) =
            entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        if pid == me || !is_wanted(pid) {
            continue;
        }
        let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // The pidfd pins one process; only this second check proves that it is a wanted one.
        if is_wanted(pid) {
            found += 1;
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
    Ok(found)
}

/// Unmounts everything below `root` (not `root` itself). Returns the number of mounts.
pub fn unmount_below(root: &Path) -> io::Result<usize> {
    let mounts = mounts_below(root, &fs::read("/proc/self/mountinfo")?);
    // Newest first: mounts may be stacked.
    for mount in mounts.iter().rev() {
        rustix::mount::unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(mounts.len())
}

fn mounts_below(root: &Path, mountinfo: &[u8]) -> Vec<PathBuf> {
    mountinfo
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .filter(|path| path.starts_with(root) && path != root)
        .collect()
}

/// Decodes `\040` and similar escapes, which the kernel uses for blanks in paths.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_root_are_found() {
        let text = b"1 0 0:1 / / rw - ext4 /dev/vda rw\n\
            2 1 0:2 / /s/a rw - tmpfs t rw\n\
            3 1 0:3 / /s/a/b\\040c rw - overlay o rw\n\
            4 1 0:3 / /s/ab rw - overlay o rw\n\
            5 3 0:3 / /s/a/b\\040c/d rw - overlay o rw\n";
        let found = mounts_below(Path::new("/s/a"), text);
        assert_eq!(found, [PathBuf::from("/s/a/b c"), PathBuf::from("/s/a/b c/d")]);
    }
}
