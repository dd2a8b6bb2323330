#!/usr/bin/env bash
# Runs every fuzz target for some seconds each: fuzz/run.sh [SECONDS [TARGET...]], 60 seconds by default. Ends with an
# error at the first finding, which cargo-fuzz then leaves in fuzz/artifacts/. Builds and what the fuzzer learns are kept
# in fuzz/target, or in a directory "fuzz" in $CARGO_TARGET_DIR; it starts from the golden files and from fuzz/seeds/.
# Needs a nightly compiler or makes do with a stable one; PODSNAP_FUZZ_STABLE=1 takes the stable one in any case.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true

if ! command -v cargo-fuzz > /dev/null; then
    cargo install cargo-fuzz --locked
fi
toolchain=
if [ -z "${PODSNAP_FUZZ_STABLE:-}" ] && rustup toolchain list 2> /dev/null | grep -q '^nightly'; then
    toolchain=+nightly
else
    # Sanitizers and coverage are behind a gate that this opens in a stable compiler.
    export RUSTC_BOOTSTRAP=1
fi
# Sanitized builds are kept apart from all others.
if [ -n "${CARGO_TARGET_DIR:-}" ]; then
    target_dir=$(realpath -m "$CARGO_TARGET_DIR")/fuzz
else
    target_dir=$PWD/fuzz/target
fi
unset CARGO_TARGET_DIR

golden=format/tests/golden/v1
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(cargo $toolchain fuzz list)
fi
for target in "${targets[@]}"; do
    corpus=$target_dir/corpus/$target
    mkdir -p "$corpus"
    for seed in "$golden/$target" "$golden/base-$target" fuzz/seeds/"$target"/*; do
        if [ -f "$seed" ]; then
            cp "$seed" "$corpus/seed-$(basename "$seed")"
        fi
    done
    echo "== $target, $seconds s"
    cargo $toolchain fuzz run --target-dir "$target_dir" "$target" "$corpus" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=128 -print_final_stats=0 -verbosity=0
done
echo "no findings"
