//! Logs of instances: written by a process of their own, so that they outlive the daemon.
//!
//! ```text
//! instance --stdout--> fd 3 +--------+   lines, bounded    +------+   <dir>/log, then <dir>/log.1
//!          --stderr--> fd 4 | keeper | ------------------> | disk | -----------------------------> read.rs
//!   runtime <--ready-- fd 5 +--------+  full: drop, count  +------+
//! ```
//!
//! The container runtime starts `hearthd instance-log <dir>` for each instance ([`keep`]): the read ends of its
//! output are its fds 3 and 4, and it closes fd 5 when it is ready. It ends when both pipes have: neither a restart
//! of the daemon nor one of the runtime touches it. [`format`](mod@format) is what lies in the files.

pub mod format;
pub mod keep;
pub mod read;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// First argument of a keeper; not listed among the daemon's flags.
pub const KEEPER_ARGUMENT: &str = "instance-log";
/// Name of the file in an instance's log directory that is written to.
const CURRENT: &str = "log";
/// What was written before it.
const OLDER: &str = "log.1";

/// Runs a log keeper when the process was started as one, and gives its exit code. To be called before anything else.
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
            // When standard error is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "hearthd {KEEPER_ARGUMENT}: error: {error}");
            ExitCode::FAILURE
        }
    })
}
