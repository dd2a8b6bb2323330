# Sourced by tests/provision.sh and tests/restore-pod.sh: where the cached test inputs
# are, and how a sandbox of the reference pod is started and ended. One place, because
# a restore works only with the flags, the bundle and the kinds of standard streams
# (/dev/null, a file, a file) of the checkpointed run.

cache=$(realpath -m -- "${PODSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/podsnap}")
runsc_binary=$cache/bin/runsc

# Everything of the sandboxes of one script run; the script makes it with mktemp.
sandbox_dir=

# Why not: nothing on standard output when a sandbox can run here, else the reason.
sandbox_unavailable() {
    if [ "$(uname -s)" != Linux ]; then echo "gVisor needs Linux"
    elif [ "$(id -u)" != 0 ]; then echo "runsc needs root"
    elif [ ! -x "$runsc_binary" ]; then echo "runsc is not installed in $cache/bin"
    fi
}

runsc_flags=(--platform=systrap --network=none --ignore-cgroups --overlay2=root:memory)

# A command about a sandbox that sandbox_start began; never waits for ever.
runsc() {
    timeout --kill-after=1 60 "$runsc_binary" "${runsc_flags[@]}" --root "$sandbox_dir/state" "$@"
}

# sandbox_start LOG run|restore ARGUMENTS...: in the background; its process id is in
# $sandbox_pid. runsc ends its sandbox when it dies, setpriv lets it die with this script,
# and unshare keeps the mount it makes in its state directory out of the host's sight: even
# a script that is killed leaves neither a sandbox nor a mount behind.
sandbox_start() {
    local log=$1
    shift
    : >"$log"
    unshare --mount setpriv --pdeathsig KILL "$runsc_binary" "${runsc_flags[@]}" --root "$sandbox_dir/state" "$@" \
        </dev/null >"$log" 2>"$log.err" 9>&- &
    sandbox_pid=$!
}

# The highest number a pod has counted to in LOG, or 0. A restored pod goes on at its
# old file offset, so the front of its log is a hole of NUL bytes.
last_count() {
    local number
    number=$(tr -d '\0' <"$1" | sed -n 's/^count \([0-9]*\)$/\1/p' | tail -n 1)
    echo "${number:-0}"
}

# wait_for_count LOG N SECONDS: until LOG shows a count of at least N; fails when the
# time is over or the sandbox has ended.
wait_for_count() {
    local deadline=$((SECONDS + $3))
    while [ "$(last_count "$1")" -lt "$2" ]; do
        if [ $SECONDS -ge $deadline ]; then return 1; fi
        if ! kill -0 "$sandbox_pid" 2>/dev/null; then return 1; fi
        sleep 0.05
    done
}

# For the trap on EXIT: ends every sandbox under $sandbox_dir, then removes it.
sandbox_clean() {
    local state id
    [ -n "$sandbox_dir" ] || return 0
    for state in "$sandbox_dir"/state/*.state; do
        [ -e "$state" ] || continue
        id=$(basename "$state" .state)
        id=${id%%_sandbox:*}
        runsc delete -force "$id" >/dev/null 2>&1
    done
    if [ -n "${sandbox_pid:-}" ]; then
        kill -KILL "$sandbox_pid" 2>/dev/null
        wait "$sandbox_pid" 2>/dev/null
    fi
    rm -rf "$sandbox_dir"
    sandbox_dir=
}
