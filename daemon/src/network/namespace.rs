//! Network namespaces, each bound to a file that whoever runs the instance opens.
//!
//! A thread that has entered one cannot be used for anything else: each gets its own, and only that thread's socket
//! stays. After a reboot the file is there and plain, which its file system tells (a namespace's is `nsfs`).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::netlink::Netlink;
use crate::task;

const NSFS_MAGIC: u64 = 0x6e73_6673;
/// One file has one mount; more are from a daemon that was killed between two steps.
const MOUNTS: usize = 16;

/// IPv6 stays off, since the room has addresses of IPv4 only; and a service may listen on port 80 as any user, as
/// it may under Docker.
const SETTINGS: [(&str, &str); 3] = [
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"),
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
];

/// Makes a namespace and binds it to `file`: there is none at the file before it is complete.
pub(super) fn make(file: &Path) -> io::Result<Netlink> {
    File::options().create(true).truncate(false).write(true).open(file)?;
    task::apart("netns", || {
        // SAFETY: only the network namespace of this thread changes, which ends with this closure.
        #[expect(unsafe_code, reason = "rustix marks every unshare, for the sake of the file table")]
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        configure()?;
        let socket = Netlink::open()?;
        rustix::mount::mount_bind("/proc/thread-self/ns/net", file)?;
        Ok(socket)
    })?
}

/// Sets what every namespace of ours has, in the one that the calling thread is in: to be called by [`within`].
pub(super) fn configure() -> io::Result<()> {
    SETTINGS.iter().try_for_each(|(path, value)| set(Path::new(path), value))
}

/// A socket in the namespace of `file`.
pub(super) fn open(file: &Path) -> io::Result<Netlink> {
    within(file, Netlink::open)?
}

/// Runs `work` inside.
pub(super) fn within<T: Send>(file: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = File::open(file)?;
    task::apart("netns", || {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(work())
    })?
}

/// Whether there is a namespace at `file`.
pub(super) fn is_at(file: &Path) -> io::Result<bool> {
    match rustix::fs::statfs(file) {
        Ok(stat) => Ok(u64::try_from(stat.f_type) == Ok(NSFS_MAGIC)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Lets go of it, so that it ends with its last process. Nothing to do where there is none.
pub(super) fn remove(file: &Path) -> io::Result<()> {
    for _ in 0..MOUNTS {
        match rustix::mount::unmount(file, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not mounted, not there.
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    // Copies of the mount in other mount namespaces (buildkitd's) go with the file.
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Sets a kernel setting; one that the kernel does not have is as good as off.
pub(super) fn set(path: &Path, value: &str) -> io::Result<()> {
    match fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}
