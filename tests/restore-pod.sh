#!/usr/bin/env bash
# Restores a gVisor image directory of the reference pod (tests/provision.sh) in a new
# sandbox, and sees whether the pod resumes where it was: it must neither start anew nor
# count from an earlier number than it had reached when it was checkpointed.
#
# Usage: tests/restore-pod.sh IMAGE_DIR [--background] [--direct] [--image NAME] [--timeout SECONDS]
#
# IMAGE_DIR may be any directory with the image's three files, a mount included. Which
# checkpoint it is a copy of (and so which bundle and which count belong to it) is found by
# comparing checkpoint.img with the cached images, unless --image names R, R2, small or small2.
#
# Prints what it saw. Exit status: 0 it counts on, 1 it does not, 2 usage, 77 SKIPPED: sandboxes
# cannot run here. Sandbox and temporary files are gone afterwards, however it ends.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/pod/sandbox.sh"

usage() {
    sed -n 's/^# Usage: /Usage: /p' "${BASH_SOURCE[0]}" >&2
    exit 2
}
fail() {
    echo "FAILED: $*"
    if [ -n "$sandbox_dir" ] && [ -s "$sandbox_dir/log.err" ]; then
        tail -n 5 "$sandbox_dir/log.err"
    fi
    exit 1
}

image_dir= name= timeout=60 flags=()
while [ $# -gt 0 ]; do
    case $1 in
    --background | --direct) flags+=("$1") ;;
    --image | --timeout)
        [ $# -ge 2 ] || usage
        if [ "$1" = --image ]; then name=$2; else timeout=$2; fi
        shift
        ;;
    -*) usage ;;
    *)
        [ -z "$image_dir" ] || usage
        image_dir=$1
        ;;
    esac
    shift
done
[ -n "$image_dir" ] || usage

reason=$(sandbox_unavailable)
if [ -n "$reason" ]; then
    echo "SKIPPED: restore-pod: $reason"
    exit 77
fi
image_dir=$(realpath -e -- "$image_dir" 2>/dev/null) || fail "there is no directory $image_dir"
for file in checkpoint.img pages_meta.img pages.img; do
    [ -f "$image_dir/$file" ] || fail "$image_dir has no $file"
done
if [ -z "$name" ]; then
    for candidate in small small2 R R2; do
        if cmp -s "$image_dir/checkpoint.img" "$cache/images/$candidate/checkpoint.img"; then
            name=$candidate
        fi
    done
    [ -n "$name" ] || fail "$image_dir/checkpoint.img is none of the images in $cache/images"
fi
case $name in
R | R2) bundle=$cache/pod/model ;;
small | small2) bundle=$cache/pod/small ;;
*) usage ;;
esac
checkpointed=$(cat "$cache/images/$name.count") || fail "no image $name in $cache/images"

trap sandbox_clean EXIT
trap 'exit 130' INT TERM HUP
sandbox_dir=$(mktemp -d "${TMPDIR:-/tmp}/podsnap-pod-XXXXXX")
mkdir "$sandbox_dir/state"
log=$sandbox_dir/log
id=podsnap-restore-$$

begin=$(date +%s%N)
sandbox_start "$log" restore -bundle "$bundle" --image-path "$image_dir" "${flags[@]}" "$id"
if ! wait_for_count "$log" 1 "$timeout"; then
    if kill -0 "$sandbox_pid" 2>/dev/null; then fail "nothing was counted in $timeout s"; fi
    fail "the sandbox ended before the pod counted"
fi
first_output=$((($(date +%s%N) - begin) / 1000000))
if tr -d '\0' <"$log" | grep -q '^started'; then fail "the pod started anew"; fi
first=$(tr -d '\0' <"$log" | sed -n 's/^count \([0-9]*\)$/\1/p' | head -n 1)
if [ "$first" -le "$checkpointed" ]; then
    fail "the pod counts $first, but it had reached $checkpointed when it was checkpointed"
fi
# It resumed; now see that it lives: several more rounds, each one more than the last.
if ! wait_for_count "$log" $((first + 3)) "$timeout"; then
    fail "the pod stopped at $(last_count "$log"), having resumed at $first"
fi
last=$(last_count "$log")
expected=$(seq "$first" "$last")
seen=$(tr -d '\0' <"$log" | sed -n 's/^count \([0-9]*\)$/\1/p' | head -n $((last - first + 1)))
if [ "$seen" != "$expected" ]; then fail "the pod did not count one by one: $(echo $seen)"; fi
echo "restored $name from $image_dir: checkpointed at count $checkpointed, resumed at $first, went on to $last (first output after $first_output ms)"
