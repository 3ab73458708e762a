//! The terminal that the user sits at. What is changed in it is changed back when its guard goes, however that comes.

use std::os::fd::AsFd as _;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// What the terminal was like before.
struct Before(Termios);

impl Before {
    /// Changes the terminal of standard input. None where it is no terminal, or does not let itself be changed.
    fn change(how: impl FnOnce(&mut Termios)) -> Option<Self> {
        let before = tcgetattr(std::io::stdin().as_fd()).ok()?;
        let mut changed = before.clone();
        how(&mut changed);
        tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &changed).ok()?;
        Some(Self(before))
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.0) {
            tracing::debug!(%error, "the terminal is not as it was");
        }
    }
}

/// While it lives, every key goes to the program, Ctrl-C too.
pub struct Raw(#[expect(dead_code, reason = "held for what it does when it goes")] Before);

impl Raw {
    /// None where standard input is no terminal.
    pub fn keyboard() -> Option<Self> {
        Before::change(Termios::make_raw).map(Self)
    }
}

/// While it lives, what is typed is not shown.
pub struct Hidden(Option<Before>);

impl Hidden {
    pub fn keyboard() -> Self {
        Self(Before::change(|terminal| terminal.local_modes.remove(LocalModes::ECHO)))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // The enter key was not shown either.
        if self.0.is_some() {
            crate::output::note("");
        }
    }
}

/// Columns and rows of the terminal of standard output, or of input. None where neither is one, or knows its size.
pub fn size() -> Option<(u32, u32)> {
    let of = |size: rustix::io::Result<rustix::termios::Winsize>| {
        let size = size.ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
    };
    of(tcgetwinsize(std::io::stdout().as_fd())).or_else(|| of(tcgetwinsize(std::io::stdin().as_fd())))
}
