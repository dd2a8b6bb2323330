#!/usr/bin/env bash
# Checkpoints a reference pod (`small` or `model`) through Google's checkpoint gofer into the bucket `bucket` of the server at
# STORAGE_EMULATOR_HOST, and restores it from there: it must count on.
#
# Usage: gofer.sh ACCESS_TOKEN POD
set -uo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/../../../pod/sandbox.sh"

fail() {
    echo "FAILED: $*"
    for file in "$sandbox_dir"/*.err "$sandbox_dir"/checkpoint; do
        [ -s "$file" ] && tail -n 5 "$file"
    done
    exit 1
}

reason=$(sandbox_unavailable)
if [ -z "$reason" ] && [ ! -e "$cache/pod/$2/config.json" ]; then reason="there is no pod in $cache/pod/$2"; fi
if [ -n "$reason" ]; then
    echo "the checkpoint gofer: $reason"
    exit 77
fi

trap sandbox_clean EXIT
trap 'exit 130' INT TERM HUP
sandbox_dir=$(mktemp -d "${TMPDIR:-/tmp}/podsnap-gofer-XXXXXX")
mkdir "$sandbox_dir/state" "$sandbox_dir/image"
cat >"$sandbox_dir/image/gcs_opts.json" <<END
{"token": {"access_token": "$1", "token_type": "Bearer"}, "bucket": "bucket", "object_prefix": "tenant/snap/",
 "parallel_composite_upload": "force"}
END

sandbox_start "$sandbox_dir/first" run -bundle "$cache/pod/$2" "podsnap-gofer-$$"
wait_for_count "$sandbox_dir/first" 3 60 || fail "the pod did not start"
reached=$(last_count "$sandbox_dir/first")
runsc checkpoint -compression=none -exclude-committed-zero-pages --image-path "$sandbox_dir/image" \
    "podsnap-gofer-$$" </dev/null >"$sandbox_dir/checkpoint" 2>&1 || fail "runsc checkpoint"
wait "$sandbox_pid" 2>/dev/null

sandbox_start "$sandbox_dir/second" restore -bundle "$cache/pod/$2" --image-path "$sandbox_dir/image" \
    --background "podsnap-gofer-again-$$"
wait_for_count "$sandbox_dir/second" $((reached + 3)) 60 || fail "the pod does not count on from $reached"
if tr -d '\0' <"$sandbox_dir/second" | grep -q '^started'; then fail "the pod started anew"; fi
echo "checkpointed at $reached, went on to $(last_count "$sandbox_dir/second")"
