//! Monitor of the free space on the state directory's disk, which other modules watch in order to act when it runs out.
//!
//! ```text
//!  free >= floor              Ample    the reserve is allocated, once there is room for it above the floor
//!  free <  floor              Low      running builds that took the space are stopped (builders/reclaim.rs); logs and
//!                                      downloads are no longer kept; uploads and new builds are refused
//!  free <  floor / 4          Full     `/readyz` reports it
//!  free <  floor / 8                   the reserve, an eighth of the floor, is released, so that state, audit and
//!                                      removals still work
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use tokio::sync::watch;

use crate::model::component::ComponentStatus;
use crate::task;

/// Interval between two measurements. A disk that fills with one gigabyte per second is detected while the reserve
/// still exists.
const MEASURE_INTERVAL: Duration = Duration::from_millis(250);
/// Divisor of the floor: below this part the disk counts as full.
const EMERGENCY_PART: u64 = 4;
/// Divisor of the floor: size of the reserve, which is released when less than this is free. The disk still counts as
/// full then.
const RESERVE_PART: u64 = 8;
const MAX_RESERVE: u64 = 64 << 20;
const RESERVE_FILE: &str = "disk.reserve";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpaceLevel {
    Ample,
    Low,
    Full,
}

/// Free space of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeSpace {
    pub free: u64,
    /// Minimum that should stay free.
    pub floor: u64,
}

impl FreeSpace {
    pub fn of(directory: &Path, floor: u64) -> io::Result<Self> {
        let disk = rustix::fs::statvfs(directory)?;
        Ok(Self { free: disk.f_bavail.saturating_mul(disk.f_frsize), floor })
    }

    pub const fn level(self) -> SpaceLevel {
        if self.free >= self.floor {
            SpaceLevel::Ample
        } else if self.free >= self.floor / EMERGENCY_PART {
            SpaceLevel::Low
        } else {
            SpaceLevel::Full
        }
    }
}

/// Watch of the current level; cheap to clone.
#[derive(Clone, Debug)]
pub struct SpaceWatch {
    directory: PathBuf,
    seen: watch::Receiver<FreeSpace>,
}

impl SpaceWatch {
    /// Measures the file system of `directory`, releases the reserve if almost nothing is left, and keeps monitoring
    /// until the last clone is dropped.
    pub async fn start(directory: &Path, floor: u64) -> io::Result<Self> {
        let probe = SpaceProbe { directory: directory.to_owned(), floor };
        let (probe, first) = probe.measure().await;
        let first = first?;
        if first.level() == SpaceLevel::Full {
            tracing::error!(free = first.free, floor, "disk of the state directory is full");
        }
        let (sender, seen) = watch::channel(first);
        drop(task::spawn("disk space", space_loop(probe, sender)));
        Ok(Self { directory: directory.to_owned(), seen })
    }

    /// Creates a watch with a constant value.
    #[cfg(test)]
    pub fn fixed(free: u64, floor: u64) -> Self {
        let (_, seen) = watch::channel(FreeSpace { free, floor });
        Self { directory: PathBuf::from("/"), seen }
    }

    /// Returns the level of the last measurement.
    pub fn level(&self) -> SpaceLevel {
        self.seen.borrow().level()
    }

    /// Measures the free space now. Blocking.
    pub fn now(&self) -> io::Result<FreeSpace> {
        FreeSpace::of(&self.directory, self.floor())
    }

    pub fn floor(&self) -> u64 {
        self.seen.borrow().floor
    }

    /// Returns a receiver that is notified of each change of the level.
    pub fn changes(&self) -> watch::Receiver<FreeSpace> {
        self.seen.clone()
    }

    /// Returns when less than the floor is free; never, once the monitor has ended.
    pub async fn below_floor(&self) {
        let mut seen = self.seen.clone();
        if seen.wait_for(|space| space.level() > SpaceLevel::Ample).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when the disk is not full; never, once the monitor has ended while it was.
    pub async fn not_full(&self) {
        let mut seen = self.seen.clone();
        if seen.wait_for(|space| space.level() < SpaceLevel::Full).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    pub fn component(&self) -> ComponentStatus {
        let FreeSpace { free, floor } = *self.seen.borrow();
        let full = self.level() == SpaceLevel::Full;
        let detail = if full {
            format!(
                "the disk of the state directory is full: {free} bytes are free, and {floor} should be; free space, \
                 such as by removing files of room storage, services, images or builds"
            )
        } else {
            String::new()
        };
        ComponentStatus { name: "disk", ready: !full, detail }
    }
}

struct SpaceProbe {
    directory: PathBuf,
    floor: u64,
}

impl SpaceProbe {
    /// Measures once, on a blocking thread.
    async fn measure(self) -> (Self, io::Result<FreeSpace>) {
        let (directory, floor) = (self.directory.clone(), self.floor);
        let seen = task::blocking("disk space", move || {
            let space = FreeSpace::of(&directory, floor)?;
            update_reserve(&directory, space);
            Ok(space)
        });
        (self, seen.await.map_err(io::Error::other).flatten())
    }
}

async fn space_loop(mut probe: SpaceProbe, sender: watch::Sender<FreeSpace>) {
    let mut failed = false;
    while !sender.is_closed() {
        tokio::time::sleep(MEASURE_INTERVAL).await;
        let seen;
        (probe, seen) = probe.measure().await;
        match seen {
            Ok(space) => {
                failed = false;
                sender.send_if_modified(|known| update(known, space));
            }
            Err(error) if !std::mem::replace(&mut failed, true) => {
                tracing::warn!(%error, "failed to read the free space of the state directory");
            }
            Err(_) => {}
        }
    }
}

/// Updates the value, and reports whether the level has changed: only that wakes the watchers.
fn update(known: &mut FreeSpace, space: FreeSpace) -> bool {
    let changed = known.level() != space.level();
    *known = space;
    if changed {
        let FreeSpace { free, floor } = space;
        match space.level() {
            SpaceLevel::Ample => {
                tracing::info!(free, floor, "disk of the state directory has enough free space again");
            }
            SpaceLevel::Low => {
                tracing::warn!(free, floor, "disk of the state directory is low on free space");
            }
            SpaceLevel::Full => tracing::error!(free, floor, "disk of the state directory is full"),
        }
    }
    changed
}

/// Releases the reserve on a full disk, and allocates it if there is room for it. Blocking.
fn update_reserve(directory: &Path, space: FreeSpace) {
    let path = directory.join(RESERVE_FILE);
    let part = space.floor / RESERVE_PART;
    let bytes = part.min(MAX_RESERVE);
    match space.level() {
        SpaceLevel::Full if space.free < part => match fs::remove_file(&path) {
            Ok(()) => tracing::warn!("released the reserve of the state directory's disk"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(%error, "failed to release the reserve of the state directory's disk");
            }
        },
        SpaceLevel::Ample if bytes > 0 && space.free - space.floor > bytes && !path.exists() => {
            if let Err(error) = allocate(&path, bytes) {
                tracing::warn!(%error, "failed to allocate the reserve of the state directory's disk");
            }
        }
        _ => {}
    }
}

fn allocate(path: &Path, bytes: u64) -> io::Result<()> {
    let new = path.with_extension("new");
    let file = fs::File::create(&new)?;
    let allocated = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
    match allocated {
        // A file system without fallocate gets no reserve.
        Err(rustix::io::Errno::OPNOTSUPP) => fs::remove_file(&new),
        Err(error) => fs::remove_file(&new).and(Err(error.into())),
        Ok(()) => fs::rename(&new, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn levels_follow_the_floor() {
        let level = |free| FreeSpace { free, floor: 800 }.level();
        assert_eq!(
            [800, 799, 200, 199, 0].map(level),
            [SpaceLevel::Ample, SpaceLevel::Low, SpaceLevel::Low, SpaceLevel::Full, SpaceLevel::Full]
        );
        assert_eq!(FreeSpace { free: 0, floor: 0 }.level(), SpaceLevel::Ample, "no floor, no level");
    }

    #[test]
    fn the_reserve_is_released_on_a_full_disk_and_allocated_again_later() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = || fs::metadata(directory.path().join(RESERVE_FILE)).ok().map(|found| found.len());
        let floor = 16 * MIB;
        update_reserve(directory.path(), FreeSpace { free: floor + MIB, floor });
        assert_eq!(reserve(), None, "there is no room for it");
        update_reserve(directory.path(), FreeSpace { free: 2 * floor, floor });
        assert_eq!(reserve(), Some(2 * MIB));
        update_reserve(directory.path(), FreeSpace { free: floor / 2, floor });
        assert_eq!(reserve(), Some(2 * MIB));
        update_reserve(directory.path(), FreeSpace { free: 0, floor });
        assert_eq!(reserve(), None);
        update_reserve(directory.path(), FreeSpace { free: 2 * floor, floor });
        assert_eq!(reserve(), Some(2 * MIB));
    }
}
