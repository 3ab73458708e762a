#!/usr/bin/env bash
# Mutation tests for one module of the daemon: `make mutants MODULE=build/admission.rs`. cargo-mutants makes one change
# at a time and runs the unit tests of that module on each. The changes that no test detects are listed at the end and
# in target/mutants.out/missed.txt. Meant for small and pure modules: each change is compiled anew, about a minute. Not
# part of CI. TESTS=some::path runs other tests than those below the module's path; HEARTH_MUTANTS_MINUTES limits the
# whole run (60).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

module=${1:-}
if [[ -z $module || ! -f daemon/src/$module ]]; then
    echo "mutants: MODULE is a file below daemon/src, such as build/admission.rs${module:+; there is no $module}" >&2
    exit 2
fi
if ! cargo mutants --version >/dev/null 2>&1; then
    echo 'mutants: cargo-mutants is not installed here: cargo install --locked cargo-mutants' >&2
    exit 2
fi
path=${module%.rs}
tests=${TESTS:-${path//\//::}}
mkdir -p target
# The changed copy has its own target directory, which keeps the built dependencies from one run to the next.
export CARGO_TARGET_DIR=$PWD/target/mutants
status=0
timeout "${HEARTH_MUTANTS_MINUTES:-60}m" cargo mutants --package hearthd --file "daemon/src/$module" --output target \
    --timeout 120 --no-shuffle --cargo-arg=--locked --cargo-arg=--lib -- "$tests" || status=$?
case $status in
    0) echo "mutants: the tests $tests detect every change of $module" ;;
    2) echo "mutants: changes of $module that the tests $tests do not detect:"; cat target/mutants.out/missed.txt ;;
    124) echo 'mutants: time limit reached; not detected so far:'; cat target/mutants.out/missed.txt ;;
    *) echo "mutants: cargo-mutants exited with status $status" ;;
esac
exit "$status"
