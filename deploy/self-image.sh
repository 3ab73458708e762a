#!/usr/bin/env bash
# `make self-image`: builds the daemon's own image with the daemon, from the same Dockerfile that any other builder
# uses. Nothing is pulled: the two base images are packed from Debian packages (debootstrap) and the Rust toolchain of
# this machine, BuildKit is the installed one, and the crates are vendored into the context. The result is an OCI
# archive, target/self-image/hearthd.oci.tar. The first run takes several minutes; later runs reuse the bases.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
dir="$root/target/self-image"
room=self-image
suite=bookworm
# shellcheck source=deploy/throwaway-daemon.sh
source deploy/throwaway-daemon.sh

say() { printf '\nself-image: %s\n' "$*"; }
trap stop_daemon EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

deploy/setup.sh
cargo build --locked --workspace
export PATH="$root/target/debug:$PATH"
mkdir -p "$dir"

# A base is created under a temporary name and renamed when it is complete.
debian_base() { # NAME [PACKAGES]
    local name=$1 new="$dir/$1.new"
    [ ! -d "$dir/$name" ] || return 0
    say "debootstrap: $name${2:+ with $2}"
    unmount_below "$new"
    rm -rf --one-file-system "$new"
    debootstrap --variant=minbase ${2:+--include="$2"} "$suite" "$new" >"$dir/$name.log" || {
        tail -n 20 "$dir/$name.log" >&2
        return 1
    }
    # An image has no device nodes (the runtime creates them), and the other files differ on every run or are not
    # needed.
    rm -rf "${new:?}"/{dev,tmp,var/cache,var/log,var/lib/apt/lists,usr/share/doc,usr/share/man,usr/share/locale}/* \
        "$new"/etc/{machine-id,hostname,resolv.conf}
    mv -T "$new" "$dir/$name"
}

debian_base runtime-base libseccomp2,ca-certificates,containerd,nftables
if [ ! -x "$dir/build-base/usr/local/bin/cargo" ]; then
    rm -rf --one-file-system "$dir/build-base"
    debian_base build-base gcc,libc6-dev,make,pkg-config,protobuf-compiler,libprotobuf-dev,ca-certificates
    say "copying the Rust toolchain"
    sysroot=$(rustc --print sysroot)
    mkdir -p "$dir/build-base/usr/local/lib"
    cp -a "$sysroot/lib/." "$dir/build-base/usr/local/lib/"
    # cargo is copied last, because the check above looks for it.
    cp -a "$sysroot/bin/rustc" "$dir/build-base/usr/local/bin/"
    cp -a "$sysroot/bin/cargo" "$dir/build-base/usr/local/bin/"
fi

# The layout is that of the published BuildKit image, which the Dockerfile uses by default.
rm -rf "$dir/buildkit"
mkdir -p "$dir/buildkit/usr/bin"
for name in buildkitd buildctl; do cp "$(PATH="$PATH:/usr/local/bin" command -v "$name")" "$dir/buildkit/usr/bin/"; done
cp "$(command -v runc)" "$dir/buildkit/usr/bin/buildkit-runc"

say "context: the files that git knows, and the crates"
rm -rf "$dir/context"
mkdir -p "$dir/context/.cargo"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -P -t "$dir/context"
cargo vendor --locked --versioned-dirs "$dir/context/vendor" >"$dir/context/.cargo/config.toml" 2>"$dir/vendor.log" || {
    tail -n 20 "$dir/vendor.log" >&2
    exit 1
}
# The printed settings contain the local path of the directory; in the build it is beside the sources.
sed -i "s#^directory = .*#directory = \"vendor\"#" "$dir/context/.cargo/config.toml"

say "starting the daemon"
start_daemon "$dir" "$root/target/debug/hearthd" "$room"
for name in runtime-base build-base buildkit; do
    say "hearth pack $name"
    hearth pack "$dir/$name" --room "$room" --tag "room.meshagent.com/$name:1" --env PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
done

say "hearth build"
hearth build --room "$room" --tag room.meshagent.com/hearthd:dev --pack "$dir/context" \
    --build-arg BUILD_BASE=room.meshagent.com/build-base:1 \
    --build-arg RUNTIME_BASE=room.meshagent.com/runtime-base:1 \
    --build-arg BUILDKIT_IMAGE=room.meshagent.com/buildkit:1
token=$(hearth token mint --name self-image --scope full)
rm -f "$dir/hearthd.oci.tar"
skopeo copy --src-tls-verify=false --src-creds "any:$token" "docker://$listen/hearthd:dev" "oci-archive:$dir/hearthd.oci.tar:dev"
say "wrote target/self-image/hearthd.oci.tar"
