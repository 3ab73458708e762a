//! File format of the lineages between two runs of the daemon.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::{LineageGeneration, LineageId, LineageLimits, LineageTable};

const MAGIC: &[u8; 18] = b"hearth-lineages-1\n";

#[derive(Debug, thiserror::Error)]
pub enum LineageFileError {
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not a file of lineages of this version, or damaged", .path.display())]
    Damaged { path: PathBuf },
}

impl LineageTable {
    /// Reads the file that [`save`](Self::save) wrote and deletes it, because it is outdated from here on.
    /// Without a file there are no lineages.
    pub fn consume(path: &Path, limits: LineageLimits) -> Result<Self, LineageFileError> {
        let failed = |source| LineageFileError::Io { path: path.to_owned(), source };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new(limits)),
            other => other.map_err(failed)?,
        };
        fs::remove_file(path).map_err(failed)?;
        // Makes the deletion survive a power failure: the file must not reappear.
        if let Some(parent) = path.parent() {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
        }
        let length = file.metadata().map_err(failed)?.len();
        let mut from =
            HashingStream { inner: BufReader::with_capacity(256 << 10, file), sum: blake3::Hasher::new() };
        match read(&mut from, length, limits) {
            Ok(Some(lineages)) => Ok(lineages),
            Ok(None) => Err(LineageFileError::Damaged { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(LineageFileError::Damaged { path: path.to_owned() })
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes the lineages for the next run. Nothing may be sent to BuildKit after this.
    pub fn save(&self, path: &Path) -> Result<(), LineageFileError> {
        let failed = |source| LineageFileError::Io { path: path.to_owned(), source };
        let dir = path.parent().unwrap_or_else(|| Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
        let inner = BufWriter::with_capacity(256 << 10, file.as_file_mut());
        let mut out = HashingStream { inner, sum: blake3::Hasher::new() };
        self.write(&mut out).map_err(failed)?;
        let sum = out.sum.finalize();
        out.inner.write_all(sum.as_bytes()).and_then(|()| out.inner.flush()).map_err(failed)?;
        drop(out);
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(MAGIC)?;
        out.write_all(&self.key)?;
        for number in [self.clock, self.generations.len() as u64] {
            out.write_all(&number.to_le_bytes())?;
        }
        for (id, generation) in &self.generations {
            let LineageGeneration { name, used, version, files, largest_scan } = generation;
            out.write_all(&id.0)?;
            out.write_all(version)?;
            for number in [*name, *used, *largest_scan as u64, files.len() as u64] {
                out.write_all(&number.to_le_bytes())?;
            }
            for (appearance, content) in files.iter() {
                out.write_all(&appearance.to_le_bytes())?;
                out.write_all(&content.to_le_bytes())?;
            }
        }
        Ok(())
    }
}

/// Returns `None` if the file is damaged.
fn read<R: Read>(
    from: &mut HashingStream<R>,
    length: u64,
    limits: LineageLimits,
) -> io::Result<Option<LineageTable>> {
    if &bytes::<18>(from)? != MAGIC {
        return Ok(None);
    }
    let mut lineages = LineageTable { key: bytes(from)?, ..LineageTable::new(limits) };
    lineages.clock = number(from)?;
    let count = number(from)?;
    for _ in 0..count {
        let id = LineageId(bytes(from)?);
        let version = bytes(from)?;
        let [name, used, largest_scan, files] = [number(from)?, number(from)?, number(from)?, number(from)?];
        // A damaged count must not exceed what the file can contain.
        if files > length / 16 {
            return Ok(None);
        }
        let mut generation = LineageGeneration { name, version, ..LineageGeneration::new(used) };
        generation.largest_scan = usize::try_from(largest_scan).unwrap_or_default();
        let pairs = (0..files).map(|_| Ok((number(from)?, number(from)?)));
        generation.files = pairs.collect::<io::Result<_>>()?;
        lineages.generations.insert(id, generation);
    }
    let sum: [u8; 32] = from.sum.finalize().into();
    Ok((bytes::<32>(from)? == sum).then_some(lineages))
}

fn bytes<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number(from: &mut impl Read) -> io::Result<u64> {
    bytes(from).map(u64::from_le_bytes)
}

/// Reader or writer that hashes all bytes that pass through.
struct HashingStream<T> {
    inner: T,
    sum: blake3::Hasher,
}

impl<R: Read> Read for HashingStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sum.update(&buffer[..count]);
        Ok(count)
    }
}

impl<W: Write> Write for HashingStream<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.sum.update(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
