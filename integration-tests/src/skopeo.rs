//! Runs skopeo, a registry client that is independent of Hearth.

use std::path::Path;
use std::process::Command;

use crate::daemon::scratch;
use crate::image::Image;
use crate::process::{self, Output};
use crate::wait::seconds;

/// Runs skopeo without the trust policy of this machine and without the credentials of its user.
#[track_caller]
pub fn skopeo(arguments: &[&str]) -> Output {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy").args(arguments).env("HOME", scratch()).env("TMPDIR", scratch());
    process::run(command.env_remove("REGISTRY_AUTH_FILE").env_remove("DOCKER_CONFIG"), seconds(90))
}

/// Copies an image of the registry into a fresh layout directory, and reads it.
#[track_caller]
pub fn pull(registry: &str, token: &str, name: &str) -> Image {
    let directory = tempfile::Builder::new().prefix("pulled-").tempdir_in(scratch()).expect("directory");
    let output = pull_to(registry, token, name, directory.path());
    assert_eq!(output.code, 0, "skopeo copy of {name}\n{output}");
    Image::from_layout(directory.path())
}

/// Copies an image of the registry into a layout directory.
#[track_caller]
pub fn pull_to(registry: &str, token: &str, name: &str, directory: &Path) -> Output {
    let source = format!("docker://{registry}/{name}");
    let target = format!("oci:{}:pulled", directory.display());
    let credentials = format!("any:{token}");
    // Otherwise, plain layers are compressed on the way.
    let exact = "--preserve-digests";
    skopeo(&["copy", exact, "--src-tls-verify=false", "--src-creds", &credentials, &source, &target])
}
