#!/usr/bin/env bash
# `make demo`: builds an image in a room from files of the room, deploys it as a service and reaches it with curl,
# step by step. It needs no Docker and no registry, uses a daemon and a room of its own under target/demo, and leaves
# nothing running.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
dir=target/demo
room=demo
# shellcheck source=deploy/throwaway-daemon.sh
source deploy/throwaway-daemon.sh

if [ -t 1 ] && [ -z "${NO_COLOR-}" ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
steps=0
step() { steps=$((steps + 1)); printf '\n%s%d. %s%s\n' "$bold" "$steps" "$*" "$plain"; }
say() { printf '   %s\n' "$*"; }
show() { printf '   %s$ %s%s\n' "$dim" "$*" "$plain"; }
# Prints a command so that it can be pasted, then runs it.
run() {
    local word line=
    for word in "$@"; do
        [[ "$word" =~ ^[A-Za-z0-9_./:=@,+-]+$ ]] || word="'$word'"
        line+="$word "
    done
    show "${line% }"
    "$@"
}

# Process that requests the page continuously while the service is updated.
requester=

finish() {
    local status=$?
    # Errors while cleaning up must not hide the status of the demo.
    set +e
    if [ "$status" -ne 0 ] && [ -s "$dir/hearthd.log" ]; then
        printf '\nThe demo failed (exit %d). The end of the daemon'\''s log, %s:\n' "$status" "$dir/hearthd.log" >&2
        tail -n 30 "$dir/hearthd.log" >&2
    fi
    [ -z "$requester" ] || kill "$requester" 2>/dev/null
    stop_daemon
    rm -rf "$dir/app" "$dir/pulled" "$dir/busybox" "$dir/answers"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step "Set up the machine and compile"
run deploy/setup.sh
command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or newer first" >&2; exit 1; }
# The dev profile and the whole workspace, as in `make test`, so that both share one compilation.
run cargo build --locked --workspace
export PATH="$root/target/debug:$PATH"

step "Start a daemon for the room \"$room\""
mkdir -p "$dir"
rm -rf "$dir/app" "$dir/pulled"
show "hearthd --room $room --state-dir target/demo/state --listen 127.0.0.1:0 --ingress 127.0.0.1:0 --socket ..."
start_daemon "$dir" "$root/target/debug/hearthd" "$room"
say "It listens on $listen and, without a token for this user, on"
say "HEARTH_ADDR=$HEARTH_ADDR"

step "Pack a base image into the room"
say "The demo uses no other registry, so the base image is made from the busybox of this machine."
run deploy/base-image.sh "$dir/busybox"
run hearth pack "$dir/busybox" --room "$room" --tag room.meshagent.com/busybox:demo \
    --cmd '["sh"]' --env PATH=/usr/sbin:/usr/bin:/sbin:/bin

step "Put a small app into room storage"
cp -r examples/my-app "$dir/app"
show "cat Dockerfile"
sed 's/^/     /' "$dir/app/Dockerfile"
run hearth storage put "$dir/app" /apps/my-app

step "Build it inside the room"
say "The daemon reads the files from room storage; this client only watches. The build log goes to stderr, and stdout"
say "has only the result: the digest of the image."
build=(hearth build --room "$room" --tag room.meshagent.com/my-app:dev
    --mount-room-path /apps/my-app:/context:ro --context-path /context)
show "digest=\$(${build[*]})"
digest=$("${build[@]}")
say "Built: $digest"

step "Run it as a service of the room"
say "The service is live when the command returns: it runs on containerd, is healthy, and receives traffic from the ingress."
deploy=(hearth deploy --room "$room" --tag room.meshagent.com/my-app:dev --domain app.test --public)
show "${deploy[*]}"
"${deploy[@]}"
show "curl -H 'Host: app.test' http://$ingress/"
page() { curl -fsS --max-time 10 -H 'Host: app.test' "http://$ingress/"; }
page | tee "$dir/answers"
grep -q 'from files of the room' "$dir/answers"

step "Change one file in the room, build and deploy again"
sed -i 's/Built in the room/Built again in the room/' "$dir/app/site/index.html"
run hearth storage put "$dir/app/site/index.html" /apps/my-app/site/index.html
say "Meanwhile a client requests the page without a pause."
: >"$dir/answers"
while :; do
    curl -s -o /dev/null -w '%{http_code}\n' --max-time 10 -H 'Host: app.test' "http://$ingress/" >>"$dir/answers" || echo "failed" >>"$dir/answers"
done &
requester=$!
show "${build[*]}"
digest=$("${build[@]}")
show "${deploy[*]}"
"${deploy[@]}"
kill "$requester" && { wait "$requester" 2>/dev/null || true; }
requester=
show "curl -H 'Host: app.test' http://$ingress/"
page | tee "$dir/answers.new"
grep -q 'Built again' "$dir/answers.new"
rm "$dir/answers.new"
say "Responses while it was built and deployed: $(sort "$dir/answers" | uniq -c | awk '{ printf "%s%s x %s", sep, $1, $2; sep = ", " }')."
if grep -qvx 200 "$dir/answers"; then
    echo "a request failed during the update" >&2
    exit 1
fi
run hearth services list

step "See what the room has"
run hearth images list

step "Pull it with an ordinary client"
say "The room's registry speaks the OCI distribution protocol; the password is a participant token."
show "TOKEN=\$(hearth token mint --name demo --scope full)"
token=$(hearth token mint --name demo --scope full)
show "skopeo copy --src-tls-verify=false --src-creds any:\$TOKEN docker://$listen/my-app:dev oci:$dir/pulled:dev"
skopeo copy --src-tls-verify=false --src-creds "any:$token" "docker://$listen/my-app:dev" "oci:$dir/pulled:dev"
run skopeo inspect --config --format 'runs {{.Config.Cmd}}, listens on {{.Config.ExposedPorts}}' "oci:$dir/pulled:dev"
pulled=$(skopeo inspect --tls-verify=false --creds "any:$token" --format '{{.Digest}}' "docker://$listen/my-app:dev")
if [ "$pulled" != "$digest" ]; then
    echo "the registry answers with $pulled, the build said $digest" >&2
    exit 1
fi
say "The registry answers with the digest that the build printed."

step "Remove the service, stop the daemon and clean up"
run hearth services rm my-app
stop_daemon
say "Done. \`make test\` runs the tests; README.md says where to go from here."
