//! `buildctl`, BuildKit's own client, on the same buildkitd: the other side of comparisons.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::daemon::Daemon;
use crate::process::{self, Output};
use crate::wait::seconds;

pub struct Buildctl {
    /// Address of buildkitd: `unix:///path`.
    address: String,
    /// HOME of buildctl, with credentials for the room's registry.
    home: PathBuf,
}

impl Buildctl {
    /// Returns a client of the buildkitd that the daemon owns; it may pull from the daemon's registry.
    #[track_caller]
    pub fn of(daemon: &Daemon) -> Self {
        Self::with_credentials_of(daemon, daemon)
    }

    /// Returns a client of the buildkitd that the daemon owns, with full access to the registry of `room`.
    #[track_caller]
    pub fn with_credentials_of(daemon: &Daemon, room: &Daemon) -> Self {
        let socket = daemon.buildkit_socket().expect("the managed buildkitd's socket");
        let home = daemon.directory().join("buildctl-home");
        fs::create_dir_all(home.join(".docker")).expect("home");
        let auth = STANDARD.encode(format!("any:{}", room.token()));
        let config = serde_json::json!({ "auths": { room.listen(): { "auth": auth } } });
        fs::write(home.join(".docker/config.json"), config.to_string()).expect("credentials");
        Self { address: format!("unix://{}", socket.display()), home }
    }

    /// Builds with the Dockerfile frontend. `options` are values of `--opt`; `output` is the value of `--output`.
    #[track_caller]
    pub fn build(&self, context: &Path, dockerfile: &Path, options: &[String], output: &str) -> Output {
        self.build_with(context, dockerfile, options, &["--output", output])
    }

    /// Builds like [`Self::build`], with further arguments of `buildctl build`.
    #[track_caller]
    pub fn build_with(&self, context: &Path, dockerfile: &Path, options: &[String], more: &[&str]) -> Output {
        let mut command = self.command();
        command.args(["build", "--progress", "plain", "--frontend", "dockerfile.v0"]);
        command.arg("--local").arg(format!("context={}", context.display()));
        command.arg("--local").arg(format!("dockerfile={}", dockerfile.display()));
        command.args(options.iter().flat_map(|option| ["--opt", option]));
        process::run(command.args(more), seconds(120))
    }

    /// Removes the contexts that BuildKit has received and that no build uses. BuildKit treats all contexts of buildctl
    /// as one: without this, the next transfer only updates its copy of the last context.
    #[track_caller]
    pub fn forget_contexts(&self) {
        process::run(self.command().args(["prune", "--filter", "type==source.local"]), seconds(60))
            .expect_code(0);
    }

    fn command(&self) -> Command {
        let mut command = Command::new("buildctl");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", &self.home);
        command.args(["--addr", &self.address]);
        command
    }
}
