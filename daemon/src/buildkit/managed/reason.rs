//! Explains from its log why buildkitd exited.

use crate::supervise::program;

/// Pieces of buildkitd's error messages, each with a hint about what to do.
const KNOWN: [(&str, &str); 6] = [
    (
        "could not lock",
        "another buildkitd uses the same directory; end it, or choose another state directory",
    ),
    ("no space left on device", "free disk space"),
    ("operation not permitted", "a capability is missing; in a container run it with `--privileged`"),
    ("permission denied", "the state directory must be writable by root"),
    ("address already in use", "another process listens on its socket; end it"),
    ("failed to find", "install runc"),
];

pub(super) fn explain(log_tail: &str) -> Option<String> {
    // A stack trace follows the error line; a panic of the Go runtime has its own prefix.
    let says_why =
        |line: &str| ["buildkitd: ", "panic: ", "fatal error: "].iter().any(|start| line.starts_with(start));
    program::explain_exit(log_tail, says_why, &KNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_error_and_not_its_stack() {
        let log = "time=x level=info msg=\"auto snapshotter: using overlayfs\"\n\
                   buildkitd: could not lock /s/buildkitd.lock, another instance running?\n\
                   main.main.func3\n\t/src/main.go:340\nruntime.goexit\n";
        let reason = explain(log).unwrap();
        assert!(reason.starts_with("buildkitd: could not lock /s/buildkitd.lock"), "{reason}");
        assert!(reason.contains("choose another state directory"));
        assert_eq!(explain("time=x level=info msg=hello\n"), None);
    }
}
