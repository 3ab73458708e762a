//! Cache of content hashes, keyed by the result of `stat`.
//!
//! A write updates a file's change time, which cannot be set at will. But time stamps are coarse, so a second write
//! soon after the first may leave the same time. As git does with its index, a hash is cached only if the file's
//! change time was older than that granularity when the read began: any later write then changes the time. Younger
//! files are hashed again next time.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::ContentHash;
use crate::sorted_map::SortedMap;

/// Coarsest granularity of change times on file systems that store fractions of seconds, in nanoseconds.
const CTIME_STEP: i64 = 20_000_000;
/// Granularity on file systems that store whole seconds only, in nanoseconds.
const COARSE_CTIME_STEP: i64 = 2_000_000_000;

/// Reports whether a write after `now` is certain to give a file with this change time another one. Both are
/// nanoseconds since 1970.
pub const fn is_settled(changed: i64, now: i64) -> bool {
    settles_in(changed, now) == 0
}

/// Returns the nanoseconds from `now` until [`is_settled`] holds, 0 if it already does.
pub const fn settles_in(changed: i64, now: i64) -> u64 {
    let step = if changed % 1_000_000_000 == 0 { COARSE_CTIME_STEP } else { CTIME_STEP };
    let age = now.saturating_sub(changed);
    if age > step { 0 } else { step.saturating_sub(age).saturating_add(1).cast_unsigned() }
}

/// Metadata that identifies a file and its state without reading it. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStamp {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub modified: i64,
    pub changed: i64,
}

impl FileStamp {
    pub fn of(stat: &rustix::fs::Stat) -> Self {
        let time = |seconds: i64, nanoseconds| {
            let nanoseconds = i64::try_from(nanoseconds).unwrap_or_default();
            seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
        };
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: time(stat.st_mtime, stat.st_mtime_nsec),
            changed: time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct HashRecord {
    size: u64,
    modified: i64,
    changed: i64,
    hash: ContentHash,
    bare: bool,
    /// Round in which the file was last looked up.
    round: u32,
}

/// Cached result for a file or directory in one state. A change of its attributes is another state, because it
/// updates the change time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedHash {
    /// Hash of the content; for a directory, the hash of empty content.
    pub hash: ContentHash,
    /// True if the file has none of the attributes that an image keeps. False means unknown.
    pub bare: bool,
}

/// Content hashes by device and inode: 80 bytes for each file.
#[derive(Debug, Default)]
pub struct HashCache {
    files: SortedMap<(u64, u64), HashRecord>,
    round: u32,
    changed: bool,
}

/// Error of reading or writing a hash cache file.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The file is damaged or of another version. The cache is rebuilt by hashing again.
    #[error("{}: not a hash cache of this version, or damaged", .path.display())]
    Damaged { path: PathBuf },
}

const MAGIC: &[u8; 16] = b"hearth-hashes-2\n";
/// Size of a record in bytes: five numbers, the hash, and the `bare` flag.
const RECORD_SIZE: usize = 5 * 8 + 32 + 1;
/// Number of records that are read or written at a time.
const RECORDS_PER_READ: usize = 4096;
/// Maximum number of cached files: 160 MB of memory.
const MAX_FILES: usize = 2_000_000;

impl HashCache {
    /// Returns the hash of a file in exactly this state.
    pub fn get(&mut self, stamp: &FileStamp) -> Option<ContentHash> {
        self.lookup(stamp).map(|remembered| remembered.hash)
    }

    /// Returns the cached result for a file in exactly this state.
    pub fn lookup(&mut self, stamp: &FileStamp) -> Option<CachedHash> {
        let known = self.files.get_mut(&(stamp.device, stamp.inode))?;
        let same = (known.size, known.modified, known.changed) == (stamp.size, stamp.modified, stamp.changed);
        known.round = self.round;
        same.then_some(CachedHash { hash: known.hash, bare: known.bare })
    }

    /// Caches the hash of content that was completely read while the file was in this state, beginning at `read_at`
    /// (nanoseconds since 1970). Does nothing if the file was too young then.
    pub fn insert_hash(&mut self, stamp: &FileStamp, read_at: i64, hash: ContentHash) {
        self.insert(stamp, read_at, CachedHash { hash, bare: false });
    }

    /// Caches the hash and whether the file has attributes. Conditions as for [`insert_hash`](Self::insert_hash).
    pub fn insert(&mut self, stamp: &FileStamp, read_at: i64, found: CachedHash) {
        if !is_settled(stamp.changed, read_at) || self.files.len() >= MAX_FILES {
            return;
        }
        let &FileStamp { device, inode, size, modified, changed } = stamp;
        let CachedHash { hash, bare } = found;
        let known = HashRecord { size, modified, changed, hash, bare, round: self.round };
        self.files.insert((device, inode), known);
        self.changed = true;
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Reports whether there are changes that [`save`](Self::save) has not written.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Begins a new round, and drops files that were not looked up in the last `rounds` rounds.
    pub fn next_round(&mut self, rounds: u32) {
        let oldest = self.round.saturating_sub(rounds.saturating_sub(1));
        let before = self.files.len();
        self.files.retain(|_, known| known.round >= oldest);
        self.changed |= self.files.len() < before;
        self.round = self.round.saturating_add(1);
    }

    /// Reads a file that [`save`](Self::save) wrote. A missing file gives an empty cache.
    pub fn load(path: &Path) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Io { path: path.to_owned(), source };
        let damaged = || CacheError::Damaged { path: path.to_owned() };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(failed)?,
        };
        let length = file.metadata().map_err(failed)?.len();
        let body = length.checked_sub(MAGIC.len() as u64 + 32).ok_or_else(damaged)?;
        if body % RECORD_SIZE as u64 != 0 || body / RECORD_SIZE as u64 > MAX_FILES as u64 {
            return Err(damaged());
        }
        let count = usize::try_from(body / RECORD_SIZE as u64).map_err(|_| damaged())?;
        let mut from = file;
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic).map_err(failed)?;
        if &magic != MAGIC {
            return Err(damaged());
        }
        let mut files = Vec::with_capacity(count);
        let mut sum = blake3::Hasher::new();
        let mut piece = vec![0; count.min(RECORDS_PER_READ) * RECORD_SIZE];
        let mut left = count;
        while left > 0 {
            let piece = &mut piece[..left.min(RECORDS_PER_READ) * RECORD_SIZE];
            from.read_exact(piece).map_err(failed)?;
            sum.update(piece);
            left -= piece.len() / RECORD_SIZE;
            files.extend(piece.as_chunks().0.iter().map(decode));
        }
        let mut expected = [0; 32];
        from.read_exact(&mut expected).map_err(failed)?;
        if *sum.finalize().as_bytes() != expected {
            return Err(damaged());
        }
        Ok(Self { files: files.into_iter().collect(), round: 1, changed: false })
    }

    /// Writes the cache atomically.
    pub fn save(&mut self, path: &Path) -> Result<(), CacheError> {
        let failed = |source| CacheError::Io { path: path.to_owned(), source };
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
        let out = file.as_file_mut();
        let mut sum = blake3::Hasher::new();
        out.write_all(MAGIC).map_err(failed)?;
        let mut piece = Vec::with_capacity(self.files.len().min(RECORDS_PER_READ) * RECORD_SIZE);
        let mut files = self.files.iter().peekable();
        while files.peek().is_some() {
            piece.clear();
            for (key, known) in files.by_ref().take(RECORDS_PER_READ) {
                piece.extend_from_slice(&encode(*key, known));
            }
            sum.update(&piece);
            out.write_all(&piece).map_err(failed)?;
        }
        out.write_all(sum.finalize().as_bytes()).map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        self.changed = false;
        Ok(())
    }
}

fn encode((device, inode): (u64, u64), known: &HashRecord) -> [u8; RECORD_SIZE] {
    let mut record = [0; RECORD_SIZE];
    let numbers = [device, inode, known.size, known.modified.cast_unsigned(), known.changed.cast_unsigned()];
    for (place, number) in record.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    record[40..72].copy_from_slice(known.hash.as_bytes());
    record[72] = known.bare.into();
    record
}

fn decode(record: &[u8; RECORD_SIZE]) -> ((u64, u64), HashRecord) {
    let number = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&record[index * 8..index * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    let mut hash = [0; 32];
    hash.copy_from_slice(&record[40..72]);
    let known = HashRecord {
        size: number(2),
        modified: number(3).cast_signed(),
        changed: number(4).cast_signed(),
        hash: ContentHash::from_bytes(hash),
        bare: record[72] == 1,
        round: 0,
    };
    ((number(0), number(1)), known)
}
