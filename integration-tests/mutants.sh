#!/usr/bin/env bash
# Changes one module of the daemon in all the ways that cargo-mutants knows, one at a time, and runs the unit tests of
# that module on each: `make mutants MODULE=build/admission.rs`. What no test notices is listed at the end, and is in
# target/mutants.out/missed.txt. For modules that are small and pure: each change is compiled anew, about a minute. No
# part of CI. TESTS=some::path runs other tests than those below the module's path; HEARTH_MUTANTS_MINUTES bounds the
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
# The copy that is changed is built in a directory of its own, which keeps the dependencies from one run to the next.
export CARGO_TARGET_DIR=$PWD/target/mutants
status=0
timeout "${HEARTH_MUTANTS_MINUTES:-60}m" cargo mutants --package hearthd --file "daemon/src/$module" --output target \
    --timeout 120 --no-shuffle --cargo-arg=--locked --cargo-arg=--lib -- "$tests" || status=$?
case $status in
    0) echo "mutants: the tests $tests notice every change of $module" ;;
    2) echo "mutants: changes of $module that the tests $tests do not notice:"; cat target/mutants.out/missed.txt ;;
    124) echo 'mutants: the time is over; so far, not noticed:'; cat target/mutants.out/missed.txt ;;
    *) echo "mutants: cargo-mutants ended with $status" ;;
esac
exit "$status"
