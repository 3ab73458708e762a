//! `docker`, on machines that have it and an engine behind it.

use std::process::Command;
use std::time::{Duration, Instant};

use integration_tests::process::{self, Output};
use integration_tests::service::PORT;
use integration_tests::skopeo::skopeo;
use integration_tests::wait::seconds;

use super::super::side::{Bench, free_port};

const LIMIT: Duration = seconds(120);

pub struct Docker(());

impl Docker {
    /// Finds the engine; `None` when no engine answers or the command does not exist.
    pub fn find() -> Option<Self> {
        let asked =
            Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output().ok()?;
        (asked.status.success() && !asked.stdout.trim_ascii().is_empty()).then_some(Self(()))
    }

    fn docker(&self, arguments: &[&str]) -> Output {
        let output = process::run(Command::new("docker").args(arguments), LIMIT);
        output.expect_code(0);
        output
    }

    /// Loads the room's image of this name into the engine; returns its name there.
    pub fn load(&self, bench: &Bench, image: &str) -> String {
        let here = format!("hearth-bench/{image}");
        let directory = tempfile::tempdir_in(&bench.work).expect("a directory");
        let shown = directory.path().to_str().expect("UTF-8");
        let (files, archive) = (format!("dir:{shown}/image"), format!("{shown}/docker.tar"));
        let credentials = format!("any:{}", bench.daemon.token());
        let source = format!("docker://{}/{image}", bench.daemon.listen());
        // Two steps: an archive for the engine cannot have zstd layers, and skopeo refuses to convert them in the same
        // copy.
        let flags = ["copy", "--dest-decompress", "--src-tls-verify=false", "--src-creds", &credentials];
        skopeo(&[&flags[..], &[&source, &files]].concat()).expect_code(0);
        skopeo(&["copy", &files, &format!("docker-archive:{archive}:{here}")]).expect_code(0);
        self.docker(&["load", "--input", &archive]);
        here
    }

    /// Measures the time from the start of the command to the first 200 response.
    pub fn run(&self, image: &str, name: &str) -> Duration {
        let port = free_port();
        let publish = format!("127.0.0.1:{port}:{PORT}");
        let start = Instant::now();
        self.docker(&["run", "-d", "-p", &publish, "--name", &container(name), image]);
        super::first_page(&format!("127.0.0.1:{port}"), "docker.test");
        start.elapsed()
    }

    pub fn remove(&self, name: &str) {
        self.docker(&["stop", "-t", "0", &container(name)]);
        self.docker(&["rm", &container(name)]);
    }

    pub fn forget(&self, image: &str) {
        self.docker(&["rmi", image]);
    }
}

fn container(name: &str) -> String {
    format!("hearth-bench-{name}")
}
