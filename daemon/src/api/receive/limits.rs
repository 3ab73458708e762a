//! How much each method may be sent.

use super::Received;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What a request names things with: a few references, paths and numbers.
const SMALL: u64 = 64 * KIB;
/// Without a token: the name of a service.
pub(super) const PUBLIC: u64 = 4 * KIB;

/// What is received of a request to this path.
pub(super) fn of_path(path: &str) -> Received {
    let Some(method) = path.strip_prefix("/hearth.v1.") else {
        return Received::Bytes;
    };
    let (limit, is_stream) = match method {
        // Build arguments, labels, and the values of secrets of 500 KiB each.
        "Builds/Submit" => (4 * MIB, false),
        // A command, variables, and files of a manifest.
        "Services/Deploy" => (2 * MIB, false),
        // A value has 64 KiB at most.
        "Secrets/Set" => (128 * KIB, false),
        // The hashes of large files' chunks, many files in one call.
        "Packs/Chunks" => (4 * MIB, false),
        "Packs/List" => (9 * MIB, true),
        // Chunks of content, 4 MiB at most, and what they are.
        "Packs/Send" | "Storage/Write" | "Images/Load" => (4 * MIB + 256 * KIB, true),
        // What a terminal or a pipe brings.
        "Services/Exec" => (MIB, true),
        _ => (SMALL, false),
    };
    let may_pause = method == "Services/Exec";
    Received::Messages { limit, is_stream, may_pause }
}
