//! Setup of the C library's allocator, so that it returns free memory to the system.
//!
//! A daemon works in bursts on many threads. glibc creates up to eight arenas per core for them, and each keeps what a
//! burst left; builds of a 6,200-file tree and a pack of it left 26 MB in an idle hearthd. With these settings it is 10
//! MB, the same as during the builds, and no other allocator is needed (jemalloc with its purging thread: 7 to 9 MB,
//! mimalloc: 17 to 24 MB).

use std::time::Duration;

/// Interval between two measurements of resident memory.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Growth since the last trim after which free memory is returned. Free pages in the middle of the heap stay resident
/// otherwise: uploads of 58,000 files left 100 MB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const GROWTH_BYTES: u64 = 4 << 20;
/// Threshold in kernel ticks, 100 a second: a daemon that used less processor time since the last measurement counts as
/// idle.
const BUSY_TICKS: u64 = 10;

/// Returns free memory to the system as long as the daemon runs: while resident memory grows, and once more when a
/// burst of work is over. Memory that is freed at the end of a burst causes no growth; it was 8 of 48 MB.
pub async fn return_memory_loop() {
    let (mut kept, mut ticks, mut was_busy) = (0, 0, true);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = used_ticks().unwrap_or(ticks);
        let is_busy = now.saturating_sub(ticks) >= BUSY_TICKS;
        kept = trim_heap(kept, was_busy && !is_busy);
        (ticks, was_busy) = (now, is_busy);
    }
}

/// Takes the resident bytes after the last trim, and returns the present ones.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "malloc_trim has no safe form")]
fn trim_heap(kept: u64, is_over: bool) -> u64 {
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

/// Returns the processor time of all threads (proc_pid_stat(5)); `None` if it cannot be read.
fn used_ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The preceding process name may contain any characters.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

/// Returns the resident bytes; `None` if they cannot be read.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Configures the allocator; called first, before there is a second thread.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "mallopt has no safe form")]
pub fn set_up() {
    /// Number of arenas that threads share.
    const ARENAS: i32 = 2;
    /// Free memory at the end of the heap beyond this is returned to the system at once.
    const TRIM_BYTES: i32 = 256 << 10;
    /// Size from which blocks get pages of their own. It is above the size of the buffers from which files are sent,
    /// which are allocated too often for that; setting it also keeps glibc from raising it by itself.
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

/// Other C libraries have no arenas that keep memory.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn set_up() {}
