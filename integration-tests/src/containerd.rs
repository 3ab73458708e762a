//! A containerd that belongs to the test, with `ctr` as its client; the machine's own containerd is not touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::leftovers;
use crate::process::{self, Output, Running};
use crate::wait::{self, seconds};

/// Path of containerd 2.x, with its shim in the same directory. The containerd on PATH is Debian's 1.6.
pub const CONTAINERD_2: &str = "/usr/local/lib/hearth-tests/containerd-2/containerd";

/// A running containerd; dropping it stops the process.
pub struct Containerd {
    directory: PathBuf,
    running: Option<Running>,
}

impl Containerd {
    /// Starts containerd with root, state and socket below `directory`.
    #[track_caller]
    pub fn start(directory: &Path) -> Self {
        Self::start_program("containerd", directory)
    }

    #[track_caller]
    pub fn start_program(program: &str, directory: &Path) -> Self {
        let at = |name: &str| directory.join(name);
        fs::create_dir_all(directory).expect("directory");
        // The Kubernetes plugin is not needed, and the `opt` plugin would use a path outside of the directory.
        let config = format!(
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             root = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("socket")
        );
        fs::write(at("config.toml"), config).expect("config");
        let mut command = Command::new(program);
        if let Some(program_directory) = Path::new(program).parent().filter(|parent| parent.is_absolute()) {
            // containerd takes the first shim on PATH, which must be the one of the same release.
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", program_directory.display()));
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

    /// Runs `ctr` and panics when it fails.
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
            // A failure is ignored here: the sweep of the test's directory reports mounts that are left.
            let _ = rustix::mount::unmount(&point, UnmountFlags::DETACH);
        }
        if let Some(running) = self.running.take() {
            process::signal(running.pid().as_raw_nonzero().get(), Signal::TERM);
            // Kills containerd when it does not stop within the limit.
            let _ = running.finish(seconds(20));
        }
    }
}
