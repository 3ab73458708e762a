# shellcheck shell=bash
# Runs a daemon for the duration of one script: demo.sh and self-image.sh source this file.
#
#   start_daemon DIR HEARTHD ROOM    starts a daemon with empty state in DIR/state; exports HEARTH_ADDR, and sets
#                                    `listen` and `ingress` (host:port)
#   stop_daemon                      drains the daemon and removes its state; to be called in the script's EXIT trap
#
# stop_daemon stops only what start_daemon started, and leaves no service, process, mount or state of it behind.

daemon_pid=
daemon_dir=

# `rm -rf` must never descend into a mount that a killed daemon left behind.
unmount_below() {
    local point
    while read -r point; do
        umount -l "$point" 2>/dev/null || true
    done < <(awk -v below="$1/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
}

start_daemon() {
    local hearthd=$2 room=$3 log pid waited
    daemon_dir=$(realpath -m "$1")
    unmount_below "$daemon_dir/state"
    rm -rf --one-file-system "$daemon_dir/state"
    mkdir -p "$daemon_dir/state"
    log="$daemon_dir/hearthd.log"
    # The user's environment may have settings for other rooms, which must not apply to this one.
    unset HEARTH_ROOM HEARTH_TOKEN HEARTH_CONFIG MESHAGENT_ROOM MESHAGENT_TOKEN

    # setsid gives the daemon its own session, so that Ctrl-C reaches only this script, which then drains the daemon.
    setsid "$hearthd" --room "$room" --state-dir "$daemon_dir/state" --listen 127.0.0.1:0 --ingress 127.0.0.1:0 \
        --socket "$daemon_dir/state/hearth.sock" >"$log" 2>&1 </dev/null &
    pid=$!
    daemon_pid=$pid

    local addresses="$daemon_dir/state/addresses.json"
    for ((waited = 0; waited < 600; waited++)); do
        if ! kill -0 "$pid" 2>/dev/null; then
            echo "the daemon ended while it started; the end of $log:" >&2
            tail -n 20 "$log" >&2
            return 1
        fi
        if [ -s "$addresses" ]; then
            listen=$(sed -n 's/.*"listen" *: *"\([^"]*\)".*/\1/p' "$addresses")
            # shellcheck disable=SC2034 # for the script that sources this
            ingress=$(sed -n 's/.*"ingress" *: *"\([^"]*\)".*/\1/p' "$addresses")
            if [ -n "$listen" ] && curl -fsS -o /dev/null --max-time 2 "http://$listen/readyz" 2>/dev/null; then
                export HEARTH_ADDR="unix://$daemon_dir/state/hearth.sock"
                return 0
            fi
        fi
        sleep 0.1
    done
    echo "the daemon was not ready within a minute; the end of $log:" >&2
    tail -n 20 "$log" >&2
    return 1
}

stop_daemon() {
    [ -n "$daemon_pid" ] || return 0
    local waited service
    # Services outlive their daemon, so they are removed first.
    for service in $(ls "$daemon_dir/state/service-logs" 2>/dev/null); do
        hearth services rm "$service" >/dev/null 2>&1 || true
    done
    kill -TERM "$daemon_pid" 2>/dev/null || true
    for ((waited = 0; waited < 300; waited++)); do
        kill -0 "$daemon_pid" 2>/dev/null || break
        sleep 0.1
    done
    if kill -0 "$daemon_pid" 2>/dev/null; then
        echo "the daemon did not drain within 30 s and is killed; its log: $daemon_dir/hearthd.log" >&2
    fi
    # The process group also contains the daemon's children, in case it died without them.
    kill -KILL -- "-$daemon_pid" 2>/dev/null || true
    wait "$daemon_pid" 2>/dev/null || true
    daemon_pid=
    unmount_below "$daemon_dir/state"
    rm -rf --one-file-system "$daemon_dir/state"
}
