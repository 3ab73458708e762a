//! Maximum size of the messages of each method.

use super::BodyKind;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Limit for requests that only name things: a few references, paths and numbers.
const SMALL: u64 = 64 * KIB;
/// Limit for requests without a token, which contain the name of a service.
pub(super) const PUBLIC: u64 = 4 * KIB;

/// Returns the kind and the limits of the body of a request to this path.
pub(super) fn body_kind(path: &str) -> BodyKind {
    let Some(method) = path.strip_prefix("/hearth.v1.") else {
        return BodyKind::Bytes;
    };
    let (limit, is_stream) = match method {
        // Build arguments, labels, and secret values of up to 500 KiB each.
        "Builds/Submit" => (4 * MIB, false),
        // A command, variables, and files that are given by their text.
        "Services/Deploy" => (2 * MIB, false),
        // A value has at most 64 KiB.
        "Secrets/Set" => (128 * KIB, false),
        // Hashes of the chunks of large files, for many files in one call.
        "Packs/Chunks" => (4 * MIB, false),
        "Packs/List" => (9 * MIB, true),
        // Content chunks of at most 4 MiB, with their description.
        "Packs/Send" | "Storage/Write" | "Images/Load" => (4 * MIB + 256 * KIB, true),
        // Input from a terminal or a pipe.
        "Services/Exec" => (MIB, true),
        _ => (SMALL, false),
    };
    let may_pause = method == "Services/Exec";
    BodyKind::Messages { limit, is_stream, may_pause }
}
