//! A containerd of the test's own, with `ctr` as its client: nothing of the machine's own is touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::leftovers;
use crate::process::{self, Output, Running};
use crate::wait::{self, seconds};

/// A containerd 2.x, with its shim beside it; the one on the path is Debian's 1.6.
pub const SECOND: &str = "/usr/local/lib/hearth-tests/containerd-2/containerd";

/// Runs until it is dropped.
pub struct Containerd {
    directory: PathBuf,
    running: Option<Running>,
}

impl Containerd {
    /// Starts one with root, state and socket below `directory`.
    #[track_caller]
    pub fn start(directory: &Path) -> Self {
        Self::start_program("containerd", directory)
    }

    #[track_caller]
    pub fn start_program(program: &str, directory: &Path) -> Self {
        let at = |name: &str| directory.join(name);
        fs::create_dir_all(directory).expect("directory");
        // Neither Kubernetes nor a place outside the directory.
        let config = format!(
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             root = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("socket")
        );
        fs::write(at("config.toml"), config).expect("config");
        let mut command = Command::new(program);
        if let Some(beside) = Path::new(program).parent().filter(|beside| beside.is_absolute()) {
            // Else it would take the first shim of the path.
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", beside.display()));
        }
        let running = Some(process::start(command.arg("--config").arg(at("config.toml"))));
        let containerd = Self { directory: directory.to_owned(), running };
        wait::until(seconds(60), "containerd answers", || containerd.try_ctr(&["version"]).code == 0);
        containerd
    }

    fn try_ctr(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.directory.join("socket")).args(["--namespace", "test"]);
        process::run(command.args(arguments), seconds(90))
    }

    /// Runs `ctr`, which must succeed.
    #[track_caller]
    pub fn ctr(&self, arguments: &[&str]) -> Output {
        let output = self.try_ctr(arguments);
        assert_eq!(output.code, 0, "ctr {arguments:?}\n{output}");
        output
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for point in leftovers::mounts(&self.directory).into_iter().rev() {
            // What stays mounted is found by the sweep of the test's directory.
            let _ = rustix::mount::unmount(&point, UnmountFlags::DETACH);
        }
        if let Some(running) = self.running.take() {
            process::signal(running.pid().as_raw_nonzero().get(), Signal::TERM);
            // Past the limit it is killed.
            let _ = running.finish(seconds(20));
        }
    }
}
