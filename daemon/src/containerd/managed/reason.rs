//! Extraction of the reason why containerd exited, from its log.

use crate::supervise::program;

/// Texts in containerd's last log lines, with advice for each.
const KNOWN: [(&str, &str); 5] = [
    ("no space left on device", "free disk space"),
    ("operation not permitted", "a capability is missing; in a container run it with `--privileged`"),
    ("permission denied", "the state directory must be writable by root"),
    ("address already in use", "another process listens on its socket; end it"),
    ("timeout", "another containerd uses the same directory; end it, or choose another state directory"),
];

pub(super) fn explain(log_tail: &str) -> Option<String> {
    let says_why = |line: &str| {
        ["containerd: ", "panic: ", "fatal error: "].iter().any(|start| line.starts_with(start))
            || line.contains("level=fatal")
    };
    program::explain_exit(log_tail, says_why, &KNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_error() {
        let log =
            "time=\"x\" level=warning msg=\"cleanup\"\ncontainerd: mkdir /s/root: no space left on device\n";
        let reason = explain(log).unwrap();
        assert!(reason.contains("mkdir /s/root") && reason.ends_with("free disk space"), "{reason}");
        assert_eq!(explain("time=\"x\" level=info msg=hello\n"), None);
    }
}
