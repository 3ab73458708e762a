use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::new_file::{self, NewFile};

/// Mode of a user's file before the umask is applied.
const FILE_MODE: u32 = 0o666;

/// Writes a file atomically: it appears complete or not at all.
pub fn write_atomically(
    path: &Path,
    write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let dir = new_file::parent(path);
    let new = NewFile::create(dir, FILE_MODE)?;
    let mut out = BufWriter::with_capacity(256 * 1024, new.file());
    write(&mut out)?;
    out.flush()?;
    drop(out);
    new.file().sync_all()?;
    new.persist(path)?;
    File::open(dir)?.sync_all()
}
