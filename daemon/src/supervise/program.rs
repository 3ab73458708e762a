//! Supervised programs: lookup of the executable, and interpretation of the last log lines.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Returns the path of an executable: as given if it has a `/`, otherwise from `PATH`.
pub fn find_executable(program: &Path) -> Option<PathBuf> {
    let runs =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|s| s.is_file() && s.permissions().mode() & 0o111 != 0);
    if program.components().count() > 1 {
        return std::path::absolute(program).ok().filter(runs);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(runs)
}

/// Returns the last log line that gives the reason of an exit, with advice: `known` has texts of such lines and the
/// advice for each.
pub fn explain_exit(
    log_tail: &str,
    says_why: impl Fn(&str) -> bool,
    known: &[(&str, &str)],
) -> Option<String> {
    let line = log_tail.lines().rev().find(|line| says_why(line))?;
    Some(match known.iter().find(|(text, _)| line.contains(text)) {
        Some((_, next)) => format!("{line}; {next}"),
        None => line.to_owned(),
    })
}
