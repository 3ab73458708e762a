//! Compacts a full trail: the caller with the most records loses its own oldest ones first, so that nobody
//! displaces the records of others.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use super::{AuditRecord, file};
use jiff::Timestamp;

/// Returns the caller, or the source address for calls without a token.
fn owner(record: AuditRecord) -> String {
    if record.caller.is_empty() { record.source } else { record.caller }
}

/// Joins files, sorted from the oldest to the newest, into the newest of them, keeping at most `bytes` of
/// records and none from before `oldest`. After a crash during the join, some records may exist twice.
pub(super) fn join_files(files: &[PathBuf], bytes: u64, oldest: Timestamp) -> io::Result<()> {
    let Some((newest, older)) = files.split_last() else { return Ok(()) };
    let mut sizes: HashMap<String, u64> = HashMap::new();
    for_each_record(files, oldest, |owner, line| {
        *sizes.entry(owner).or_default() += line.len() as u64;
        Ok(())
    })?;
    let share = share(sizes.values().copied().collect(), bytes);
    // From here on `sizes` holds each owner's excess bytes.
    sizes.values_mut().for_each(|size| *size = size.saturating_sub(share));
    let draft = newest.with_extension("new");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    let mut joined = BufWriter::new(file);
    for_each_record(files, oldest, |owner, line| {
        match sizes.get_mut(&owner).filter(|excess| **excess > 0) {
            Some(excess) => *excess = excess.saturating_sub(line.len() as u64),
            None => joined.write_all(line)?,
        }
        Ok(())
    })?;
    joined.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()?;
    fs::rename(&draft, newest)?;
    older.iter().try_for_each(fs::remove_file)
}

/// Maximum size per owner that keeps the total within `bytes`.
fn share(mut sizes: Vec<u64>, bytes: u64) -> u64 {
    sizes.sort_unstable();
    let (mut left, mut owners) = (bytes, sizes.len() as u64);
    for size in sizes {
        if size > left / owners {
            return left / owners;
        }
        left -= size;
        owners -= 1;
    }
    u64::MAX
}

/// Calls `each` for every whole line, with the owner of the record.
fn for_each_record(
    files: &[PathBuf],
    oldest: Timestamp,
    mut each: impl FnMut(String, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    files.iter().try_for_each(|path| {
        file::for_each_record(path, |record, line| {
            if line.ends_with(b"\n") && record.at >= oldest { each(owner(record), line) } else { Ok(()) }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn whoever_has_little_keeps_it_and_the_others_share_the_rest_alike() {
        assert_eq!(share(vec![10, 20], 100), u64::MAX);
        assert_eq!(share(vec![10, 500], 100), 90);
        assert_eq!(share(vec![300, 10, 500], 100), 45);
        assert_eq!(share(vec![300; 4], 100), 25);
        assert_eq!(share(Vec::new(), 100), u64::MAX);
    }
}
