//! `containerd.toml` of the daemon's own containerd: version 2 of the format, which 1.6 and 2.x accept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::supervise::settings_file;

/// Plugins that are never used here: Kubernetes, other snapshotters, directories outside of `dir`.
const DISABLED: [&str; 12] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
    "io.containerd.cri.v1.images",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.monitor.container.v1.restart",
    "io.containerd.image-verifier.v1.bindir",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.nri.v1.nri",
];

#[derive(Serialize)]
struct ContainerdSettings {
    version: u32,
    root: PathBuf,
    state: PathBuf,
    disabled_plugins: [&'static str; 12],
    grpc: ContainerdGrpcSettings,
    debug: ContainerdDebugSettings,
}

#[derive(Serialize)]
struct ContainerdGrpcSettings {
    address: PathBuf,
}

#[derive(Serialize)]
struct ContainerdDebugSettings {
    level: &'static str,
}

pub(super) fn write(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir.join("pipes"))?;
    let text = text(dir).map_err(io::Error::other)?;
    settings_file::store(&dir.join("containerd.toml"), &text)
}

fn text(dir: &Path) -> Result<String, toml::ser::Error> {
    toml::to_string(&ContainerdSettings {
        version: 2,
        root: dir.join("root"),
        state: dir.join("state"),
        disabled_plugins: DISABLED,
        grpc: ContainerdGrpcSettings { address: dir.join("containerd.sock") },
        debug: ContainerdDebugSettings { level: "warn" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_lies_below_its_directory() {
        insta::assert_snapshot!(text(Path::new("/s/containerd")).unwrap(), @r#"
        version = 2
        root = "/s/containerd/root"
        state = "/s/containerd/state"
        disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart", "io.containerd.monitor.container.v1.restart", "io.containerd.image-verifier.v1.bindir", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.nri.v1.nri"]

        [grpc]
        address = "/s/containerd/containerd.sock"

        [debug]
        level = "warn"
        "#);
    }
}
