//! What a daemon that was killed left below its builders, on a disk that lacks the space: what its builds had not
//! finished cannot be told from the cache, so both go, the largest first.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::directory::{self, Directories};
use super::growth::{SHARE_OF_FLOOR, growth_since};
use crate::disk::{SpaceLevel, SpaceWatch};
use crate::task;

/// For a look at one builder.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// Removes caches of builders that were not stopped, until the floor is free again. To be called before anything else
/// uses the state directory.
pub async fn remove_leftovers(state: &Path, space: &SpaceWatch) -> io::Result<()> {
    if space.level() == SpaceLevel::Ample {
        return Ok(());
    }
    let (state, space) = (state.to_owned(), space.clone());
    task::blocking("leftovers of builders", move || remove(&state, &space)).await.map_err(io::Error::other)?
}

fn remove(state: &Path, space: &SpaceWatch) -> io::Result<()> {
    let (mut directories, records) = Directories::open(state)?;
    for stray in directories.strays()? {
        directory::remove(&stray)?;
    }
    let mut left = Vec::new();
    for record in records.into_iter().filter(|record| record.running) {
        let all = growth_since(&directories.of(&record.domain), SystemTime::UNIX_EPOCH, LOOK_LIMIT);
        left.push((all.bytes, record.domain));
    }
    left.sort();
    while let Some((bytes, domain)) = left.pop() {
        if space.now()?.level() == SpaceLevel::Ample || bytes < space.floor() / SHARE_OF_FLOOR {
            break;
        }
        tracing::error!(%domain, bytes, "the disk is full; removing the cache of a builder that was not stopped");
        if let Some(removed) = directories.forget(&domain)? {
            directory::remove(&removed)?;
        }
    }
    Ok(())
}
