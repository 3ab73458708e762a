//! How the C library's allocator is set up: to give memory back.
//!
//! A daemon works in bursts on many threads. glibc makes up to eight arenas a core for them, and keeps in each what a
//! burst left; builds of a 6,200-file tree and a pack of it left 26 MB in an idle hearthd. With these settings it is
//! 10 MB, the same as during the builds, and no allocator has to be brought along (jemalloc with its purging thread:
//! 7 to 9 MB, mimalloc: 17 to 24 MB).

/// Called first, before there is a second thread.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "mallopt has no safe form")]
pub fn set_up() {
    /// Threads share this many arenas.
    const ARENAS: i32 = 2;
    /// Free memory at the end of the heap beyond this goes back to the system at once.
    const TRIM_BYTES: i32 = 256 << 10;
    /// Blocks of this size on have pages of their own. It lies above the size of the buffers that files are sent
    /// from, which come and go too often for that; to set it also keeps glibc from raising it by itself.
    const MMAP_BYTES: i32 = 512 << 10;
    for (name, value) in [
        (libc::M_ARENA_MAX, ARENAS),
        (libc::M_TRIM_THRESHOLD, TRIM_BYTES),
        (libc::M_MMAP_THRESHOLD, MMAP_BYTES),
    ] {
        // SAFETY: mallopt sets numbers of the allocator and touches no memory of ours. A value that it refuses
        // leaves the default, which is harmless.
        unsafe { libc::mallopt(name, value) };
    }
}

/// Other C libraries have no arenas to keep memory in.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn set_up() {}
