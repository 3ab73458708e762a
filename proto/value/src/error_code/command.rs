//! Error codes that the `hearth` command itself reports.

/// Adds the rows of this area, and passes all rows on to the next macro.
macro_rules! command_error_codes {
    ($next:ident $($rest:ident)*; $($seen:tt)*) => {
        $next! {
            $($rest)*; $($seen)*
            Command "Command line" {
                Usage = "usage", InvalidArgument, No,
                    "The command line is not valid. `--help` shows what the command accepts.";
                Unreachable = "unreachable", Unavailable, Yes,
                    "Nothing answers at the address of the room. Check that hearthd runs, and that the address is right.",
                    hint "check that hearthd runs and that the address is right (`hearth room list`)";
                Protocol = "protocol", Internal, No,
                    "The daemon answered in a way that this client does not understand. Client and daemon may be of different versions.",
                    hint "client and daemon may be of different versions; compare `hearth --version` and `hearth doctor`";
                UnknownRoom = "unknown_room", InvalidArgument, No,
                    "The chosen room is neither in the rooms file nor on this machine. Add it with `hearth room add`.",
                    hint "`hearth room add NAME --addr http://HOST:PORT --token-file FILE` makes a room known";
                NoRoom = "no_room", InvalidArgument, No,
                    "No room was chosen, and no daemon runs on this machine. Start hearthd, or choose a room.",
                    hint "start hearthd here, or choose a room with --room, --addr or HEARTH_ROOM; `hearth room list` shows the known ones";
                WrongRoom = "wrong_room", InvalidArgument, No,
                    "The daemon at the address belongs to another room than the one that was chosen. Correct the room or the address.";
                RoomsFile = "rooms_file", InvalidArgument, No,
                    "The file with the known rooms cannot be read or written, or is malformed. Repair it, or remove it and add the rooms again.";
                EmptyToken = "empty_token", InvalidArgument, No,
                    "The file or variable for the token holds no token. Put the token there.",
                    hint "`hearth token mint` on the daemon's machine prints one";
                UnknownErrorCode = "unknown_error_code", InvalidArgument, No,
                    "`hearth explain` was asked about a code that this version does not have. The error suggests codes that are spelled alike.";
                WaitTimedOut = "wait_timed_out", DeadlineExceeded, Yes,
                    "The time limit of the client's wait is over. What was waited for goes on in the room; wait longer with `--timeout`.";
                LocalFile = "local_file", FailedPrecondition, No,
                    "A file on this machine cannot be read or written. The message has the path and the cause.";
                LocalIo = "local_io", FailedPrecondition, No,
                    "Reading or writing on this machine failed. The message has the cause.";
                CutOff = "cut_off", FailedPrecondition, No,
                    "A file became shorter while it was read. Read it again when nothing writes to it.";
                InvalidBase = "invalid_base", FailedPrecondition, No,
                    "The image that a pack is to be based on is malformed. Use another base image.";
                OutputClosed = "output_closed", Cancelled, No,
                    "The program that reads the output closed it. The command ends without an error.";
                Ended = "ended", FailedPrecondition, No,
                    "A program that ran in a service ended with an exit code other than 0. Its own output says why.";
            }
        }
    };
}
