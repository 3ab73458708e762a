//! Leftovers that must not outlive a test: processes, mounts and directories below the test's own directory.
//!
//! Each check also cleans up, so that one failure does not spoil the cases after it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::process::{self, Process};

/// Returns the processes that belong to the directory: their command line names it, or their root file system is an
/// overlay of it, like that of a build step.
pub fn processes(directory: &Path) -> Vec<Process> {
    let text = directory.to_str().expect("test directories are UTF-8");
    let own = std::process::id();
    let mut found = process::all();
    found.retain(|process| {
        process.pid != own as i32 && (names(&process.command, text) || root_is_below(process.pid, text))
    });
    found
}

/// Reports whether a word of the command line has the path or a path below it; `/t/a` is not in `/t/ab`.
fn names(command: &str, directory: &str) -> bool {
    command.match_indices(directory).any(|(at, _)| {
        matches!(
            command.as_bytes().get(at + directory.len()),
            None | Some(b'/' | b' ' | b'"' | b'\'' | b',' | b':')
        )
    })
}

fn root_is_below(pid: i32, directory: &str) -> bool {
    let Ok(mounts) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else { return false };
    mounts.lines().any(|line| line.split(' ').nth(4) == Some("/") && names(line, directory))
}

/// Returns the mount points of this mount namespace below the directory, deepest last.
pub fn mounts(directory: &Path) -> Vec<PathBuf> {
    let Ok(table) = fs::read("/proc/self/mountinfo") else { return Vec::new() };
    let mut found: Vec<PathBuf> = table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|point| PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(point))))
        .filter(|point| point.starts_with(directory))
        .collect();
    found.sort();
    found
}

/// Decodes the escapes of mountinfo, which writes blanks and the like as `\040`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let octal = text.get(at + 1..at + 4).filter(|_| text[at] == b'\\');
        match octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                at += 4;
            }
            None => {
                bytes.push(text[at]);
                at += 1;
            }
        }
    }
    bytes
}

/// Kills and unmounts whatever is left below the directory, removes it, and reports what was left. `expected` are mount
/// points that the test itself made.
pub fn sweep(directory: &Path, expected: &[PathBuf]) -> Vec<String> {
    let mut report = Vec::new();
    for process in processes(directory) {
        report.push(format!("process {} ({}): {}", process.pid, process.name, process.command));
        process::signal(process.pid, Signal::KILL);
    }
    for point in mounts(directory).into_iter().rev() {
        if !expected.contains(&point) {
            report.push(format!("mount {}", point.display()));
        }
        if let Err(error) = rustix::mount::unmount(&point, UnmountFlags::DETACH) {
            report.push(format!("cannot unmount {}: {error}", point.display()));
        }
    }
    // Never descend into a mount that could not be unmounted.
    if mounts(directory).is_empty()
        && let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        report.push(format!("cannot remove {}: {error}", directory.display()));
    }
    report
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::wait;

    #[test]
    fn a_path_is_found_in_a_command_line_only_as_a_whole() {
        assert!(names("buildkitd --root /t/a/buildkit", "/t/a"));
        assert!(names("x --root=/t/a", "/t/a"));
        assert!(!names("buildkitd --root /t/ab/buildkit", "/t/a"));
        assert!(names("x /t/ab /t/a", "/t/a"));
    }

    #[test]
    fn mountinfo_escapes_are_undone() {
        assert_eq!(unescape(br"/a\040b\134c"), br"/a b\c");
        assert_eq!(unescape(br"/a\04"), br"/a\04");
    }

    #[test]
    fn a_process_and_a_mount_below_are_found_and_swept() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("inner");
        let point = inner.join("a b");
        fs::create_dir_all(&point).unwrap();
        assert!(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&point).status().unwrap().success());
        let script = format!("trap '' TERM; : {} ; sleep 4713.25", inner.display());
        let mut child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        wait::until(wait::seconds(5), "the process shows up", || !processes(&inner).is_empty());
        let report = sweep(&inner, &[]);
        child.wait().unwrap();
        for orphan in process::with_command("sleep 4713.25") {
            process::signal(orphan.pid, Signal::KILL);
        }
        assert_eq!(report.len(), 2, "{report:?}");
        assert!(report[0].starts_with("process ") && report[1].ends_with("a b"), "{report:?}");
        assert!(!inner.exists());
    }
}
