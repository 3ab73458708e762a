//! Error codes of build contexts and of directories on which they are mounted.

/// Adds the rows of this area, and passes all rows on to the next macro.
macro_rules! context_error_codes {
    ($next:ident $($rest:ident)*; $($seen:tt)*) => {
        $next! {
            $($rest)*; $($seen)*
            Context "Build contexts and mounted directories" {
                SourceNotFound = "source_not_found", FailedPrecondition, No,
                    "The source of a mount does not exist. Check its path.";
                SourceOutsideStorage = "source_outside_storage", FailedPrecondition, No,
                    "The source of a mount leads out of its storage through a link. Mount a path inside the storage.";
                SourceUnusable = "source_unusable", FailedPrecondition, No,
                    "The source of a mount cannot be opened. The message has the cause.";
                DuplicateMountTarget = "duplicate_mount_target", FailedPrecondition, No,
                    "Two mounts have the same target. Give each mount a target of its own.";
                ContextPathNotFound = "context_path_not_found", NotFound, No,
                    "The context path is in none of the mounts. Give a directory at or below a mount target.",
                    hint "give `--context-path` a directory at or below a mount target";
                ContextPathNotADirectory = "context_path_not_a_directory", FailedPrecondition, No,
                    "The context path is a file. Give a directory at or below a mount target.",
                    hint "give `--context-path` a directory at or below a mount target";
                DockerfileNotFound = "dockerfile_not_found", FailedPrecondition, No,
                    "There is no Dockerfile at any of the paths that were tried. Name it, or mount the directory that has it.",
                    hint "name it with `--dockerfile-path`, or mount the directory that has it";
                LinkOutOfContext = "link_out_of_context", FailedPrecondition, No,
                    "A symbolic link leads out of the mounted files. Put the file itself there, or mount what the link points to.",
                    hint "put the file itself there, or mount what the link points to";
                DanglingLink = "dangling_link", FailedPrecondition, No,
                    "A symbolic link points to something that does not exist. Put the file itself there, or mount what the link points to.",
                    hint "put the file itself there, or mount what the link points to";
                LinkLoop = "link_loop", InvalidArgument, No,
                    "A path leads through too many symbolic links, probably in a circle. Correct the links.";
                FileTooLarge = "file_too_large", FailedPrecondition, No,
                    "A file that is read as a whole is larger than the maximum. Make it smaller.";
                ContextChanged = "context_changed", Aborted, Yes,
                    "A file of the context changed while it was read. Build again when nothing writes to these files.",
                    hint "build again when nothing writes to these files";
                ContextSelection = "context_selection", Aborted, Yes,
                    "The builder asked for files that the context, as it is now, does not have. Run the build again.",
                    hint "run the build again";
                ContextUnreadable = "context_unreadable", Internal, No,
                    "A file of the context cannot be read. Make it readable for the daemon, or leave it out with the ignore file.";
                PathTooLong = "path_too_long", FailedPrecondition, No,
                    "A path of the context is longer than Linux allows. Shorten it.";
                TooManyFiles = "too_many_files", FailedPrecondition, No,
                    "The context has more files than a context may have. Mount a smaller directory.",
                    hint "mount a smaller directory";
                DirectoryNotFound = "directory_not_found", NotFound, No,
                    "There is no such directory on the daemon's machine. Make it, or name another one.",
                    hint "name an empty directory of the daemon's machine, such as /mnt/my-app";
                DirectoryNotEmpty = "directory_not_empty", FailedPrecondition, No,
                    "A context is mounted on empty directories only. Make a new directory for it.",
                    hint "make a new directory for it elsewhere";
                DirectoryReserved = "directory_reserved", FailedPrecondition, No,
                    "The directory lies in the daemon's own files or in the room's. Make a directory for it elsewhere.",
                    hint "make a new directory for it elsewhere";
                AlreadyMounted = "already_mounted", AlreadyExists, No,
                    "A context is mounted on the directory already. Unmount it first, or choose another directory.",
                    hint "`hearth context mounts` lists them; unmount it first";
                NotMounted = "not_mounted", NotFound, No,
                    "No context is mounted on the directory. List what is mounted.",
                    hint "`hearth context mounts` lists what is mounted";
                MountBusy = "mount_busy", FailedPrecondition, No,
                    "Files or working directories in the mounted directory are in use. Close them, or unmount lazily.",
                    hint "close the files and shells that are in it, or add --lazy";
                ChangesOfOtherImages = "changes_of_other_images", FailedPrecondition, No,
                    "Changes are kept for the directory that were made over other images than those its names mean now. Discard the changes, or mount the earlier images by digest.",
                    hint "`hearth context unmount --discard` throws the changes away";
                MountFailed = "mount_failed", Internal, Depends,
                    "The kernel or the container runtime refused a mount. The message has the cause.";
            }
        }
    };
}
