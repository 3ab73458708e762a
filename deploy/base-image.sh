#!/usr/bin/env bash
# Creates the root file system of a small base image from Debian's busybox-static, so that examples and tests need no
# registry:
#
#   deploy/base-image.sh DIR
#   hearth pack DIR --tag busybox:demo --cmd '["sh"]'
#
# The same busybox always gives the same tree. If DIR exists, it is replaced if this script created it, and refused
# otherwise.
set -euo pipefail

die() { printf 'base-image: error: %s\n' "$*" >&2; exit 1; }

[ $# -eq 1 ] || die "usage: deploy/base-image.sh DIR"
target=${1%/}
[ -n "$target" ] || die "refusing to write to /"

busybox=$(command -v busybox) || die "busybox is missing; run deploy/setup.sh"
# An image of this one file has no shared libraries, so only the static build of busybox works in it.
if LC_ALL=C ldd "$busybox" 2>/dev/null | grep -q '=>'; then
    die "$busybox needs shared libraries; install the package busybox-static"
fi

if [ -e "$target" ] && [ -n "$(ls -A "$target")" ] && [ ! -L "$target/bin/sh" ]; then
    die "$target exists and was not created by this script; name another directory"
fi

umask 022
mkdir -p "$(dirname "$target")"
# Created beside the target and renamed, so that a tree under the final name is always complete.
new=$(mktemp -d "$target.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
chmod 0755 "$new"

mkdir "$new"/{bin,dev,etc,home,mnt,proc,root,run,sys,tmp,usr,var,var/tmp}
ln -s bin "$new/sbin"
ln -s ../bin "$new/usr/bin"
ln -s ../bin "$new/usr/sbin"

install -m 0755 "$busybox" "$new/bin/busybox"
while read -r applet; do
    [ "$applet" = busybox ] || ln -s busybox "$new/bin/$applet"
done < <("$busybox" --list)

printf '%s\n' \
    'root:x:0:0:root:/root:/bin/sh' \
    'nobody:x:65534:65534:nobody:/:/bin/false' >"$new/etc/passwd"
printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >"$new/etc/group"

chmod 0700 "$new/root"
chmod 1777 "$new/tmp" "$new/var/tmp"
find "$new" -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +

rm -rf "$target"
mv -T "$new" "$target"
