//! Logs of instances, written by a separate process per instance (the log keeper), so that they outlive the daemon.
//!
//! ```text
//! instance --stdout--> fd 3 +--------+   lines, bounded    +------+   <dir>/log, then <dir>/log.1
//!          --stderr--> fd 4 | keeper | ------------------> | disk | -----------------------------> read.rs
//!   runtime <--ready-- fd 5 +--------+  full: drop, count  +------+
//! ```
//!
//! The container runtime starts `hearthd instance-log <dir>` for each instance ([`keep`]): the read ends of its output
//! are the keeper's fds 3 and 4, and the keeper closes fd 5 when it is ready. It exits when both pipes are closed: a
//! restart of the daemon or of the runtime does not affect it. [`format`](mod@format) describes the files.

pub mod format;
pub mod keep;
pub mod read;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// First command-line argument of a keeper process; not listed among the daemon's flags.
pub const KEEPER_ARGUMENT: &str = "instance-log";
/// Name of the current file in an instance's log directory.
const CURRENT: &str = "log";
/// Name of the previous file.
const OLDER: &str = "log.1";

/// Runs a log keeper if the process was started as one, and returns its exit code. Must be called first in `main`.
pub fn run_keeper() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != KEEPER_ARGUMENT {
        return None;
    }
    let dir = args.next().map(|dir: OsString| PathBuf::from(dir));
    let outcome = match dir {
        Some(dir) if dir.is_absolute() => keep::keep_inherited(&dir),
        _ => Err(std::io::Error::other("expected the absolute path of a directory")),
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            // A closed standard error leaves no way to report this.
            let _ = writeln!(std::io::stderr(), "hearthd {KEEPER_ARGUMENT}: error: {error}");
            ExitCode::FAILURE
        }
    })
}
