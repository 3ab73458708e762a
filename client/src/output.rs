//! Standard output carries data; everything else goes to standard error. With `--json` the data is one JSON
//! document, and with `--progress json` each line on standard error is a JSON object.

mod items;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use serde::Serialize;

use crate::error::Failure;

pub(crate) use items::end_json_items_with;
pub use items::{JsonItemWriter, end_json_items, json_item};

/// True when the lines on standard error are JSON objects.
static NOTES_ARE_JSON: AtomicBool = AtomicBool::new(false);

/// Prints one line of data.
pub fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{text}\n").as_bytes())
}

/// Prints data as it is.
pub fn bytes(data: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(data)?;
    Ok(out.flush()?)
}

/// Prints one JSON value as data.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&to_json(value))
}

pub fn to_json(value: &impl Serialize) -> String {
    // These types have string keys and no failing serializers.
    serde_json::to_string_pretty(value)
        .unwrap_or_else(|error| format!("{{\"error\":{{\"message\":\"{error}\"}}}}"))
}

/// Prints a message for the user to standard error. A write error is ignored.
pub fn note(text: &str) {
    if notes_are_json() {
        progress_object(&serde_json::json!({"event": "note", "message": text}));
    } else {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// Makes standard error a stream of JSON objects, of which messages and errors are a part.
pub fn print_notes_as_json() {
    NOTES_ARE_JSON.store(true, Ordering::Relaxed);
}

pub fn notes_are_json() -> bool {
    NOTES_ARE_JSON.load(Ordering::Relaxed)
}

/// Reports whether standard error is a terminal on which lines can be updated in place.
pub fn is_live_terminal() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Prints one object of the stream of `--progress json`. A write error is ignored.
pub fn progress_object(object: &serde_json::Value) {
    let _ = writeln!(io::stderr().lock(), "{object}");
}

/// Prints a table. Columns are as wide as their widest cell; the last one is not padded.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    line(format_table(head, rows).trim_end_matches('\n'))
}

fn format_table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut written = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            written.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(written.trim_end());
        text.push('\n');
    }
    text
}

/// Escapes control characters in text from a daemon or a file name, so that it is safe for a terminal.
pub fn printable(text: &str) -> String {
    let printable =
        |c: char| if c.is_control() && c != '\t' { c.escape_default().collect() } else { c.to_string() };
    text.chars().map(printable).collect()
}

/// Returns the name of a step without what only BuildKit sees: the address of the daemon's registry, and the digest
/// behind the name of an image.
pub fn step_name(name: &str) -> String {
    let words: Vec<&str> = name.split(' ').collect();
    let is_loopback = |word: &&str| word.starts_with("127.0.0.1:") || word.starts_with("[::1]:");
    if !words.iter().any(is_loopback) {
        return printable(name);
    }
    let shown = words.into_iter().map(|word| {
        let Some((_, image)) = word.split_once('/').filter(|_| is_loopback(&word)) else { return word };
        image.split_once('@').map_or(image, |(image, _)| image)
    });
    printable(&shown.collect::<Vec<_>>().join(" "))
}

pub fn size(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

/// Formats a count: `1 file`, `2 files`.
pub fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Formats how long ago a time was, in the largest unit that fits.
pub fn age(time: Option<&prost_types::Timestamp>, now: Timestamp) -> String {
    let Some(time) = timestamp(time) else { return "-".to_owned() };
    let seconds = now.as_second().saturating_sub(time.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s ago"),
        120..7200 => format!("{}m ago", seconds / 60),
        7200..172_800 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// Converts from the wire. Returns `None` when the time is missing or out of range.
pub fn timestamp(time: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    let time = time?;
    Timestamp::new(time.seconds, time.nanos).ok()
}

/// Checks before any work starts that a file can be made at `path`: its directory exists, and it is no directory.
pub fn check_new_file(flag: &str, path: &Path) -> Result<(), Failure> {
    if path.is_dir() || path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        let message = format!("{flag} `{}` is a directory; name a file", path.display());
        return Err(Failure::usage(message).hint(format!("such as {}", path.join("FILE").display())));
    }
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    match directory.map(std::fs::metadata) {
        None => Ok(()),
        Some(Ok(found)) if found.is_dir() => Ok(()),
        Some(found) => {
            let directory = directory.unwrap_or(path).display();
            let (reason, hint) = match found {
                Ok(_) => ("is not a directory".to_owned(), "name a file in a directory".to_owned()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    ("does not exist".to_owned(), format!("make it first: mkdir -p {directory}"))
                }
                Err(error) => {
                    (format!("cannot be used: {error}"), "name a file in another directory".to_owned())
                }
            };
            Err(Failure::usage(format!("{flag} {}: `{directory}` {reason}", path.display())).hint(hint))
        }
    }
}

/// Writes a file atomically, with the default mode of new files (0666 without the umask).
pub fn write_file(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let mut file = AtomicFile::create(path, 0o666)?;
    file.file_mut().write_all(content).map_err(|error| Failure::local("write", path, &error))?;
    file.commit()
}

/// A file that gets its name when it is complete. Dropping it before [`AtomicFile::commit`] removes the
/// temporary file.
pub struct AtomicFile {
    file: AtomicFileTarget,
    path: std::path::PathBuf,
}

/// Destination of the content.
enum AtomicFileTarget {
    Temporary(tempfile::NamedTempFile),
    /// A device, a pipe or a socket, which is written in place because a rename would replace it.
    Special(std::fs::File),
}

impl AtomicFile {
    /// Creates the file. `mode` is subject to the umask.
    pub fn create(path: &Path, mode: u32) -> Result<Self, Failure> {
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
            let opened = std::fs::File::options().write(true).open(path);
            let file = opened.map_err(|error| Failure::local("write", path, &error))?;
            return Ok(Self { file: AtomicFileTarget::Special(file), path: path.to_owned() });
        }
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        let temporary = tempfile::Builder::new()
            .prefix(".hearth-")
            .permissions(permissions)
            .tempfile_in(dir)
            .map_err(|error| Failure::local("write", path, &error))?;
        Ok(Self { file: AtomicFileTarget::Temporary(temporary), path: path.to_owned() })
    }

    pub fn file_mut(&mut self) -> &mut std::fs::File {
        match &mut self.file {
            AtomicFileTarget::Temporary(temporary) => temporary.as_file_mut(),
            AtomicFileTarget::Special(file) => file,
        }
    }

    /// Renames the temporary file to its final name.
    pub fn commit(self) -> Result<(), Failure> {
        let Self { file: AtomicFileTarget::Temporary(temporary), path } = self else { return Ok(()) };
        let failed = |error: &io::Error| Failure::local("write", &path, error);
        temporary.as_file().sync_all().map_err(|error| failed(&error))?;
        temporary.persist(&path).map_err(|error| failed(&error.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_its_columns_up_without_trailing_blanks() {
        let rows = [
            vec!["a".to_owned(), "long cell".to_owned(), "1".to_owned()],
            vec!["bcd".into(), "x".into(), String::new()],
        ];
        assert_eq!(
            format_table(&["ID", "TAG", "N"], &rows),
            "ID   TAG        N\na    long cell  1\nbcd  x\n"
        );
    }

    #[test]
    fn an_image_has_its_own_name() {
        assert_eq!(
            step_name("[stage 1/2] FROM 127.0.0.1:41015/team/base:1@sha256:9b2c"),
            "[stage 1/2] FROM team/base:1"
        );
        for name in ["[1/2] FROM busybox@sha256:9b2c", "[2/2] RUN curl http://127.0.0.1:80/a"] {
            assert_eq!(step_name(name), name);
        }
    }

    #[test]
    fn a_pipe_is_written_to_and_stays_a_pipe() {
        use std::os::unix::fs::FileTypeExt as _;
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || std::fs::read(pipe).unwrap())
        };
        write_file(&pipe, b"content").unwrap();
        assert_eq!(reader.join().unwrap(), b"content");
        assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }

    #[test]
    fn a_file_that_cannot_be_made_is_a_usage_error_that_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        for (path, reason) in [
            ("new/dir/x.tar", "new/dir` does not exist"),
            ("file/x.tar", "file` is not a directory"),
            ("", "` is a directory; name a file"),
            ("new/", "new/` is a directory; name a file"),
            ("..", "..` is a directory; name a file"),
        ] {
            let failure = check_new_file("-o", &dir.path().join(path)).unwrap_err();
            assert_eq!(failure.kind, crate::error::FailureKind::Usage);
            assert!(failure.detail.message.contains(reason), "{path}: {}", failure.detail.message);
        }
        for path in ["new.tar", "file"] {
            check_new_file("-o", &dir.path().join(path)).unwrap();
        }
        check_new_file("-o", Path::new("x.tar")).unwrap();
    }

    #[test]
    fn ages_use_one_unit() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        for (seconds, shown) in
            [(999_990, "10s ago"), (996_000, "66m ago"), (900_000, "27h ago"), (1, "11d ago")]
        {
            assert_eq!(age(at(seconds).as_ref(), now), shown);
        }
        assert_eq!(age(None, now), "-");
    }

    #[test]
    fn control_characters_reach_no_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}
