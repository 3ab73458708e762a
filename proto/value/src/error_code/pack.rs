//! Error codes of packs and of their uploads.

/// Adds the rows of this area, and passes all rows on to the next macro.
macro_rules! pack_error_codes {
    ($next:ident $($rest:ident)*; $($seen:tt)*) => {
        $next! {
            $($rest)*; $($seen)*
            Pack "Packs" {
                PackNotFound = "pack_not_found", NotFound, No,
                    "The room has no such pack: it was removed, expired, or was never sent. Send it again.";
                PackFailed = "pack_failed", FailedPrecondition, No,
                    "The image of a pack could not be assembled. The message has the cause.";
                PackChanged = "pack_changed", FailedPrecondition, No,
                    "The directory changed between the archive and the upload, so that the two would differ. Pack again when nothing writes to the files.";
                UploadNotFound = "upload_not_found", NotFound, Yes,
                    "The upload has ended, expired, or was never begun. Begin again; content that arrived is kept.",
                    hint "begin again; what has arrived need not be sent again";
                UploadMissing = "upload_missing", InvalidArgument, No,
                    "The first message of a stream does not name the upload. Name it in the first message.";
                UploadIncomplete = "upload_incomplete", FailedPrecondition, No,
                    "The upload lacks content of some files. Begin again; content that arrived is kept.",
                    hint "begin again; what has arrived need not be sent again";
                TooManyUploads = "too_many_uploads", ResourceExhausted, Yes,
                    "The caller has as many uploads in progress as one caller may have. Try again when some of them have ended.",
                    hint "try again when other uploads have ended";
                WrongOrder = "wrong_order", FailedPrecondition, No,
                    "The file list of an upload was sent twice, or content was sent before it. Send the list once, and first.";
                ListTooLarge = "list_too_large", InvalidArgument, No,
                    "The file list of an upload has more entries or bytes than a pack may have. Pack a smaller directory.";
                InvalidList = "invalid_list", InvalidArgument, No,
                    "The file list of an upload is malformed. Client and daemon may be of different versions.";
                InvalidTree = "invalid_tree", InvalidArgument, No,
                    "The tree digest of a pack is malformed. Client and daemon may be of different versions.";
                TreeMismatch = "tree_mismatch", InvalidArgument, No,
                    "The file list of an upload does not have the tree digest that was announced. Send the pack again.";
                NotAskedFor = "not_asked_for", InvalidArgument, No,
                    "The upload has content for an entry that the daemon did not ask for. Client and daemon may be of different versions.";
                InvalidChunks = "invalid_chunks", InvalidArgument, No,
                    "The list of chunks of a file is malformed. Client and daemon may be of different versions.";
                InvalidPiece = "invalid_piece", InvalidArgument, No,
                    "A piece of content is malformed. Client and daemon may be of different versions.";
                InvalidHash = "invalid_hash", InvalidArgument, No,
                    "A content hash is not a BLAKE3 hash of 32 bytes. Client and daemon may be of different versions.";
                InvalidProof = "invalid_proof", InvalidArgument, No,
                    "The proof of possession is not a BLAKE3 hash of 32 bytes. Client and daemon may be of different versions.";
                InvalidLineage = "invalid_lineage", InvalidArgument, No,
                    "The name of a pack's lineage is too long. Give a shorter one.";
                ContentMismatch = "content_mismatch", InvalidArgument, No,
                    "The content of a file is not what the file list announced. Send again when nothing writes to the files.",
                    hint "send again when nothing writes to the files";
                ContentGone = "content_gone", Aborted, Yes,
                    "Content that the upload relied on was removed from the room meanwhile. Begin again.",
                    hint "begin again; what has arrived need not be sent again";
                ProofFailed = "proof_failed", PermissionDenied, No,
                    "The caller did not prove that it has the content that it did not send. Send the pack again.";
            }
        }
    };
}
