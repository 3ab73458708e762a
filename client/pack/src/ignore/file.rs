//! The lines of an ignore file.

use super::IgnoreError;
use super::clean::clean;

/// A line as long as this is refused; it is the buffer of the scanner that Docker reads with.
const LINE_LIMIT: usize = 64 * 1024;

/// The patterns of an ignore file with the numbers of their lines.
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
        // The mark is stripped before anything is looked at, so a comment may follow it.
        let line = if index == 0 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        pattern(line).map(|pattern| Ok((index + 1, pattern)))
    })
}

/// The pattern on a line, cleaned; none for a comment or a blank line. A `#` after blanks is no
/// comment.
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

/// Patterns travel to BuildKit as JSON, where each byte that is not UTF-8 becomes U+FFFD.
pub(super) fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}
