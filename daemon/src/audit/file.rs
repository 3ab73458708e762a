//! Files of the audit trail: JSON lines, appended. When a file is full, one with the next number follows; when
//! there are four, the full ones are joined into one, in which each caller has a share ([`fair`]). Damaged lines
//! are read as a record with their size.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::{AuditOutcome, AuditQuery, AuditRecord, MAX_RECORDS, fair};

/// Maximum length in bytes of a line that is read back, which is more than any line that is written.
const MAX_LINE_BYTES: u64 = 16 * 1024;

/// Bounds of the records that are kept.
#[derive(Clone, Copy, Debug)]
pub struct FileLimits {
    /// Maximum bytes of the records of changes; records of denials have a quarter of it.
    pub bytes: u64,
    pub age: Duration,
}

pub(super) struct TrailFiles {
    changes: TrailFileSeries,
    denied: TrailFileSeries,
}

/// The files of one kind of records, newest last.
struct TrailFileSeries {
    directory: PathBuf,
    name: &'static str,
    newest: u64,
    file: File,
    size: u64,
    /// Maximum size of one file in bytes.
    file_bytes: u64,
    age: Duration,
}

/// Maximum number of files. A joined file may have the size of two.
const MAX_FILES: u64 = 4;

impl TrailFiles {
    pub(super) fn open(directory: &Path, limits: FileLimits) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let FileLimits { bytes, age } = limits;
        Ok(Self {
            changes: TrailFileSeries::open(directory, "changes", bytes / MAX_FILES, age)?,
            denied: TrailFileSeries::open(directory, "denied", bytes / MAX_FILES / 4, age)?,
        })
    }

    pub(super) fn write(&mut self, records: &[AuditRecord]) -> io::Result<()> {
        let is_denied = |record: &&AuditRecord| record.outcome == AuditOutcome::Denied;
        self.denied.append(records.iter().filter(is_denied))?;
        self.changes.append(records.iter().filter(|record| !is_denied(record)))
    }

    /// Returns the newest records that match the query, oldest first.
    pub(super) fn read(&self, query: &AuditQuery) -> io::Result<Vec<AuditRecord>> {
        let limit = query.limit.clamp(1, MAX_RECORDS);
        let mut found = self.denied.read(query, limit)?;
        if !query.denied_only {
            found.extend(self.changes.read(query, limit)?);
        }
        found.sort_by_key(|record| record.at);
        let excess = found.len().saturating_sub(limit);
        found.drain(..excess);
        Ok(found)
    }
}

impl TrailFileSeries {
    fn open(directory: &Path, name: &'static str, file_bytes: u64, age: Duration) -> io::Result<Self> {
        let newest = numbers(directory, name)?.pop().unwrap_or(1);
        let (file, size) = open(&path(directory, name, newest))?;
        let mut series = Self { directory: directory.to_owned(), name, newest, file, size, file_bytes, age };
        series.compact()?;
        Ok(series)
    }

    fn append<'a>(&mut self, records: impl Iterator<Item = &'a AuditRecord>) -> io::Result<()> {
        let mut lines = Vec::new();
        for record in records {
            let before = lines.len();
            serde_json::to_writer(&mut lines, record)?;
            lines.push(b'\n');
            let size = self.size + lines.len() as u64;
            if size > self.file_bytes && size > (lines.len() - before) as u64 {
                let last = lines.split_off(before);
                self.write(&lines)?;
                lines = last;
                (self.file, self.size) = open(&path(&self.directory, self.name, self.newest + 1))?;
                self.newest += 1;
                self.compact()?;
            }
        }
        self.write(&lines)
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(lines) {
            // Removes a partly written batch, which would otherwise corrupt the next record. If this fails too,
            // that record is skipped together with it when the files are read.
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += lines.len() as u64;
        Ok(())
    }

    /// Removes files that exceed the maximum age, and joins the full ones when there are too many.
    fn compact(&mut self) -> io::Result<()> {
        let now = SystemTime::now();
        let mut full = Vec::new();
        for number in numbers(&self.directory, self.name)? {
            let path = path(&self.directory, self.name, number);
            let written = fs::metadata(&path)?.modified()?;
            let old = now.duration_since(written).is_ok_and(|age| age > self.age);
            if number == self.newest {
                continue;
            }
            if old {
                fs::remove_file(&path)?;
            } else {
                full.push(path);
            }
        }
        if (full.len() as u64) < MAX_FILES - 1 {
            return Ok(());
        }
        let limit = self.file_bytes * (MAX_FILES - 2);
        fair::join_files(&full, limit, self.oldest())
    }

    /// Time before which records are too old.
    fn oldest(&self) -> Timestamp {
        Timestamp::now().checked_sub(self.age).unwrap_or(Timestamp::MIN)
    }

    fn read(&self, query: &AuditQuery, limit: usize) -> io::Result<Vec<AuditRecord>> {
        let oldest = self.oldest();
        let mut found = VecDeque::with_capacity(limit.min(256));
        for number in numbers(&self.directory, self.name)? {
            for_each_record(&path(&self.directory, self.name, number), |record, _| {
                if record.at >= oldest && query.matches(&record) {
                    if found.len() == limit {
                        found.pop_front();
                    }
                    found.push_back(record);
                }
                Ok(())
            })?;
        }
        Ok(found.into())
    }
}

/// Calls `each` for every record of a file, with its line. Damage is one record with its size, at the time of a record
/// beside it.
pub(super) fn for_each_record(
    path: &Path,
    mut each: impl FnMut(AuditRecord, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let tell_damage = |bytes: &mut usize, at: Timestamp, each: &mut dyn FnMut(AuditRecord, &[u8]) -> _| {
        if *bytes == 0 {
            return Ok(());
        }
        let record = AuditRecord::damage(at, std::mem::take(bytes));
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        each(record, &line)
    };
    let mut lines = BufReader::new(File::open(path)?);
    let (mut line, mut damaged, mut last_at) = (Vec::new(), 0, None);
    loop {
        line.clear();
        if lines.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return tell_damage(&mut damaged, last_at.unwrap_or_else(Timestamp::now), &mut each);
        }
        match serde_json::from_slice::<AuditRecord>(&line) {
            Ok(record) => {
                tell_damage(&mut damaged, last_at.unwrap_or(record.at), &mut each)?;
                last_at = Some(record.at);
                each(record, &line)?;
            }
            Err(_) => damaged += line.len(),
        }
    }
}

fn path(directory: &Path, name: &str, number: u64) -> PathBuf {
    directory.join(format!("{name}-{number}.jsonl"))
}

/// Returns the sorted numbers of the files of one kind.
fn numbers(directory: &Path, name: &str) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let file = entry?.file_name();
        let number: Option<u64> = file.to_str().and_then(|file| {
            file.strip_prefix(name)?.strip_prefix('-')?.strip_suffix(".jsonl")?.parse().ok()
        });
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Opens a file for appending, and returns its size. A last line that a crash cut short is removed: nobody was told
/// that it is stored.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(size.saturating_sub(MAX_LINE_BYTES)))?;
    (&file).take(MAX_LINE_BYTES).read_to_end(&mut tail)?;
    let cut = tail.iter().rev().take_while(|byte| **byte != b'\n').count();
    if cut == 0 {
        return Ok((file, size));
    }
    if cut == tail.len() && size > MAX_LINE_BYTES {
        // That is no line of this daemon. Its end keeps the next record apart from it.
        file.write_all(b"\n")?;
        return Ok((file, size + 1));
    }
    tracing::warn!(path = %path.display(), bytes = cut, "the last record of this audit file was incomplete after a crash; removed it");
    let kept = size - cut as u64;
    file.set_len(kept)?;
    Ok((file, kept))
}
