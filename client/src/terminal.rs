//! The user's terminal. Guards change its mode and restore it on drop.

use std::os::fd::AsFd as _;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Terminal attributes from before a change, which dropping this value restores.
struct SavedTermios(Termios);

impl SavedTermios {
    /// Changes the terminal of standard input. Returns `None` when it is not a terminal, or cannot be
    /// changed.
    fn modify(change: impl FnOnce(&mut Termios)) -> Option<Self> {
        let before = tcgetattr(std::io::stdin().as_fd()).ok()?;
        let mut changed = before.clone();
        change(&mut changed);
        tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &changed).ok()?;
        Some(Self(before))
    }
}

impl Drop for SavedTermios {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.0) {
            tracing::debug!(%error, "failed to restore the terminal mode");
        }
    }
}

/// Guard of raw mode: every key goes to the program, including Ctrl-C.
pub struct RawModeGuard(#[expect(dead_code, reason = "restores the terminal on drop")] SavedTermios);

impl RawModeGuard {
    /// Returns `None` when standard input is not a terminal.
    pub fn keyboard() -> Option<Self> {
        SavedTermios::modify(Termios::make_raw).map(Self)
    }
}

/// Guard that turns echo off: typed characters are not shown.
pub struct EchoOffGuard(Option<SavedTermios>);

impl EchoOffGuard {
    pub fn keyboard() -> Self {
        Self(SavedTermios::modify(|terminal| terminal.local_modes.remove(LocalModes::ECHO)))
    }
}

impl Drop for EchoOffGuard {
    fn drop(&mut self) {
        // The Enter key was not echoed either, so the line still has to be ended.
        if self.0.is_some() {
            crate::output::note("");
        }
    }
}

/// Columns and rows of the terminal of standard output, or of standard input. Returns `None` when neither
/// is a terminal with a known size.
pub fn window_size() -> Option<(u32, u32)> {
    let known = |size: rustix::io::Result<rustix::termios::Winsize>| {
        let size = size.ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
    };
    known(tcgetwinsize(std::io::stdout().as_fd())).or_else(|| known(tcgetwinsize(std::io::stdin().as_fd())))
}
