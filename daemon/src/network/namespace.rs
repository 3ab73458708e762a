//! Network namespaces, each bind-mounted at a file that the runtime of the instance opens.
//!
//! A thread that has entered a namespace cannot be used for anything else: each operation runs on a thread of its own,
//! of which only the socket remains. After a reboot the file is a regular one, which the file system type shows (that
//! of a namespace is `nsfs`).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::netlink::NetlinkSocket;
use crate::task;

const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Maximum number of mounts on one file. Normally there is one; a daemon that was killed between two steps leaves more.
const MAX_STACKED_MOUNTS: usize = 16;

/// IPv6 is disabled, because the room has only IPv4 addresses; and a service may listen on port 80 as any user, as in
/// Docker.
const NAMESPACE_SETTINGS: [(&str, &str); 3] = [
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"),
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
];

/// Creates a namespace and binds it to `file` once it is complete.
pub(super) fn create(file: &Path) -> io::Result<NetlinkSocket> {
    File::options().create(true).truncate(false).write(true).open(file)?;
    task::on_own_thread("netns", || {
        // SAFETY: only the network namespace of this thread changes, which ends with this closure.
        #[expect(unsafe_code, reason = "rustix marks every unshare, for the sake of the file table")]
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        configure()?;
        let socket = NetlinkSocket::open()?;
        rustix::mount::mount_bind("/proc/thread-self/ns/net", file)?;
        Ok(socket)
    })?
}

/// Applies the settings of every namespace to that of the calling thread; called inside [`within`].
pub(super) fn configure() -> io::Result<()> {
    NAMESPACE_SETTINGS.iter().try_for_each(|(path, value)| set(Path::new(path), value))
}

/// Opens a netlink socket in the namespace at `file`.
pub(super) fn open(file: &Path) -> io::Result<NetlinkSocket> {
    within(file, NetlinkSocket::open)?
}

/// Runs `work` inside the namespace.
pub(super) fn within<T: Send>(file: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = File::open(file)?;
    task::on_own_thread("netns", || {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(work())
    })?
}

/// Reports whether there is a namespace at `file`.
pub(super) fn is_namespace(file: &Path) -> io::Result<bool> {
    match rustix::fs::statfs(file) {
        Ok(stat) => Ok(u64::try_from(stat.f_type) == Ok(NSFS_MAGIC)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Unmounts the namespace, which then ends with its last process. Does nothing if there is none.
pub(super) fn remove(file: &Path) -> io::Result<()> {
    for _ in 0..MAX_STACKED_MOUNTS {
        match rustix::mount::unmount(file, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // The file is not mounted, or does not exist.
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    // Removing the file also removes copies of the mount in other mount namespaces (buildkitd's).
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Sets a kernel setting; a missing one counts as disabled.
pub(super) fn set(path: &Path, value: &str) -> io::Result<()> {
    match fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}
