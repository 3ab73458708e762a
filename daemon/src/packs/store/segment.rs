//! The two files of a segment: the concatenated frames, and the rows that point into them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::rows::{IndexRow, ROW_SIZE, RowKind};

/// Size in bytes from which on a segment is full.
pub(super) const SEGMENT_FULL_SIZE: u32 = 64 << 20;

pub(super) fn content_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}.content"))
}

fn rows_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}.rows"))
}

/// Content file of a segment, the length of its content in bytes, and its rows.
pub(super) type ReopenedSegment = (Arc<File>, u32, Vec<IndexRow>);

/// Opens a segment of an earlier run, truncates content that no row points to, and returns its rows. If the segment
/// has no rows or no content file, removes its files and returns `None`.
pub(super) fn reopen(directory: &Path, number: u32) -> io::Result<Option<ReopenedSegment>> {
    let rows = read_rows(directory, number)?;
    let content = content_path(directory, number);
    let file = match OpenOptions::new().read(true).write(true).open(&content) {
        Ok(file) if !rows.is_empty() => file,
        Ok(_) => return remove_files(directory, number).map(|()| None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return remove_files(directory, number).map(|()| None);
        }
        Err(error) => return Err(error),
    };
    let in_file = rows.iter().filter(|row| row.kind != RowKind::Owner);
    let end = in_file.map(|row| row.place.frame.saturating_add(row.place.length)).max().unwrap_or(0);
    let length = file.metadata()?.len();
    if length > u64::from(end) {
        file.set_len(end.into())?;
    }
    // This store never writes rows past the end of the file. Reading such content fails, and it is then sent again.
    Ok(Some((Arc::new(file), end, rows)))
}

/// Reads the rows of a segment from disk, up to the first damaged one.
pub(super) fn read_rows(directory: &Path, number: u32) -> io::Result<Vec<IndexRow>> {
    let mut bytes = Vec::new();
    match File::open(rows_path(directory, number)) {
        Ok(mut file) => file.read_to_end(&mut bytes).map(|_| ())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let whole = bytes.chunks_exact(ROW_SIZE).map_while(|row| IndexRow::decode(row.try_into().ok()?));
    Ok(whole.collect())
}

pub(super) fn remove_files(directory: &Path, number: u32) -> io::Result<()> {
    // The rows are removed first: content without rows is removed at the next start.
    for path in [rows_path(directory, number), content_path(directory, number)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Writer of the segment that is being appended to.
#[derive(Debug)]
pub(super) struct ContentSegmentWriter {
    pub number: u32,
    pub content: Arc<File>,
    /// Offset of the next frame in the content file.
    pub next_offset: u32,
    rows: File,
    /// Rows whose content is written but may not be durable yet.
    pending_rows: Vec<IndexRow>,
    /// True if content was written since the last sync.
    is_dirty: bool,
}

impl ContentSegmentWriter {
    pub(super) fn create(directory: &Path, number: u32) -> io::Result<Self> {
        let new = |path| OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let content = Arc::new(new(content_path(directory, number))?);
        let rows = new(rows_path(directory, number))?;
        File::open(directory)?.sync_all()?;
        Ok(Self { number, content, next_offset: 0, rows, pending_rows: Vec::new(), is_dirty: false })
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

    pub(super) fn queue_row(&mut self, row: IndexRow) {
        self.pending_rows.push(row);
    }

    /// Makes written content and then its rows durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_dirty {
            self.content.sync_data()?;
            self.is_dirty = false;
        }
        if self.pending_rows.is_empty() {
            return Ok(());
        }
        let bytes: Vec<u8> = self.pending_rows.iter().flat_map(IndexRow::encode).collect();
        let before = self.rows.metadata()?.len();
        if let Err(error) = self.rows.write_all(&bytes) {
            // A truncated row would hide the rows after it.
            self.rows.set_len(before)?;
            io::Seek::seek(&mut self.rows, io::SeekFrom::Start(before))?;
            return Err(error);
        }
        self.rows.sync_data()?;
        // A new vector instead of `clear` frees the memory between uploads.
        self.pending_rows = Vec::new();
        Ok(())
    }
}
