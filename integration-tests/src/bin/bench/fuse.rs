//! The FUSE mount of a context, compared with the file system that it shows and with a kernel overlay.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::process;
use integration_tests::sources::noise;
use integration_tests::wait::seconds;
use rustix::mount::UnmountFlags;

use super::figures::Figure;
use super::side::{Bench, installed};
use super::trees;
use super::turns::in_turns;

const FILE_BYTES: usize = 400 << 20;

pub fn chapter(bench: &Bench) -> Vec<Figure> {
    let names = ["sequential read of 400 MB through FUSE", "`find` over 58,000 files through FUSE"];
    if !bench.has_verb(&["context", "mount"]) {
        return names.map(|name| Figure::not_measured(name, "`hearth context mount` is not there")).into();
    }
    let room = bench.daemon.room_files().join("fuse");
    trees::copy(&bench.large().path, &room);
    fs::write(room.join("sequential"), noise(1, FILE_BYTES)).expect("file");
    rustix::fs::sync();
    let fuse = Mounted::fuse(bench);
    let overlay = Mounted::overlay(bench, &room);
    let read = in_turns(|_| || read_all(&fuse.point), |_| || read_all(&room));
    let walk = |point: &Path| {
        let mut find = Command::new("find");
        process::run(find.arg(point).args(["-type", "f", "-size", "+1"]), seconds(120)).expect_code(0);
    };
    let find = in_turns(|_| || walk(&fuse.point), |_| || walk(&overlay.point));
    drop(overlay);
    let peer = Mounted::fuse_overlayfs(bench, &room);
    let beside_peer = peer.as_ref().map(|peer| in_turns(|_| || walk(&fuse.point), |_| || walk(&peer.point)));
    let [sequential, find_name] = names;
    drop((fuse, peer));
    let _ = fs::remove_dir_all(room);
    let peer_name = format!("{find_name}, beside another union in user space");
    vec![
        // 0.8 of the speed is 1.25 of the time.
        Figure::ratio(
            format!("{sequential} (passthrough where the kernel has it)"),
            read,
            "the backing files",
            Some(1.25),
        ),
        Figure::ratio(find_name, find, "a kernel overlay of the same", Some(3.0)),
        match beside_peer {
            Some(find) => Figure::ratio(peer_name, find, "fuse-overlayfs", None),
            None => Figure::not_measured(
                peer_name,
                "fuse-overlayfs is not installed (apt-get install fuse-overlayfs)",
            ),
        },
    ]
}

fn read_all(directory: &Path) {
    let mut file = File::open(directory.join("sequential")).expect("open");
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut buffer).expect("read") {
            0 => break,
            count => total += count,
        }
    }
    assert_eq!(total, FILE_BYTES);
}

/// A mount; dropping it unmounts.
struct Mounted {
    point: PathBuf,
    /// Command that asks the daemon to unmount; only for a mount of the daemon.
    unmount: Option<Command>,
}

impl Mounted {
    fn fuse(bench: &Bench) -> Self {
        let point = bench.work.join("fuse-mount");
        fs::create_dir_all(&point).expect("mount point");
        let shown = point.to_str().expect("UTF-8");
        bench.hearth(&["context", "mount", shown, "--mount-room-path", "fuse:/context:ro"]);
        assert!(point.join("sequential").exists(), "the context is mounted");
        let mut unmount = bench.daemon.client();
        unmount.args(["context", "unmount", shown]);
        Self { unmount: Some(unmount), point }
    }

    fn overlay(bench: &Bench, lower: &Path) -> Self {
        let (point, options) = Self::union(bench, lower);
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&point);
        process::run(&mut mount, seconds(10)).expect_code(0);
        Self { point, unmount: None }
    }

    /// Mounts with fuse-overlayfs; `None` when it is not installed. Its process ends with the mount.
    fn fuse_overlayfs(bench: &Bench, lower: &Path) -> Option<Self> {
        let program = installed("fuse-overlayfs")?;
        let (point, options) = Self::union(bench, lower);
        process::run(Command::new(program).args(["-o", &options]).arg(&point), seconds(10)).expect_code(0);
        Some(Self { point, unmount: None })
    }

    /// Returns a mount point, and options that unite a directory with an empty one.
    fn union(bench: &Bench, lower: &Path) -> (PathBuf, String) {
        let point = bench.work.join("overlay-mount");
        let empty = bench.work.join("overlay-empty");
        fs::create_dir_all(&point).expect("mount point");
        fs::create_dir_all(&empty).expect("directory");
        (point, format!("lowerdir={}:{}", lower.display(), empty.display()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(unmount) = &mut self.unmount {
            let _ = unmount.output();
        }
        // Unmounts a kernel mount, or one that the daemon failed to unmount.
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
    }
}
