//! Error codes of services, deploys and processes in instances.

/// Adds the rows of this area, and passes all rows on to the next macro.
macro_rules! service_error_codes {
    ($next:ident $($rest:ident)*; $($seen:tt)*) => {
        $next! {
            $($rest)*; $($seen)*
            Service "Services and deploys" {
                ServiceNotFound = "service_not_found", NotFound, No,
                    "The room has no service with this name or id. List the services.",
                    hint "see: hearth services list";
                RevisionNotFound = "revision_not_found", NotFound, No,
                    "The service has no such revision, or none that it could return to. See its revisions with `hearth services show`.";
                InstanceNotFound = "instance_not_found", NotFound, No,
                    "The service has no such instance, or its log is not kept any more. See the instances with `hearth services show`.";
                RouteNotFound = "route_not_found", NotFound, No,
                    "No service has the domain. List the routes.",
                    hint "see: hearth routes list";
                ServiceRemoving = "service_removing", FailedPrecondition, Yes,
                    "The service is being removed. Try again when the removal is done.",
                    hint "try again in a moment";
                NotRunning = "not_running", FailedPrecondition, No,
                    "No instance of the service runs. See why with `hearth services show`.";
                Unavailable = "unavailable", Unavailable, Yes,
                    "The daemon cannot run services yet, or is ending. Try again in a moment.";
                RuntimeUnavailable = "runtime_unavailable", Unavailable, Yes,
                    "The container runtime does not answer. The daemon tries again; `hearth doctor` shows its state.";
                NameTaken = "name_taken", AlreadyExists, No,
                    "The default name of the service belongs to a service of another repository. Choose another name, or remove that service.";
                ReservedPort = "reserved_port", InvalidArgument, No,
                    "The app's port is one that the room reserves. Let the app listen on another port.",
                    hint "let the app listen on another port";
                DomainPort = "domain_port", InvalidArgument, No,
                    "A domain needs exactly one published http port. Publish one port, and no more.";
                DomainTaken = "domain_taken", AlreadyExists, No,
                    "The domain belongs to another service. Take another domain, or remove the route of that service.";
                PublicSuffix = "public_suffix", InvalidArgument, No,
                    "The domain is a public suffix, such as `co.uk`, or covers all names below one. Take a domain below it.",
                    hint "take a domain below it, such as app.example.com";
                CapabilityNotAllowed = "capability_not_allowed", FailedPrecondition, No,
                    "The operator does not allow services this Linux capability. Deploy without it, or ask the operator to allow it.";
                ServiceLimit = "service_limit", ResourceExhausted, No,
                    "The owner has as many services as one owner may have. Remove one, or raise `max_per_caller`.";
                RoomFull = "room_full", ResourceExhausted, No,
                    "The room's network has no addresses for another service. Remove one, or give the room a larger subnet.";
                Superseded = "superseded", Aborted, No,
                    "A newer deploy of the same service replaced this one before it was live. Follow the newer deploy.";
                Network = "network", Unavailable, Depends,
                    "The network of an instance could not be set up. Remove services that are not needed if addresses are used up; else see the daemon's log.";
                TokenNotMade = "token_not_made", FailedPrecondition, No,
                    "The token of a service's environment could not be made. The message has the cause.";
                NotStarted = "not_started", FailedPrecondition, Depends,
                    "The instance could not be started. The message has the cause.";
                StartFailed = "start_failed", FailedPrecondition, Depends,
                    "The container runtime could not start the process, for a reason that this version does not classify. The message is the runtime's own.";
                NoCommand = "no_command", FailedPrecondition, No,
                    "Neither the image nor the deploy gives a command to run. Give one with `--command`.";
                CommandNotFound = "command_not_found", FailedPrecondition, No,
                    "The image has no such program. Check the command and the entry point of the image.";
                NotExecutable = "not_executable", FailedPrecondition, No,
                    "The program is a directory or has no executable bit. Set the bit in the image.",
                    hint "set the executable bit of the file in the image, and see that it is for this platform";
                ExecFormat = "exec_format", FailedPrecondition, No,
                    "The program is for another kind of machine, or is a script without a `#!` line. Build the image for this platform.",
                    hint "build the image for this machine's platform, or begin the script with a #! line";
                WorkdirInvalid = "workdir_invalid", FailedPrecondition, No,
                    "The working directory does not exist in the image and cannot be made. Make it in the image, or choose another one.",
                    hint "make the directory in the image, or choose another one with --workdir";
                UserNotFound = "user_not_found", FailedPrecondition, No,
                    "The image has no such user or group. Add it to the image, or name one by number.",
                    hint "add the user to the image's /etc/passwd, or name one by number";
                MemoryLimit = "memory_limit", FailedPrecondition, No,
                    "The memory limit is too small for the process to start in. Raise it.",
                    hint "raise the memory limit with --memory";
                Cgroup = "cgroup", FailedPrecondition, No,
                    "The control group of the process could not be made. See the daemon's log and the machine's control groups.";
                MountSourceMissing = "mount_source_missing", FailedPrecondition, No,
                    "The source of a service's mount does not exist. Make it, or correct its path.",
                    hint "`hearth storage ls` shows what is there; `,create` after a room mount makes the missing directory";
                MountSourceOutsideStorage = "mount_source_outside_storage", FailedPrecondition, No,
                    "The source of a service's mount leads out of its storage. Mount a path inside the storage.",
                    hint "mount a path inside the storage; links in it must stay inside";
                MountSourceIsLink = "mount_source_is_link", FailedPrecondition, No,
                    "The source of a service's mount is a symbolic link. Mount what it points to.";
                MountSourceUnusable = "mount_source_unusable", FailedPrecondition, No,
                    "The source of a service's mount cannot be used. The message has the cause.";
                InstanceGone = "instance_gone", FailedPrecondition, Depends,
                    "The instance was removed by something other than the daemon. Deploy or restart the service.";
                Exited = "exited", FailedPrecondition, No,
                    "The app ended instead of serving. The exit code and the last lines of its log say why.";
                ExitUnseen = "exit_unseen", FailedPrecondition, No,
                    "The process ended while nothing observed it, so that its exit code is not known. See its log.";
                ProcessLost = "process_lost", Aborted, No,
                    "The daemon lost the process in a service, and does not know how it ended. Start the process again.";
                ListensLocally = "listens_locally", FailedPrecondition, No,
                    "The app listens on its loopback address only, where nothing outside of it reaches it. Let it listen on 0.0.0.0.",
                    hint "let it listen on 0.0.0.0";
                PortNotListening = "port_not_listening", FailedPrecondition, No,
                    "Nothing in the app listens on the port that the service publishes. Check the port, and the log of the app.";
                NeverHealthy = "never_healthy", FailedPrecondition, No,
                    "The health check did not succeed within the start limit. The error has the last probes.";
                BecameUnhealthy = "became_unhealthy", FailedPrecondition, No,
                    "The app was healthy, and its health check fails since. The error has the last probes.";
            }
        }
    };
}
