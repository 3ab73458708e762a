//! Error codes of builds.

/// Adds the rows of this area, and passes all rows on to the next macro.
macro_rules! build_error_codes {
    ($next:ident $($rest:ident)*; $($seen:tt)*) => {
        $next! {
            $($rest)*; $($seen)*
            Build "Builds" {
                BuildNotFound = "build_not_found", NotFound, No,
                    "The room has no build with this id: it never existed, was forgotten, or belongs to another caller. List the builds.",
                    hint "see `hearth builds list`";
                BuildInputsUnrecorded = "build_inputs_unrecorded", FailedPrecondition, No,
                    "The inputs of the build were not recorded. Build again, and ask about that build.";
                BuildNotEnded = "build_not_ended", FailedPrecondition, No,
                    "The operation needs a build that has ended. Wait for the build, or cancel it.";
                BuildFailed = "build_failed", FailedPrecondition, No,
                    "A build ended without success and reported no error. See its log.";
                QueueFull = "queue_full", ResourceExhausted, Yes,
                    "The build queue of the room is full. Submit the build again later.";
                QueueShare = "queue_share", ResourceExhausted, Yes,
                    "The caller has as many builds in the queue as one caller may have. Wait until some of them have started.";
                CallerLimit = "caller_limit", ResourceExhausted, Yes,
                    "The caller has as many builds as one caller may have at a time. Wait until some of them have ended.";
                DiskLow = "disk_low", ResourceExhausted, No,
                    "The state directory has less free space than a build needs to start. Remove images and builds, or give the directory more space.";
                StateUnavailable = "state_unavailable", Internal, Yes,
                    "The daemon could not write the state of the build to its database. See the daemon's log, and the free space of the state directory.";
                LogUnwritable = "log_unwritable", Internal, Yes,
                    "The daemon could not write the log of the build. Free space in the state directory.",
                    hint "free space in the state directory";
                Timeout = "timeout", DeadlineExceeded, Depends,
                    "The operation took longer than its time limit. Allow more time, or make its slow part faster.";
                Stuck = "stuck", Internal, Yes,
                    "The build did not stop when it was told to, and was abandoned. Run it again; if this repeats, see the daemon's log.";
                Stopped = "stopped", Cancelled, Yes,
                    "The build was stopped before it was done. Submit it again.";
                Interrupted = "interrupted", Aborted, Depends,
                    "The daemon ended before the build or deploy was done, or the user interrupted the command. Start the operation again.";
                Cancelled = "cancelled", Cancelled, No,
                    "The operation was cancelled, or its client closed the connection. Nothing was published.";
                BuilderUnavailable = "builder_unavailable", Unavailable, Yes,
                    "The builder went away while the build ran, and did not come back in time. Run the build again.",
                    hint "run the build again; if this repeats, see the log of buildkitd in the state directory";
                BuilderTimeout = "builder_timeout", DeadlineExceeded, Yes,
                    "The builder lost the session of the build, or did not answer in time. Run the build again.",
                    hint "run the build again";
                OutOfMemory = "out_of_memory", ResourceExhausted, Depends,
                    "A build step or an app needed more memory than its limit, or than the machine had. Give it more memory, or let it use less.";
                StepFailed = "step_failed", FailedPrecondition, No,
                    "The command of a Dockerfile step ended with an exit code other than 0. The last lines of its log say why.";
                EmulationMissing = "emulation_missing", FailedPrecondition, No,
                    "A `RUN` of the build needs programs of another platform, and the kernel of the builder has no handler that emulates it. Install qemu-user-static on the builder's machine, or build this platform without `RUN`.",
                    hint "install the package qemu-user-static on the machine of the daemon, which registers handlers with the kernel; or let the step run on the builder's platform with `FROM --platform=$BUILDPLATFORM`";
                StepNetworkUnavailable = "step_network_unavailable", Unavailable, Yes,
                    "The network of a build step could not be set up. Run the build again; if this repeats, see the daemon's log.",
                    hint "run the build again; if this repeats, see the daemon's log";
                SolveFailed = "solve_failed", FailedPrecondition, No,
                    "BuildKit reported a failure that this version does not classify. The message is BuildKit's own.";
                NoDigest = "no_digest", Internal, No,
                    "BuildKit finished the build and named no digest of its image, which is a fault of the builder. Run the build again, and report it if it stays.",
                    hint "this is a fault of the builder; run the build again, and report it if it stays";
                PushFailed = "push_failed", Unavailable, Depends,
                    "The finished image could not be written to a registry. Run the build again, or push the kept image with `hearth images push`.",
                    hint "run the build again";
                DockerfileParseError = "dockerfile_parse_error", InvalidArgument, No,
                    "The Dockerfile has a line that cannot be parsed. Correct the line that the error shows.",
                    hint "correct the Dockerfile at the line shown";
                DockerfileError = "dockerfile_error", InvalidArgument, No,
                    "The Dockerfile can be parsed, and one of its instructions is wrong. Correct the line that the error shows.",
                    hint "correct the Dockerfile at the line shown";
                UnknownStage = "unknown_stage", InvalidArgument, No,
                    "The target stage, or one whose steps are to run again, is not declared in the Dockerfile. Name a stage that a `FROM` line declares with `AS`.",
                    hint "name a stage that a `FROM ... AS name` of the Dockerfile declares";
                BuildArgReserved = "build_arg_reserved", InvalidArgument, No,
                    "A build argument has a name that the daemon sets itself. Leave the argument out.";
                FrontendNotAllowed = "frontend_not_allowed", FailedPrecondition, No,
                    "The `# syntax=` line names a Dockerfile frontend that the room does not run. Leave the line out, or name the standard frontend.",
                    hint "leave the `# syntax=` line out, or write `# syntax=docker/dockerfile:1`";
                HostNetworkRefused = "host_network_refused", FailedPrecondition, No,
                    "A step asks for the network of the machine with `--network=host`, which no step gets. Leave the flag out.",
                    hint "leave out `--network=host`; a step reaches the world without it";
                NetworkNone = "network_none", FailedPrecondition, No,
                    "A build without network has an `ADD` of a remote file. Put the file into the context, or build with network.",
                    hint "put the file into the context, or build without `--network none`";
                CopySourceMissing = "copy_source_missing", FailedPrecondition, No,
                    "A `COPY` or `ADD` names a path that is not in the context. Check the path, and whether the ignore file excludes it.",
                    hint "check the path relative to the context, and whether .dockerignore excludes it";
                TooManyImages = "too_many_images", ResourceExhausted, No,
                    "The Dockerfile names more images than one build may use. Split the build.";
                TooManyDownloads = "too_many_downloads", ResourceExhausted, No,
                    "The Dockerfile downloads more files than one build may. Put files into the context.";
                SourceNotResolved = "source_not_resolved", FailedPrecondition, No,
                    "A remote file or repository was not fetched, since the daemon did not find its URL in the Dockerfile. Write the URL out where it is used.",
                    hint "write the name out where it is used, without variables whose value only the builder knows";
                ImageNotResolved = "image_not_resolved", FailedPrecondition, No,
                    "An image was not fetched, since the daemon did not find its name in the Dockerfile. Write the name out where it is used.",
                    hint "write the name out where it is used, without variables whose value only the builder knows";
                RepositoryNotFetched = "repository_not_fetched", FailedPrecondition, Depends,
                    "Git could not fetch a repository that `ADD` names. Check the URL and the reference after `#`; `ADD` sends no credentials.",
                    hint "check the URL and the reference after `#`; ADD sends no credentials";
                GitTransportRefused = "git_transport_refused", FailedPrecondition, No,
                    "A repository is named with a transport other than http or https. Use an https URL, or put the files into the context.",
                    hint "write https://HOST/PATH.git, or put the files into the context";
                EgressDenied = "egress_denied", PermissionDenied, No,
                    "The operator's rules do not let builds reach this host. Put the file into the context, or ask the operator to allow the host.",
                    hint "the operator's `[builds.egress] allow` decides what builds reach; put the file into the context, or have it allowed";
                EgressRefused = "egress_refused", PermissionDenied, No,
                    "A build step was refused a connection that the operator's rules do not allow. The message names the hosts.";
                InvalidUrl = "invalid_url", InvalidArgument, No,
                    "The URL of an `ADD` is malformed. Correct it.",
                    hint "correct the URL in ADD";
                InvalidChecksum = "invalid_checksum", InvalidArgument, No,
                    "The `--checksum` of an `ADD` is not a SHA-256 digest. Write `sha256:` and 64 hexadecimal digits.",
                    hint "write --checksum=sha256:...";
                ChecksumMismatch = "checksum_mismatch", FailedPrecondition, No,
                    "A downloaded file has another digest than its `--checksum`. Correct the checksum if the file is the right one.",
                    hint "correct --checksum, or mistrust the file";
                DownloadNotFound = "download_not_found", NotFound, No,
                    "The server has no file at the URL of an `ADD`. Correct the URL.",
                    hint "correct the URL in ADD";
                DownloadDenied = "download_denied", PermissionDenied, No,
                    "The server of an `ADD` asks for credentials, which `ADD` does not send. Put the file into the context, or fetch it in a `RUN` step with a secret.",
                    hint "ADD sends no credentials; put the file into the context, or fetch it in a RUN step with a secret";
                DownloadFailed = "download_failed", FailedPrecondition, Depends,
                    "The server of an `ADD` answered with an error, or redirected too often. The message has its answer.";
                DownloadUnreachable = "download_unreachable", Unavailable, Yes,
                    "The server of an `ADD` did not answer, or answered too slowly. Check the URL and the network of the daemon.",
                    hint "check the URL and the network of the daemon";
                DownloadTooLarge = "download_too_large", ResourceExhausted, No,
                    "The file of an `ADD` is larger than a download may be. Put it into the context.",
                    hint "put the file into the context";
                DockerfileCheckFailed = "dockerfile_check_failed", FailedPrecondition, No,
                    "`hearth build --check` found that the Dockerfile cannot be built, or that it has warnings, and `--strict` was given. The output lists them, each with a page that explains it.";
                BuildCacheRefused = "build_cache_refused", FailedPrecondition, No,
                    "A build reads no caches on a builder that several trust domains share: the steps of a cache would then be used by builds of other domains. Leave out `--cache-from`, or let the daemon manage its builders.",
                    hint "leave out --cache-from: the builders of this daemon are shared";
                BuildCacheNotWritten = "build_cache_not_written", FailedPrecondition, Depends,
                    "The image was built, but the cache of its steps could not be written, so the tags were not set. The message has the reason; with `ignore-error=true`, a build succeeds without its cache.",
                    hint "correct --cache-to, or add ignore-error=true to it";
                BaseImageNotFound = "base_image_not_found", NotFound, No,
                    "No registry has the image that a `FROM` or `--from` names. Check its name and tag.",
                    hint "check the name and tag of the image in FROM or --from";
                BaseImageDenied = "base_image_denied", PermissionDenied, No,
                    "The registry of an image in `FROM` or `--from` refuses it: the name is wrong, or credentials are missing. Check the name, and give credentials with `--cred`.",
                    hint "the registry refuses this image: check its name, and give credentials with --cred";
            }
        }
    };
}
