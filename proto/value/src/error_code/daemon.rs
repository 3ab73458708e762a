//! Error codes of the daemon itself.

/// Adds the rows of this area, and passes all rows on to the next macro.
macro_rules! daemon_error_codes {
    ($next:ident $($rest:ident)*; $($seen:tt)*) => {
        $next! {
            $($rest)*; $($seen)*
            Daemon "Daemon" {
                Internal = "internal", Internal, Depends,
                    "The daemon, or the client, failed in a way that no request should cause. The daemon's log has the cause.";
                NotReady = "not_ready", FailedPrecondition, Depends,
                    "A component that the room needs, such as a builder or the container runtime, is not ready. `hearth doctor` shows which one, and why.";
                Draining = "draining", Unavailable, Yes,
                    "The daemon is ending and accepts no new work. Try again when it has started again.";
            }
        }
    };
}
