//! The two files of a segment: frames one after the other, and the rows that point into them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::rows::{Kind, ROW, Row};

/// A segment that is this long takes no more.
pub(super) const FULL: u32 = 64 << 20;

pub(super) fn content_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}.content"))
}

fn rows_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}.rows"))
}

/// A segment's content, where that ends, and its rows.
pub(super) type Reopened = (Arc<File>, u32, Vec<Row>);

/// Opens a segment of an earlier run, cuts off what no row points to, and gives its rows. None when
/// it has none: then its files are gone.
pub(super) fn reopen(directory: &Path, number: u32) -> io::Result<Option<Reopened>> {
    let rows = rows(directory, number)?;
    let content = content_path(directory, number);
    let file = match OpenOptions::new().read(true).write(true).open(&content) {
        Ok(file) if !rows.is_empty() => file,
        Ok(_) => return remove(directory, number).map(|()| None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return remove(directory, number).map(|()| None);
        }
        Err(error) => return Err(error),
    };
    let in_file = rows.iter().filter(|row| row.kind != Kind::Owner);
    let end = in_file.map(|row| row.place.frame.saturating_add(row.place.length)).max().unwrap_or(0);
    let length = file.metadata()?.len();
    if length > u64::from(end) {
        file.set_len(end.into())?;
    }
    // Rows past the end of the file cannot be of ours; reading them fails, and their content is then sent again.
    Ok(Some((Arc::new(file), end, rows)))
}

/// The rows of a segment as they are on disk.
pub(super) fn rows(directory: &Path, number: u32) -> io::Result<Vec<Row>> {
    let mut bytes = Vec::new();
    match File::open(rows_path(directory, number)) {
        Ok(mut file) => file.read_to_end(&mut bytes).map(|_| ())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let whole = bytes.chunks_exact(ROW).map_while(|row| Row::decode(row.try_into().ok()?));
    Ok(whole.collect())
}

pub(super) fn remove(directory: &Path, number: u32) -> io::Result<()> {
    // Rows first: content without rows is cut off at the next start.
    for path in [rows_path(directory, number), content_path(directory, number)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Writer {
    pub number: u32,
    pub content: Arc<File>,
    /// Where the next frame goes.
    pub end: u32,
    rows: File,
    /// Rows whose content is written but perhaps not durable.
    waiting: Vec<Row>,
    /// Whether content was written since it was last made durable.
    written: bool,
}

impl Writer {
    pub(super) fn create(directory: &Path, number: u32) -> io::Result<Self> {
        let new = |path| OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let content = Arc::new(new(content_path(directory, number))?);
        let rows = new(rows_path(directory, number))?;
        File::open(directory)?.sync_all()?;
        Ok(Self { number, content, end: 0, rows, waiting: Vec::new(), written: false })
    }

    pub(super) fn is_full(&self) -> bool {
        self.end >= FULL
    }

    /// Appends a frame; gives where it begins. After an error the segment is as it was before.
    pub(super) fn frame(&mut self, frame: &[u8]) -> io::Result<u32> {
        let start = self.end;
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let end = start.checked_add(length).ok_or(io::ErrorKind::FileTooLarge)?;
        if let Err(error) = self.content.write_all_at(frame, start.into()) {
            // What was written of it frees its space again.
            let _ = self.content.set_len(start.into());
            return Err(error);
        }
        self.end = end;
        self.written = true;
        Ok(start)
    }

    pub(super) fn row(&mut self, row: Row) {
        self.waiting.push(row);
    }

    /// Makes durable what was written: content, then rows.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.written {
            self.content.sync_data()?;
            self.written = false;
        }
        if self.waiting.is_empty() {
            return Ok(());
        }
        let bytes: Vec<u8> = self.waiting.iter().flat_map(Row::encode).collect();
        let before = self.rows.metadata()?.len();
        if let Err(error) = self.rows.write_all(&bytes) {
            // A row that is cut off would hide those after it.
            self.rows.set_len(before)?;
            io::Seek::seek(&mut self.rows, io::SeekFrom::Start(before))?;
            return Err(error);
        }
        self.rows.sync_data()?;
        // Not cleared: the room of many rows is not needed between uploads.
        self.waiting = Vec::new();
        Ok(())
    }
}
