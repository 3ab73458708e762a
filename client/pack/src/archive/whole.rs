use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes a file, which appears complete or not at all.
pub fn write_whole(path: &Path, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let mut temporary = tempfile::Builder::new()
        .prefix(".hearth-pack-")
        // The umask takes its part, as for any file a person makes.
        .permissions(mode)
        .tempfile_in(dir)?;
    let mut out = BufWriter::with_capacity(256 * 1024, temporary.as_file_mut());
    write(&mut out)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}
