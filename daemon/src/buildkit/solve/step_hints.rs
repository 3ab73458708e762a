//! Hints for a failed step, from the last lines of its log: what well-known programs print about well-known mistakes.

/// What a line of a step's log says, and what to do then. The first row that a log has wins.
const HINTS: [(&[&str], &str); 7] = [
    (
        &["fork", "Resource temporarily unavailable"],
        "the steps of a builder may have no more processes; let the step start fewer, or raise `step_processes` of the daemon",
    ),
    (
        &["exec format error"],
        "the step's program is for a platform that the builder cannot run, or is a script without a #! line; for other platforms, install qemu-user-static on the builder's machine",
    ),
    (
        &["No space left on device"],
        "the builder's disk is full; `hearth system df` shows what is held, and less free space than the step needs is left",
    ),
    (
        &["E: Unable to locate package"],
        "the image has no package lists, or old ones: write `apt-get update && apt-get install` in one RUN, or correct the name of the package",
    ),
    (
        &["has no installation candidate"],
        "the package lists of the image do not offer this package: write `apt-get update && apt-get install` in one RUN, or correct the name of the package",
    ),
    (
        &["emporary failure", "resol"],
        "a name was not resolved: check the name, whether [builds.egress] of the daemon allows it, and that the build has no `--network none`",
    ),
    (
        &["ould not resolve host"],
        "a name was not resolved: check the name, whether [builds.egress] of the daemon allows it, and that the build has no `--network none`",
    ),
];

/// Returns the hint for a log, if one of its lines is known.
pub(super) fn step_hint(tail: &[String]) -> Option<&'static str> {
    let says = |words: &[&str]| tail.iter().any(|line| words.iter().all(|word| line.contains(word)));
    HINTS.iter().find(|(words, _)| says(words)).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_lines_have_a_hint_and_others_have_none() {
        for (line, words) in [
            ("sh: fork: retry: Resource temporarily unavailable", "step_processes"),
            ("exec /bin/x: exec format error", "qemu-user-static"),
            ("cp: write error: No space left on device", "hearth system df"),
            ("E: Unable to locate package curl", "apt-get update"),
            ("E: Package 'curl' has no installation candidate", "apt-get update"),
            ("Temporary failure resolving 'deb.debian.org'", "builds.egress"),
            ("fatal: unable to look up x: Temporary failure in name resolution", "builds.egress"),
            ("curl: (6) Could not resolve host: example.com", "builds.egress"),
        ] {
            let hint = step_hint(&["before".to_owned(), line.to_owned(), "after".to_owned()]);
            assert!(hint.is_some_and(|hint| hint.contains(words)), "{line}: {hint:?}");
        }
        assert_eq!(step_hint(&["error: x".to_owned(), "fork".to_owned()]), None);
    }
}
