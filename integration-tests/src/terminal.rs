//! A terminal whose screen can be read and whose keys can be pressed: `script` holds the other end of it.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Signal};

use crate::daemon::Daemon;
use crate::option_usage;
use crate::wait::{self, seconds};

/// Time limit for a text to be shown, and for the command to end.
const LIMIT: std::time::Duration = seconds(30);

/// A command in a terminal. Dropping it kills what runs in the terminal.
pub struct Terminal {
    child: Child,
    keyboard: Option<ChildStdin>,
    screen: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Runs a shell command with the client's environment; `$HEARTH` is the client.
    #[track_caller]
    pub fn run(daemon: &Daemon, shell: &str) -> Self {
        option_usage::record_shell(shell);
        let client = daemon.client();
        let mut command = Command::new("script");
        // Quiet, with the command's own exit code, and without a typescript file.
        command.args(["-q", "-e", "-c", shell, "/dev/null"]).env_clear().env("HEARTH", client.get_program());
        for (name, value) in client.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.env("SHELL", "/bin/sh").env("TERM", "xterm").current_dir(daemon.directory());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("script, of Debian's bsdutils");
        let keyboard = child.stdin.take();
        let mut output = child.stdout.take().expect("piped");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&screen);
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count) = output.read(&mut chunk)
                && count > 0
            {
                lock(&shown).extend_from_slice(&chunk[..count]);
            }
        });
        Self { child, keyboard, screen, reader: Some(reader) }
    }

    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Returns everything that was written to the terminal, with its control sequences.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.screen).clone()
    }

    /// Waits until this text is shown.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        let shown = wait::poll(LIMIT, || self.screen().contains(text).then_some(()));
        assert!(shown.is_some(), "no {text:?} in {:?}", self.screen());
    }

    /// Presses these keys; `\r` is enter, `\x03` is Ctrl-C.
    #[track_caller]
    pub fn press(&mut self, keys: &str) {
        let keyboard = self.keyboard.as_mut().expect("the terminal runs");
        keyboard.write_all(keys.as_bytes()).and_then(|()| keyboard.flush()).expect("keys");
    }

    /// Waits for the end of the command; returns its exit code and everything that was shown.
    #[track_caller]
    pub fn end(mut self) -> (i32, String) {
        let status = wait::poll(LIMIT, || self.child.try_wait().expect("wait"));
        let Some(status) = status else { panic!("the command is still running: {:?}", self.screen()) };
        self.keyboard = None;
        self.reader.take().expect("a reader").join().expect("no panic");
        (status.code().unwrap_or(-1), self.screen())
    }
}

fn lock(screen: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    screen.lock()
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}
