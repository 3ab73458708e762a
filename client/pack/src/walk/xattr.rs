//! Extended attributes that an image keeps: file capabilities and user attributes. Others (ACLs, labels) belong to
//! the machine.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::io::Errno;

/// Names and values of extended attributes, sorted by name.
pub type EntryXattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Returns the kept attributes of an open file or directory.
pub(super) fn of(fd: impl AsFd) -> rustix::io::Result<EntryXattrs> {
    let fd = fd.as_fd();
    kept(|buffer| rustix::fs::flistxattr(fd, buffer), |name, buffer| rustix::fs::fgetxattr(fd, name, buffer))
}

/// Returns the kept attributes of the file at `path`, without following a link.
pub(super) fn at(path: &Path) -> rustix::io::Result<EntryXattrs> {
    kept(
        |buffer| rustix::fs::llistxattr(path, buffer),
        |name, buffer| rustix::fs::lgetxattr(path, name, buffer),
    )
}

fn kept(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<EntryXattrs> {
    let mut small = [0u8; 256];
    let large;
    let names = match list(&mut small) {
        Ok(size) => &small[..size],
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {
            large = grown(&list)?;
            large.as_slice()
        }
        Err(errno) => return Err(errno),
    };
    let mut kept = Vec::new();
    for name in names.split(|&byte| byte == 0) {
        if name == b"security.capability" || name.starts_with(b"user.") {
            match grown(|buffer| get(name, buffer)) {
                Err(Errno::NODATA) => {}
                value => kept.push((name.to_owned(), value?)),
            }
        }
    }
    kept.sort_unstable();
    Ok(kept)
}

/// Maximum size of a list of names and of a value in Linux, in bytes.
const LIMIT: usize = 64 * 1024;

fn grown(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0u8; LIMIT];
    let size = call(&mut value)?;
    value.truncate(size);
    value.shrink_to_fit();
    Ok(value)
}
