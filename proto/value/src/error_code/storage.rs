//! Error codes of files in room and project storage.

/// Adds the rows of this area, and passes all rows on to the next macro.
macro_rules! storage_error_codes {
    ($next:ident $($rest:ident)*; $($seen:tt)*) => {
        $next! {
            $($rest)*; $($seen)*
            Storage "Storage" {
                IsALink = "is_a_link", FailedPrecondition, No,
                    "The path is a symbolic link, which the operation does not follow. Name what it points to.";
                IsADirectory = "is_a_directory", FailedPrecondition, No,
                    "The path is a directory, and the operation works on files. Add `--recursive` to remove a directory; name a local directory to get one.";
                IsTheRoot = "is_the_root", InvalidArgument, No,
                    "The path is the root of the storage, which can be neither removed nor replaced. Name something in it.";
                NotADirectory = "not_a_directory", FailedPrecondition, No,
                    "The path, or a part of it, is not a directory. Correct the path.";
                NotAFile = "not_a_file", FailedPrecondition, No,
                    "The path is not a regular file. Name a file.";
                SizeMismatch = "size_mismatch", DataLoss, No,
                    "An upload has more or fewer bytes than it announced. Send the file again when nothing writes to it.";
                Changed = "changed", Aborted, Yes,
                    "The file changed during the operation. Try again when nothing writes to it.";
            }
        }
    };
}
