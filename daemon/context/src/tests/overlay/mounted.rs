//! The same histories on a FUSE mount, and on an overlay of the kernel with the same layers.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_overlay::fuse;
use hearth_overlay::union::OverlayFs;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::Place;
use super::disk::Disk;
use super::operation::{Operation, Target, anything, making};

const CASES: u32 = 60;
const MOUNT_LIMIT: Duration = Duration::from_secs(5);

/// Unmounts on drop, also after a panic.
pub struct Point(PathBuf);

impl Point {
    pub fn fuse(directory: &Path, union: Arc<OverlayFs>) -> Self {
        fs::create_dir_all(directory).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let held = rustix::fs::open(directory, flags, Mode::empty()).unwrap();
        fuse::mount(union, &held, "hearth:test").expect("FUSE needs root and /dev/fuse");
        Self(directory.to_owned())
    }

    fn overlay(directory: &Path, place: &Place) -> Self {
        for path in [directory.to_owned(), place.path("overlay-upper"), place.path("overlay-work")] {
            fs::create_dir_all(path).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=on,redirect_dir=on",
            place.lower().display(),
            place.path("overlay-upper").display(),
            place.path("overlay-work").display()
        );
        let options = CString::new(options).unwrap();
        let start = Instant::now();
        loop {
            match rustix::mount::mount("overlay", directory, "overlay", MountFlags::empty(), &*options) {
                // An earlier mount uses the upper directory until all files that a process had open in it are
                // closed.
                Err(Errno::BUSY) if start.elapsed() < MOUNT_LIMIT => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                mounted => break mounted.expect("overlay mounts need root"),
            }
        }
        Self(directory.to_owned())
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.display());
        }
    }
}

fn case(lower: &[Operation], history: &[Operation]) -> Result<(), TestCaseError> {
    let place = Arc::new(Place::new());
    let mut below = Disk::new(place.lower());
    for operation in lower {
        let _ = below.apply(operation);
    }
    let untouched = below.tree();
    let (at, beside) = (place.path("fuse"), place.path("overlay"));
    let mut ours = Disk::new(at.clone());
    let mut point = Some(Point::fuse(&at, place.union()));
    let mut kernels = Disk::new(beside.clone());
    let mut other = Some(Point::overlay(&beside, &place));
    for operation in history {
        let (expected, found) = (kernels.apply(operation), ours.apply(operation));
        prop_assert_eq!(&found, &expected, "{:?}", operation);
        if matches!(operation, Operation::Reopen) {
            drop((point.take(), other.take()));
            point = Some(Point::fuse(&at, place.union()));
            other = Some(Point::overlay(&beside, &place));
        }
        if found.is_ok() {
            prop_assert_eq!(ours.tree(), kernels.tree(), "after {:?}", operation);
        }
    }
    drop((ours, kernels));
    drop((point, other));
    prop_assert_eq!(below.tree(), untouched, "the lower was changed");
    Ok(())
}

#[test]
fn a_mount_does_what_a_kernel_overlay_does() {
    let cases = std::env::var("UNION_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
    let config = ProptestConfig {
        cases,
        max_shrink_iters: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let strategy = (prop::collection::vec(making(), 0..20), prop::collection::vec(anything(), 1..30));
    TestRunner::new(config).run(&strategy, |(lower, history)| case(&lower, &history)).unwrap();
}
