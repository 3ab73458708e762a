//! Parser for the lines of an ignore file.

use super::IgnoreError;
use super::clean::clean;

/// Length in bytes from which on a line is refused: the buffer size of the scanner that Docker uses.
const LINE_LIMIT: usize = 64 * 1024;

/// Returns the patterns of an ignore file with their line numbers.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = Result<(usize, String), IgnoreError>> {
    let mut lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
    if lines.last().is_some_and(|last| last.is_empty()) {
        lines.pop();
    }
    lines.into_iter().enumerate().filter_map(|(index, line)| {
        if line.len() >= LINE_LIMIT {
            let pattern = format!("{}...", self::text(&line[..40]));
            return Some(Err(IgnoreError {
                line: Some(index + 1),
                pattern,
                reason: "the line is 64 KiB or longer",
            }));
        }
        // The byte order mark is stripped first, so a comment may follow it.
        let line = if index == 0 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        pattern(line).map(|pattern| Ok((index + 1, pattern)))
    })
}

/// Returns the cleaned pattern of a line, or `None` for a comment or a blank line. A `#` after blanks does not start
/// a comment.
fn pattern(line: &[u8]) -> Option<String> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.starts_with(b"#") {
        return None;
    }
    let line = text(line);
    let trimmed = line.trim();
    if trimmed.is_empty() {
        return None;
    }
    let (mark, rest) = match trimmed.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None => ("", trimmed),
    };
    if rest.is_empty() {
        return Some(mark.to_owned());
    }
    let cleaned = clean(rest);
    let relative = match cleaned.strip_prefix('/') {
        Some(relative) if !relative.is_empty() => relative,
        _ => &cleaned,
    };
    Some(format!("{mark}{relative}"))
}

/// Decodes a pattern with U+FFFD for each byte that is not UTF-8, as happens when patterns are sent to BuildKit as
/// JSON.
pub(super) fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}
