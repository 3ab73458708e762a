//! Cleanup of the files that a killed daemon left below its builders, when the disk lacks space: unfinished build
//! output cannot be distinguished from the cache, so both are removed, largest first.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::directory::{self, BuilderDirectories};
use super::growth::{MIN_GROWTH_DIVISOR, growth_since};
use crate::disk::{SpaceLevel, SpaceWatch};
use crate::task;

/// Time limit for scanning one builder.
const SCAN_LIMIT: Duration = Duration::from_secs(3);

/// Removes the caches of builders that were not stopped, until the floor is free again. Must be called before anything
/// else uses the state directory.
pub async fn remove_leftovers(state: &Path, space: &SpaceWatch) -> io::Result<()> {
    if space.level() == SpaceLevel::Ample {
        return Ok(());
    }
    let (state, space) = (state.to_owned(), space.clone());
    task::blocking("leftovers of builders", move || remove(&state, &space)).await.map_err(io::Error::other)?
}

fn remove(state: &Path, space: &SpaceWatch) -> io::Result<()> {
    let (mut directories, records) = BuilderDirectories::open(state)?;
    for stray in directories.orphaned_directories()? {
        directory::remove_directory(&stray)?;
    }
    let mut left = Vec::new();
    for record in records.into_iter().filter(|record| record.running) {
        let all = growth_since(&directories.path_of(&record.domain), SystemTime::UNIX_EPOCH, SCAN_LIMIT);
        left.push((all.bytes, record.domain));
    }
    left.sort();
    while let Some((bytes, domain)) = left.pop() {
        if space.now()?.level() == SpaceLevel::Ample || bytes < space.floor() / MIN_GROWTH_DIVISOR {
            break;
        }
        tracing::warn!(
            builder.domain = %domain,
            bytes,
            "disk is full; removing the cache of a builder that was not stopped"
        );
        if let Some(removed) = directories.detach(&domain)? {
            directory::remove_directory(&removed)?;
        }
    }
    Ok(())
}
