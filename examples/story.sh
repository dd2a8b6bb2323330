#!/usr/bin/env bash
# Plays the life of a snapshot from beginning to end on this machine, as GKE's guide to pod snapshots tells it: real pods under gVisor, the YAML
# of examples/gke, the agent and the controller of examples/, and the GCS test server as the bucket. docs/story.md shows what it prints.
#
#     examples/story.sh            needs root, and what tests/provision.sh makes
#
# Ends with 0 if all came as it should, or if it was skipped.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${PODSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/podsnap}
runsc=${RUNSC:-$cache/bin/runsc}
programs=${CARGO_TARGET_DIR:-$top/target}/${PODSNAP_PROFILE:-debug}

if [ "$(id -u)" != 0 ] || [ ! -x "$runsc" ]; then
    echo "SKIPPED: the story of a snapshot: it needs root and runsc, see tests/provision.sh" >&2
    exit 0
fi
if [ -z "${STORY_BUILT:-}" ]; then
    (cd "$top" && cargo build --locked -p podsnap -p checkpointgofer -p podsnap-gcs-server \
        -p podsnap-example-agent -p podsnap-example-controller) >&2
fi

work=$(mktemp -d)
agent_pid='' server_pid=''
clean() {
    local pid
    for pid in $agent_pid $server_pid; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if [ -n "${KEEP:-}" ]; then echo "kept: $work" >&2; else rm -rf "$work"; fi
}
trap clean EXIT
fail() {
    echo "STORY FAILED: $1" >&2
    for file in "$work"/run/events.jsonl "$work"/agent.err "$work"/run/*.log; do
        [ -f "$file" ] && { echo "--- $file" >&2; tr -d '\0' <"$file" | tail -n 15 >&2; }
    done
    exit 1
}

# tell TEXT: a chapter. run COMMAND...: shows a command, then what it prints.
tell() { printf '\n# %s\n' "$1"; }
run() { echo "\$ $*"; "$@"; }
# Everything that a pod has printed; the front of a restored one's file is empty.
logs() { cat "$work"/run/*_"$1.log" 2>/dev/null | tr -d '\0' || true; }
events() { cat "$work/run/events.jsonl" 2>/dev/null || true; }

# wait_for WHAT COMMAND...: until the command succeeds.
wait_for() {
    local what=$1 deadline=$((SECONDS + ${PATIENCE:-90}))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "it never came to $what"
        kill -0 "$agent_pid" 2>/dev/null || fail "the agent has ended"
        sleep 0.1
    done
}
# Conditions for it.
printed() { logs "$1" | grep -q -- "$2"; }
happened() { events | grep -q -- "$1"; }
count_events() { events | grep -c -- "$1" || true; }
happened_more() { [ "$(count_events "$1")" -gt "$2" ]; }
control() { curl -sf -X "$1" "$STORAGE_EMULATOR_HOST/_control/$2" ${3:+-d "$3"}; }
objects() { control GET 'objects?bucket=snapshots' | python3 -c '
import json, sys
for o in sorted(json.load(sys.stdin), key=lambda o: o["name"]):
    if o["name"].startswith(sys.argv[1]) and not o["name"].endswith("/"):
        print(o["size"], o["name"])' "$1"; }
snapshots() { podsnap --store "gs://snapshots/$1" ls --json | python3 -c '
import json, sys
for s in json.load(sys.stdin):
    if s["status"] == sys.argv[1]: print(s["snapshot"])' "$2"; }
saving_begun() { [ -n "$(snapshots team-a saving)" ]; }

podsnap() { "$programs/podsnap" "$@"; }
# put FILE: applies what comes on standard input, which is there as a whole or not at all.
put() { cat >"$work/$1.tmp" && mv "$work/$1.tmp" "$work/$1"; }
deploy() { put pods/my-app.yaml <"$top/examples/gke/my-app.yaml"; }
# of_team_b POD [SED]: deploys the same pod for team-b.
of_team_b() {
    sed -e 's/team-a/team-b/g' -e "s/name: my-app\$/name: $1/" ${2:+-e "$2"} "$top/examples/gke/my-app.yaml" | put "pods/$1.yaml"
}
delete() {
    local before
    before=$(count_events '"reason":"Killing"')
    rm "$work/pods/$1.yaml"
    wait_for "the end of $1" happened_more '"reason":"Killing"' "$before"
}

# Each team has a folder of the bucket to itself, and no right to list even that; the controller may do everything.
mkdir -p "$work"/{pods,policies,run,tokens,gofer}
ln -s "$programs/checkpointgofer" "$work/gofer/checkpointgofer"
python3 - >"$work/server.json" <<'END'
import json
def team(name):
    objects = ["get", "create", "delete"]
    return [
        {"permissions": ["storage.objects." + o for o in objects] + ["storage.folders.create"], "bucket": "snapshots", "prefix": name + "/"},
        {"permissions": ["storage.buckets.get"], "bucket": "snapshots", "prefix": ""},
    ]
folders = ["create", "get", "list", "delete"]
everything = ["storage.objects." + o for o in ["get", "create", "delete", "list", "update"]] + ["storage.buckets.get"] + ["storage.folders." + f for f in folders]
print(json.dumps({
    "buckets": {"snapshots": {"hierarchical_namespace": True, "uniform_bucket_level_access": True}},
    "access": {
        "principals": {"team-a@x": team("team-a"), "team-b@x": team("team-b"),
                       "controller@x": [{"permissions": everything, "bucket": "snapshots", "prefix": ""}]},
        "tokens": {"token-of-a": "team-a@x", "token-of-b": "team-b@x", "token-of-controller": "controller@x"},
    },
    "rules": {"md5": False},
}))
END
mkdir "$work/tokens/team-a" "$work/tokens/team-b"
echo token-of-a >"$work/tokens/team-a/team-a"
echo token-of-b >"$work/tokens/team-b/team-b"
echo token-of-controller >"$work/tokens/controller"
mkfifo "$work/server.out"
"$programs/podsnap-gcs-server" --config "$work/server.json" --bucket snapshots --hierarchical --log-limit 1000 >"$work/server.out" 2>"$work/server.err" &
server_pid=$!
read -r STORAGE_EMULATOR_HOST <"$work/server.out"
export STORAGE_EMULATOR_HOST
# For podsnap at the command line.
export CLOUDSDK_AUTH_ACCESS_TOKEN=token-of-controller

"$programs/podsnap-example-agent" --pods "$work/pods" --policies "$work/policies" --run "$work/run" --tokens "$work/tokens" \
    --runsc "$runsc" --gofer "$work/gofer" >"$work/agent.out" 2>"$work/agent.err" &
agent_pid=$!
controller() {
    "$programs/podsnap-example-controller" --policies "$work/policies" --token "$work/tokens/controller" --once "$@"
}

tell "A policy is applied, and a pod deployed. At 20 it saves itself."
put policies/policy.yaml <"$top/examples/gke/policy.yaml"
deploy
wait_for "a snapshot" happened 'Successfully checkpointed the pod'
wait_for "a count of 25" printed my-app '^Count: 25$'
logs my-app | sed -n '18,24p'
run podsnap --store gs://snapshots/team-a ls
first=$(snapshots team-a available)
[ "$(wc -w <<<"$first")" = 1 ] || fail "one snapshot is expected, not: $first"
printed my-app '^GKE Pod Snapshot: resume$' || fail "the pod was not told that it goes on"
objects team-a/

tell "The pod is deleted and deployed again: it goes on where it was saved."
delete my-app
deploy
wait_for "a restore" happened "Successfully restored the pod from PodSnapshot team-a/$first"
wait_for "a count of 25" printed my-app '^Count: 25$'
logs my-app | head -n 4
[ "$(logs my-app | head -n 2 | tr '\n' ';')" = "GKE Pod Snapshot: restore;Count: 21;" ] || fail "it did not go on from 20"

tell "Another team has a folder of its own. Its role cannot read the first one's."
put policies/team-b-policy.yaml <"$top/examples/gke/team-b-policy.yaml"
of_team_b app-of-b
wait_for "a snapshot of team-b" happened 'Successfully checkpointed the pod to PodSnapshot team-b/'
printed app-of-b '^Count: 1$' || fail "the pod of team-b did not start anew"
run podsnap --store gs://snapshots/team-b ls
echo "\$ CLOUDSDK_AUTH_ACCESS_TOKEN=token-of-b podsnap --store gs://snapshots/team-a verify $first"
if CLOUDSDK_AUTH_ACCESS_TOKEN=token-of-b podsnap --store gs://snapshots/team-a verify "$first" 2>&1; then fail "team-b can read what is team-a's"; fi
delete app-of-b

tell "A policy by which pods are saved on demand, and end then. A new pod asks for that snapshot by its name."
sed -e 's/type: workload/type: manual/' -e 's/postCheckpoint: resume/postCheckpoint: stop/' -e 's/name: example-policy/name: on-demand/' \
    "$top/examples/gke/team-b-policy.yaml" | put policies/team-b-policy.yaml
of_team_b on-demand
wait_for "a count of 5" printed on-demand '^Count: 5$'
put policies/trigger.yaml <<'END'
apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotManualTrigger
metadata:
  name: now
  namespace: team-b
spec:
  targetPod: on-demand
END
wait_for "the end of the pod" happened '"object":"pod/on-demand","reason":"Completed"'
reached=$(logs on-demand | tail -n 1)
echo "the pod ended at: $reached"
run podsnap --store gs://snapshots/team-b ls
third=$(events | sed -n 's|.*checkpointed the pod to PodSnapshot team-b/\([0-9a-f-]*\)".*|\1|p' | tail -n 1)
delete on-demand
rm "$work/policies/trigger.yaml"
of_team_b app-again "/^metadata:/a\\  annotations: {podsnapshot.gke.io/ps-name: $third}"
wait_for "a restore" happened "Successfully restored the pod from PodSnapshot team-b/$third"
wait_for "a count of 15" printed app-again '^Count: 15$'
echo "the new one goes on at: $(logs app-again | head -n 1)"
[ "$(logs app-again | head -n 1)" = "Count: $((${reached#Count: } + 1))" ] || fail "it did not go on from $reached"
delete app-again

tell "A policy of team-b that names the folder of team-a comes to nothing, but for a message."
sed -e '/path:/s/team-b/team-a/' "$top/examples/gke/team-b-policy.yaml" | put policies/team-b-policy.yaml
objects team-a/ >"$work/before"
of_team_b thief
wait_for "a refusal" happened 'Failed to checkpoint the pod to PodSnapshot team-b/'
grep 'Failed to checkpoint' "$work/agent.out" | tail -n 1 | cut -c1-400
wait_for "a count of 25" printed thief '^Count: 25$'
logs thief | sed -n '20,22p'
printed thief '^GKE Pod Snapshot: error$' || fail "the pod was not told that it is not saved"
objects team-a/ >"$work/after"
cmp -s "$work/before" "$work/after" || fail "something of team-a's has changed"
delete thief
rm "$work/policies/team-b-policy.yaml"

tell "The snapshot is deleted: its files go, and the next pod starts anew."
run controller --delete "$first"
objects team-a/
[ -z "$(objects "team-a/$first/")" ] || fail "files of the snapshot are left"
delete my-app
deploy
wait_for "a count" printed my-app '^Count: 3$'
logs my-app | head -n 2
[ "$(logs my-app | head -n 1)" = "Count: 1" ] || fail "the pod did not start anew"

tell "A policy is deleted in the middle of a save: pod and store stay whole."
control PATCH config '{"link": {"total_bytes_per_s": 250000}}' >/dev/null
before=$(count_events 'Successfully checkpointed the pod to PodSnapshot team-a/')
wait_for "a save" saving_begun
run podsnap --store gs://snapshots/team-a ls
echo '$ rm policy.yaml'
rm "$work/policies/policy.yaml"
saving_begun || fail "the save was over before the policy went"
wait_for "the end of the save" happened_more 'Successfully checkpointed the pod to PodSnapshot team-a/' "$before"
control PATCH config '{"link": {"total_bytes_per_s": 0}}' >/dev/null
wait_for "a count of 25" printed my-app '^Count: 25$'
logs my-app | sed -n '20,22p'
second=$(snapshots team-a available)
run podsnap --store gs://snapshots/team-a verify "$second"
delete my-app

tell "What happened, as the agent recorded it"
cut -c1-170 "$work/agent.out"
if [ -s "$work/agent.err" ]; then tail -n 5 "$work/agent.err" >&2; fi
echo
echo "All came as it should."
