//! Error codes of malformed requests and of limits on requests.

/// Adds the rows of this area, and passes all rows on to the next macro.
macro_rules! request_error_codes {
    ($next:ident $($rest:ident)*; $($seen:tt)*) => {
        $next! {
            $($rest)*; $($seen)*
            Request "Requests" {
                InvalidRequest = "invalid_request", InvalidArgument, No,
                    "A field of a service's spec is not valid, alone or together with the others. The message names the value and the rule that it breaks.";
                InvalidName = "invalid_name", InvalidArgument, No,
                    "A name is empty, too long, reserved, or has characters that a name cannot have. Choose a name of lower-case letters, digits and dashes.";
                InvalidDomain = "invalid_domain", InvalidArgument, No,
                    "A domain of a service or the trust domain of a token is not a valid name. Correct its spelling.";
                InvalidReference = "invalid_reference", InvalidArgument, No,
                    "An image reference is not of the form `[registry/]repository[:tag][@digest]`. Correct its spelling.";
                InvalidRepository = "invalid_repository", InvalidArgument, No,
                    "The name of a repository has characters that a repository cannot have. Use lower-case letters, digits, and `.`, `_`, `-` and `/` between them.";
                InvalidTag = "invalid_tag", InvalidArgument, No,
                    "The tag of an image is missing, or is not of the form `[registry/]repository:tag`. Give a complete tag.";
                InvalidDigest = "invalid_digest", InvalidArgument, No,
                    "A digest is not of the form `sha256:` followed by 64 hexadecimal digits. Copy it from the output of `hearth images list`.";
                TagNeeded = "tag_needed", InvalidArgument, No,
                    "The operation needs an image name with a tag, and a digest was given. Give `repository:tag`.";
                InvalidPlatform = "invalid_platform", InvalidArgument, No,
                    "A platform is not of the form `os/arch[/variant]`, such as `linux/arm64`. Correct its spelling.";
                InvalidAnnotation = "invalid_annotation", InvalidArgument, No,
                    "An annotation of an image has an invalid key, or a place that the image does not have: an index is only made for several platforms. Correct its key, scope or platform.";
                InvalidArch = "invalid_arch", InvalidArgument, No,
                    "The architecture is not known. Give one such as `amd64`, `arm64` or `arm/v7`.";
                InvalidCompression = "invalid_compression", InvalidArgument, No,
                    "The compression of an image is not one that this daemon writes. Use one of those that the message lists.";
                InvalidBuildCache = "invalid_build_cache", InvalidArgument, No,
                    "A cache that a build reads or writes is not of the form `type=TYPE,KEY=VALUE,...`, or has an attribute that its type does not have. The message lists those that are known.";
                InvalidProvenance = "invalid_provenance", InvalidArgument, No,
                    "The provenance that a build is to attach is not one of the modes that the message lists.";
                InvalidConfig = "invalid_config", InvalidArgument, No,
                    "The config of an image is not valid, or an option for it is not. The message names the field.";
                InvalidPath = "invalid_path", InvalidArgument, No,
                    "A path has a NUL byte, is too long, or leads upwards with `..`. Give a plain path.";
                PathEscapes = "path_escapes", InvalidArgument, No,
                    "A path leads out of the storage, by `..` or through a link. Give a path that stays inside the part that the token covers.";
                InvalidDirectory = "invalid_directory", InvalidArgument, No,
                    "The directory is not an absolute path. Name a directory of the daemon's machine from its root.",
                    hint "name an empty directory of the daemon's machine, such as /mnt/my-app";
                InvalidMount = "invalid_mount", InvalidArgument, No,
                    "A mount has no valid source, target or mode for this use. The field and the message name the part that is wrong.";
                NoMounts = "no_mounts", InvalidArgument, No,
                    "A build or a context has no files: the request has no mount. Name files of the room, or send some.",
                    hint "name files of the room (--mount-room-path apps/my-app) or send some (--pack ./my-app)";
                DuplicateTarget = "duplicate_target", InvalidArgument, No,
                    "Two mounts have the same target. Give each mount a target of its own.";
                TooMany = "too_many", InvalidArgument, No,
                    "A list of the request is longer than the maximum. The message names the maximum.";
                TooLong = "too_long", InvalidArgument, No,
                    "A text of the request is longer than the maximum. The message names the maximum.";
                TooLarge = "too_large", InvalidArgument, No,
                    "A file that is given by its text is larger than the maximum for files in a request. Put it into room storage, and mount it from there.",
                    hint "put large files in room storage, and mount them from there";
                InvalidKey = "invalid_key", InvalidArgument, No,
                    "The key of a label or build argument, or an idempotency key, is empty, too long, or has characters that a key cannot have. Correct the key.";
                InvalidPattern = "invalid_pattern", InvalidArgument, No,
                    "The pattern for lines of a log is not a regular expression, or it is too large. Correct it; a character such as `(` or `.` that is meant as itself is written with `\\` before it.";
                InvalidTimeout = "invalid_timeout", InvalidArgument, No,
                    "A time limit is zero or longer than the maximum. Give one in the range that the message names.";
                InvalidStepLimit = "invalid_step_limit", InvalidArgument, No,
                    "The memory or processor limit for each step of a build is too small for any step, or out of range. Give a larger one.";
                InvalidDefinition = "invalid_definition", InvalidArgument, No,
                    "The LLB of a build cannot be read, is too large, or uses what a build may not use; the message names the operation. Leave out host network, insecure commands, devices, nested builds, and sources other than images, `https`, `git` and the files of the build.";
                InvalidTime = "invalid_time", InvalidArgument, No,
                    "A point in time is out of range. Give a time between the years 1 and 9999.";
                InvalidDuration = "invalid_duration", InvalidArgument, No,
                    "A duration is negative or out of range. Give a positive one.";
                InvalidPageToken = "invalid_page_token", InvalidArgument, No,
                    "The page token was not returned by this call. Begin again with the first page.";
                InvalidArea = "invalid_area", InvalidArgument, No,
                    "The storage area is not known. Use the room's or the project's storage.";
                InvalidStage = "invalid_stage", InvalidArgument, No,
                    "The name of a build stage is empty or has characters that a stage cannot have. Name a stage that a `FROM` line declares with `AS`.";
                InvalidNetwork = "invalid_network", InvalidArgument, No,
                    "The network of a build is neither `default` nor `none`. Give one of the two.";
                InvalidSecret = "invalid_secret", InvalidArgument, No,
                    "A secret of a build has no valid id, is too large, or is given twice. The message names the secret.";
                InvalidContextPath = "invalid_context_path", InvalidArgument, No,
                    "The context path is not an absolute path without `..`. Give a mount target, or a path below one.";
                ContextPathMissing = "context_path_missing", InvalidArgument, No,
                    "A build with several mounts does not say which path is its context. Give the context path.",
                    hint "--context-path PATH, such as one of the mount targets";
                InvalidDockerfilePath = "invalid_dockerfile_path", InvalidArgument, No,
                    "The path of the Dockerfile is not valid. Give an absolute path inside a mount, or one relative to the context.";
                AmbiguousBuildId = "ambiguous_build_id", InvalidArgument, No,
                    "The start of a build id fits several builds. Give more of its characters.";
                NothingToCompare = "nothing_to_compare", InvalidArgument, No,
                    "A comparison names only one side. Give mounts for both sides, or a mounted directory.";
                InvalidCommand = "invalid_command", InvalidArgument, No,
                    "A command is empty, too long, or has a NUL byte. Correct the command.";
                InvalidWorkingDir = "invalid_working_dir", InvalidArgument, No,
                    "The working directory of a process is not an absolute path without `..`. Give such a path.";
                InvalidTerminal = "invalid_terminal", InvalidArgument, No,
                    "The size of a terminal is zero or larger than the maximum. Give a size in rows and columns as a terminal has it.";
                InvalidSignal = "invalid_signal", InvalidArgument, No,
                    "The signal is not a number that Linux has. Give a number in the range that the message names.";
                InvalidMessage = "invalid_message", InvalidArgument, No,
                    "A stream of messages does not follow the protocol of its call. Client and daemon may be of different versions; use the same one.";
                BeginMissing = "begin_missing", InvalidArgument, No,
                    "The first message of an upload or of a process is not `begin`. Send `begin` first.";
                ChunkMissing = "chunk_missing", InvalidArgument, No,
                    "An upload has a message other than a chunk after its first one. Send only chunks after `begin`.";
                ChunkTooLarge = "chunk_too_large", InvalidArgument, No,
                    "A chunk of a stream is larger than the maximum. Send smaller chunks.";
                DestinationMissing = "destination_missing", InvalidArgument, No,
                    "The request does not say what to make of the image. Give a tag, or ask for a temporary pack.";
                InvalidInstanceId = "invalid_instance_id", InvalidArgument, No,
                    "The id of an instance is malformed. Copy it from the output of `hearth services show`.";
                InvalidCapability = "invalid_capability", InvalidArgument, No,
                    "The name of a Linux capability is not known. Write it as in `CAP_NET_ADMIN` or `NET_ADMIN`.";
                InvalidEnv = "invalid_env", InvalidArgument, No,
                    "A variable of the environment has no value. Give it a text, a secret or a token scope.";
                InvalidPort = "invalid_port", InvalidArgument, No,
                    "A port is not a number from 1 to 65535, or is of an unknown kind. Write it as `8080` or `5432/tcp`.";
                InvalidIdentity = "invalid_identity", InvalidArgument, No,
                    "The identity of a service's tokens is empty or too long. Give a participant name.";
                InvalidStrategy = "invalid_strategy", InvalidArgument, No,
                    "The strategy of a deploy is not known. Use one of those that `hearth deploy --help` lists.";
                IdempotencyKeyReused = "idempotency_key_reused", AlreadyExists, No,
                    "The idempotency key was used before, with another spec. Use a new key for each different build.";
                MessageTooLarge = "message_too_large", ResourceExhausted, No,
                    "A message is larger than the method accepts. Send less at once, and files through uploads.";
                TooManyRequests = "too_many_requests", ResourceExhausted, Yes,
                    "The caller has as many requests in progress as one caller may have, or the daemon as many as it accepts. Wait until some of them have ended.",
                    hint "wait for some of them to end";
                TooManyConnections = "too_many_connections", ResourceExhausted, Yes,
                    "The caller has as many connections as one caller may have, or the daemon as many as it accepts. Close connections that are not needed, or raise `[connections]` in the daemon's configuration.",
                    hint "close connections that are not needed, or raise [connections] in the daemon's configuration";
                UploadStalled = "upload_stalled", DeadlineExceeded, Yes,
                    "No byte of a request body arrived for longer than the daemon waits. Send it again; content of a pack that arrived is kept.",
                    hint "send again; what has arrived of a pack need not be sent once more";
                Busy = "busy", ResourceExhausted, Yes,
                    "The memory for requests that are being received is in use. Send less at the same time, or try again later.";
                InvalidArgument = "invalid_argument", InvalidArgument, No,
                    "A proxy between client and daemon refused the request as malformed. Client and daemon may be of different versions.";
                AlreadyExists = "already_exists", AlreadyExists, No,
                    "There is something with this name already. Choose another name, or remove the existing one first.";
                NotFound = "not_found", NotFound, No,
                    "There is nothing with this name or path. List what is there, and correct the name.";
                ResourceExhausted = "resource_exhausted", ResourceExhausted, Yes,
                    "A limit was reached, and the answer has no detail that names it. Try again later.";
                FailedPrecondition = "failed_precondition", FailedPrecondition, No,
                    "The state of the room does not allow the operation, and the answer has no detail that says why. See the daemon's log.";
                DeadlineExceeded = "deadline_exceeded", DeadlineExceeded, Yes,
                    "The call took longer than its time limit, and the answer has no detail. Try again.";
                Unimplemented = "unimplemented", Unimplemented, No,
                    "The daemon does not know the call. Client and daemon are of different versions; compare `hearth --version` and `hearth doctor`.";
            }
        }
    };
}
