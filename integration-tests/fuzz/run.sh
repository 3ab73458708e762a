#!/usr/bin/env bash
# Runs the fuzz targets for this many minutes in total, the same time for each: `make fuzz MINUTES=10`.
#
# Where a nightly toolchain and cargo-fuzz are installed, the targets run with coverage; otherwise the same bodies run
# on stable with randomly changed seeds. Build time is not counted. A failing input is kept in artifacts/TARGET, and the
# script prints how to make it a seed. Exits with 1 if there is one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

minutes=${1:-10}
if ! [[ $minutes =~ ^[1-9][0-9]{0,4}$ ]]; then
    echo "fuzz: MINUTES is a whole number from 1 on, not \`$minutes\`" >&2
    exit 2
fi
targets=()
for path in targets/*.rs; do
    name=${path##*/}
    targets+=("${name%.rs}")
done
seconds=$((minutes * 60 / ${#targets[@]}))
started=$(mktemp)
trap 'rm -f "$started"' EXIT
mkdir -p artifacts

failed=()
if cargo +nightly fuzz --version >/dev/null 2>&1; then
    # The readers have no unsafe code of their own: a sanitizer would find little and halve the speed.
    cargo +nightly fuzz build --fuzz-dir . --sanitizer none
    for target in "${targets[@]}"; do
        echo "fuzz: $target with coverage for $seconds s"
        mkdir -p "corpus/$target" "artifacts/$target"
        cargo +nightly fuzz run --fuzz-dir . --sanitizer none "$target" "corpus/$target" "seeds/$target" -- \
            -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=200000 -print_final_stats=1 ||
            failed+=("$target")
    done
else
    echo 'fuzz: no nightly toolchain with cargo-fuzz here (rustup toolchain install nightly; cargo install cargo-fuzz);'
    echo "fuzz: the bodies run on stable, without coverage, for $seconds s each"
    HEARTH_FUZZ_SECONDS=$seconds HEARTH_FUZZ_ARTIFACTS=$PWD/artifacts \
        cargo test --locked --manifest-path ../../Cargo.toml -p hearthd --test hostile -- --test-threads=1 --nocapture ||
        failed+=(stable)
fi

found=$(find artifacts -type f -newer "$started" | sort)
if [[ -z $found && ${#failed[@]} -eq 0 ]]; then
    echo "fuzz: $minutes min, ${#targets[@]} targets, nothing found"
    exit 0
fi
echo "fuzz: inputs that fail, in integration-tests/fuzz:"
echo "${found:-no input was kept; see the messages above}"
echo 'fuzz: after the fix, keep each input as a seed under a name that describes it; every test run reads it:'
for path in $found; do
    target=$(basename "$(dirname "$path")")
    echo "    mv $path seeds/$target/NAME"
done
exit 1
