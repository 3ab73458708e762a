//! What the kernel is asked for when it mounts.

use fuser::{InitFlags, KernelConfig};

use crate::context::union::Union;

/// Read ahead, when reads are sequential; the kernel takes less where it has a smaller limit.
const READ_AHEAD: u32 = 1 << 20;
/// Requests that the kernel may have under way by itself.
const BACKGROUND: u16 = 64;

const ALWAYS: InitFlags = InitFlags::FUSE_DO_READDIRPLUS
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ASYNC_READ)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_AUTO_INVAL_DATA)
    .union(InitFlags::FUSE_NO_EXPORT_SUPPORT);

/// Asks for what the kernel has. Gives whether it reads files by itself (passthrough).
pub(super) fn features(union: &Union, config: &mut KernelConfig) -> bool {
    let mut wanted = ALWAYS & config.capabilities();
    if union.is_constant() && union.is_read_only() {
        wanted |= InitFlags::FUSE_CACHE_SYMLINKS & config.capabilities();
    }
    // Two levels: what is below may lie on an overlay. A kernel that cannot is one without passthrough.
    let passthrough = union.is_read_only()
        && !union.is_constant()
        && config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH)
        && config.set_max_stack_depth(2).is_ok();
    if passthrough {
        wanted |= InitFlags::FUSE_PASSTHROUGH;
    }
    // All of these are among what the kernel has.
    let _ = config.add_capabilities(wanted);
    let ahead = config.set_max_readahead(READ_AHEAD).or_else(|most| config.set_max_readahead(most));
    let background = config.set_max_background(BACKGROUND);
    tracing::debug!(?ahead, ?background, passthrough, "mounted");
    passthrough
}
