//! Queries of the kernel's mount table.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use hearth_overlay::fuse::FILE_SYSTEM;

/// Returns the mount points at or below a directory, in the order of mounting.
pub fn mount_points_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let points =
        table.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    let points = points.map(|point| PathBuf::from(OsString::from_vec(unescaped(point))));
    Ok(points.filter(|point| point.starts_with(directory)).collect())
}

/// Reports whether a context with this source is mounted on the directory. Other mounts must not be touched.
pub(super) fn is_context_mounted(directory: &Path, source: &str) -> bool {
    // The directory itself cannot be queried: a dead mount does not answer.
    let table = match fs::read("/proc/self/mountinfo") {
        Ok(table) => table,
        Err(error) => {
            tracing::warn!(%error, "failed to read the mount table");
            return false;
        }
    };
    table.split(|&byte| byte == b'\n').any(|line| is_mount(line, directory, source))
}

/// `36 35 98:0 /root /point options [optional fields] - type source super-options`
fn is_mount(line: &[u8], directory: &Path, source: &str) -> bool {
    let mut fields = line.split(|&byte| byte == b' ');
    let Some(point) = fields.nth(4) else { return false };
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Path::new(OsStr::from_bytes(&unescaped(point))) == directory
        && rest.next() == Some(FILE_SYSTEM.as_bytes())
        && rest.next() == Some(source.as_bytes())
}

/// Decodes octal escapes such as `\040`, which stand for spaces and similar characters.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let digits = text.get(at + 1..at + 4).filter(|_| text[at] == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(text[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_ours_by_place_type_and_source() {
        let line = br"36 35 0:98 / /mnt/a\040b rw,nosuid shared:1 - fuse.hearth hearth:0123 rw,user_id=0";
        assert!(is_mount(line, Path::new("/mnt/a b"), "hearth:0123"));
        assert!(!is_mount(line, Path::new("/mnt/a"), "hearth:0123"));
        assert!(!is_mount(line, Path::new("/mnt/a b"), "hearth:0124"));
        let other = br"36 35 0:98 / /mnt/a rw - tmpfs hearth:0123 rw";
        assert!(!is_mount(other, Path::new("/mnt/a"), "hearth:0123"));
        assert!(!is_mount(b"", Path::new("/"), "hearth:0123"));
    }
}
