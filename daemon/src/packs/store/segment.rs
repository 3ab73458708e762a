//! Segments: files of concatenated frames, to which the index points.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::index::{ContentIndex, ContentSegment};
use crate::database::DatabaseError;

/// Size in bytes from which on a segment is full.
pub(super) const SEGMENT_FULL_SIZE: u32 = 64 << 20;

fn content_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}.content"))
}

/// Returns the numbers of the files in `directory` with this extension, in ascending order.
pub(super) fn numbers(directory: &Path, extension: &str) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        numbers.extend(stem.filter(|_: &u32| path.extension().is_some_and(|found| found == extension)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn remove(directory: &Path, number: u32) -> io::Result<()> {
    remove_file(&content_path(directory, number))
}

impl ContentIndex {
    /// Opens the segments of an earlier run: removes those that no row points to, truncates the others after the last
    /// byte that one points to, and forgets the content of segments that are gone.
    pub(super) fn open_segments(&mut self, directory: &Path) -> io::Result<()> {
        let mut ends = self.segment_ends()?;
        for number in numbers(directory, "content")? {
            self.next_segment = number + 1;
            let Some(end) = ends.remove(&number) else {
                remove(directory, number)?;
                continue;
            };
            let file = OpenOptions::new().read(true).write(true).open(content_path(directory, number))?;
            if file.metadata()?.len() > u64::from(end) {
                file.set_len(end.into())?;
            }
            // This store never writes rows past the end of the file. Reading such content fails, and it is then sent
            // again.
            self.segments.insert(number, ContentSegment { content: Arc::new(file), length: end });
        }
        for gone in ends.into_keys() {
            self.next_segment = self.next_segment.max(gone + 1);
            self.forget_segment(gone)?;
        }
        Ok(())
    }

    pub(super) fn segment_ends(&self) -> Result<BTreeMap<u32, u32>, DatabaseError> {
        let sql = "SELECT segment, max(start + length) FROM frames GROUP BY segment";
        self.query(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    fn forget_segment(&mut self, number: u32) -> Result<(), DatabaseError> {
        self.begin()?;
        let contents = "DELETE FROM contents WHERE frame IN (SELECT id FROM frames WHERE segment = ?1)";
        self.database.execute(contents, [number])?;
        self.database.execute("DELETE FROM frames WHERE segment = ?1", [number])?;
        self.commit()
    }
}

/// Writer of the segment that is being appended to.
#[derive(Debug)]
pub(super) struct ContentSegmentWriter {
    pub number: u32,
    pub content: Arc<File>,
    /// Offset of the next frame in the content file.
    pub next_offset: u32,
    /// True if content was written since the last sync.
    is_dirty: bool,
}

impl ContentSegmentWriter {
    pub(super) fn create(directory: &Path, number: u32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let content = Arc::new(options.open(content_path(directory, number))?);
        File::open(directory)?.sync_all()?;
        Ok(Self { number, content, next_offset: 0, is_dirty: false })
    }

    pub(super) fn is_full(&self) -> bool {
        self.next_offset >= SEGMENT_FULL_SIZE
    }

    /// Appends a frame and returns its offset. After an error the segment is unchanged.
    pub(super) fn append_frame(&mut self, frame: &[u8]) -> io::Result<u32> {
        let start = self.next_offset;
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let end = start.checked_add(length).ok_or(io::ErrorKind::FileTooLarge)?;
        if let Err(error) = self.content.write_all_at(frame, start.into()) {
            // Truncating frees the space of a partly written frame.
            let _ = self.content.set_len(start.into());
            return Err(error);
        }
        self.next_offset = end;
        self.is_dirty = true;
        Ok(start)
    }

    /// Makes written content durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_dirty {
            self.content.sync_data()?;
            self.is_dirty = false;
        }
        Ok(())
    }
}
