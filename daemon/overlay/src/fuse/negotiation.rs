//! Negotiation of FUSE features with the kernel at mount time.

use fuser::{InitFlags, KernelConfig};

use crate::union::OverlayFs;

/// Read-ahead size in bytes for sequential reads; the kernel uses less if its own limit is smaller.
const READ_AHEAD: u32 = 1 << 20;
/// Maximum number of background requests of the kernel.
const BACKGROUND: u16 = 64;

const ALWAYS: InitFlags = InitFlags::FUSE_DO_READDIRPLUS
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ASYNC_READ)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_AUTO_INVAL_DATA)
    .union(InitFlags::FUSE_NO_EXPORT_SUPPORT);

/// Requests the supported features. Returns whether the kernel reads files by itself (passthrough).
pub(super) fn negotiate(union: &OverlayFs, config: &mut KernelConfig) -> bool {
    let mut wanted = ALWAYS & config.capabilities();
    if union.is_sole_writer() && union.is_read_only() {
        wanted |= InitFlags::FUSE_CACHE_SYMLINKS & config.capabilities();
    }
    // Stack depth two: the lower files may be on an overlay. A kernel that refuses it has no passthrough.
    let passthrough = union.is_read_only()
        && !union.is_sole_writer()
        && config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH)
        && config.set_max_stack_depth(2).is_ok();
    if passthrough {
        wanted |= InitFlags::FUSE_PASSTHROUGH;
    }
    // The kernel supports all of these.
    let _ = config.add_capabilities(wanted);
    let ahead = config.set_max_readahead(READ_AHEAD).or_else(|most| config.set_max_readahead(most));
    let background = config.set_max_background(BACKGROUND);
    tracing::debug!(?ahead, ?background, passthrough, "FUSE features negotiated");
    passthrough
}
