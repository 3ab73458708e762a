//! Validation of the entries of a list, which come from an untrusted sender.

use super::{ListingError, path_order};
use crate::file_kind::FileKind;
use crate::identity::TreeNode;

/// Maximum length of a path or link target, in bytes. System calls accept 4096, but longer paths can be created
/// directory by directory.
const MAX_PATH: usize = 32 << 10;
const MAX_NAME: usize = 255;
/// Maximum size of an attribute value in bytes, the same as in Linux.
const MAX_XATTR_VALUE: usize = 64 << 10;
/// Maximum number of attributes: more names than Linux can list.
const MAX_XATTRS: usize = 4096;

/// Validator of entries, each on its own and against the entries before it.
#[derive(Debug, Default)]
pub(super) struct ListingChecker {
    last: Vec<u8>,
    /// Directories that contain the last entry, and the entry itself if it is a directory.
    open: Vec<Box<[u8]>>,
}

impl ListingChecker {
    pub(super) fn check(&mut self, node: &TreeNode<'_>) -> Result<(), ListingError> {
        let path = node.path;
        let wrong = |reason| Err(ListingError::Entry { path: display_path(path), reason });
        if let Some(reason) = bad_path(path) {
            return wrong(reason);
        }
        if node.mode & !0o7777 != 0 {
            return wrong("its mode has more than permission, setuid, setgid and sticky bits");
        }
        let (is_directory, keeps_xattrs) = match node.kind {
            FileKind::Directory => (true, true),
            FileKind::File(_) => (false, true),
            FileKind::Symlink(target) => {
                if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
                    return wrong("is not a valid link");
                }
                (false, false)
            }
            FileKind::HardLink(to) => {
                if let Some(reason) = bad_path(to) {
                    return wrong(reason);
                }
                (false, false)
            }
            FileKind::Special(_) => {
                return wrong("is neither a file nor a directory nor a link");
            }
        };
        if !node.xattrs.is_empty() {
            if !keeps_xattrs {
                return wrong("has attributes, which only files and directories have");
            }
            if let Some(reason) = bad_xattrs(node.xattrs) {
                return wrong(reason);
            }
        }
        self.check_order(path, is_directory)
    }

    fn check_order(&mut self, path: &[u8], is_directory: bool) -> Result<(), ListingError> {
        if !self.last.is_empty() && path_order(&self.last, path).is_ge() {
            return Err(ListingError::Order { path: display_path(path), before: display_path(&self.last) });
        }
        let parent = path.iter().rposition(|&byte| byte == b'/').map_or(&b""[..], |slash| &path[..slash]);
        while let Some(top) = self.open.last() {
            if parent.starts_with(top) && parent.get(top.len()).is_none_or(|&byte| byte == b'/') {
                break;
            }
            self.open.pop();
        }
        if self.open.last().map_or(&b""[..], |top| top) != parent {
            return Err(ListingError::NoParent { path: display_path(path) });
        }
        if is_directory {
            self.open.push(path.into());
        }
        self.last.clear();
        self.last.extend_from_slice(path);
        Ok(())
    }
}

fn bad_path(path: &[u8]) -> Option<&'static str> {
    if path.is_empty() {
        return Some("is not a path");
    }
    if path.len() > MAX_PATH {
        return Some("is too long");
    }
    if path.contains(&0) {
        return Some("contains a NUL byte");
    }
    if path[0] == b'/' {
        return Some("is absolute");
    }
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" => return Some("contains an empty name"),
            b"." | b".." => return Some("contains `.` or `..`"),
            name if name.len() > MAX_NAME => return Some("has a name of more than 255 bytes"),
            _ => {}
        }
    }
    None
}

fn bad_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Option<&'static str> {
    if xattrs.len() > MAX_XATTRS {
        return Some("has too many attributes");
    }
    if xattrs.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
        return Some("has attributes that are unsorted or repeated");
    }
    for (name, value) in xattrs {
        let kept = name == b"security.capability" || (name.starts_with(b"user.") && name.len() > 5);
        if !kept || name.len() > MAX_NAME || name.contains(&0) {
            return Some("has an attribute that is not kept: `security.capability` and `user.*` are");
        }
        if value.len() > MAX_XATTR_VALUE {
            return Some("has an attribute of more than 64 KiB");
        }
    }
    None
}

/// Returns a path for messages, with a limited length.
pub(super) fn display_path(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(&path[..path.len().min(300)]).into_owned();
    if path.len() > 300 { text + "..." } else { text }
}
