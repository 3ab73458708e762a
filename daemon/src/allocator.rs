//! How the C library's allocator is set up: to give memory back.
//!
//! A daemon works in bursts on many threads. glibc makes up to eight arenas a core for them, and keeps in each what a
//! burst left; builds of a 6,200-file tree and a pack of it left 26 MB in an idle hearthd. With these settings it is
//! 10 MB, the same as during the builds, and no allocator has to be brought along (jemalloc with its purging thread:
//! 7 to 9 MB, mimalloc: 17 to 24 MB).

use std::time::Duration;

/// Between two looks at how much memory is resident.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Growth since the last time after which free memory is given back. Pages in the middle of the heap stay resident
/// otherwise: uploads of 58,000 files left 100 MB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const GROWTH_BYTES: u64 = 4 << 20;
/// In ticks of the kernel, 100 a second: a daemon that took less since the last look has nothing to do.
const BUSY_TICKS: u64 = 10;

/// Gives memory back when a burst has left more of it than before, for as long as the daemon runs: while it grows, and
/// once more when it is over. What a burst frees at its end shows in no growth; it was 8 of 48 MB.
pub async fn give_back() {
    let (mut kept, mut ticks, mut was_busy) = (0, 0, true);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = used_ticks().unwrap_or(ticks);
        let is_busy = now.saturating_sub(ticks) >= BUSY_TICKS;
        kept = trim(kept, was_busy && !is_busy);
        (ticks, was_busy) = (now, is_busy);
    }
}

/// Takes what was resident after the last time, and gives what is now.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "malloc_trim has no safe form")]
fn trim(kept: u64, is_over: bool) -> u64 {
    let resident = resident().unwrap_or(kept);
    if resident < kept + GROWTH_BYTES && !is_over {
        return kept.min(resident);
    }
    // SAFETY: it takes no pointer, locks the allocator, and frees only pages that hold no allocation.
    unsafe { libc::malloc_trim(0) };
    self::resident().unwrap_or(resident)
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim(kept: u64, _is_over: bool) -> u64 {
    kept
}

/// Processor time of all threads, proc_pid_stat(5); none where the kernel does not say.
fn used_ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name before it may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

/// Bytes; none where the kernel does not say.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

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
