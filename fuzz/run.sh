#!/usr/bin/env bash
# Runs every fuzz target for some seconds each: fuzz/run.sh [SECONDS [TARGET...]], 60 seconds by default. Ends with an
# error at the first finding, which cargo-fuzz then leaves in fuzz/artifacts/. What the fuzzer learns is kept in
# fuzz/target/corpus/; it starts from the golden files and from fuzz/seeds/.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true

if ! command -v cargo-fuzz > /dev/null; then
    cargo install cargo-fuzz --locked
fi
toolchain=
if rustup toolchain list 2> /dev/null | grep -q '^nightly'; then
    toolchain=+nightly
else
    # Sanitizers and coverage are behind a gate that this opens in a stable compiler.
    export RUSTC_BOOTSTRAP=1
fi
# cargo-fuzz keeps its own builds apart, in fuzz/target.
unset CARGO_TARGET_DIR

golden=format/tests/golden/v1
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(cargo $toolchain fuzz list)
fi
for target in "${targets[@]}"; do
    corpus=fuzz/target/corpus/$target
    mkdir -p "$corpus"
    for seed in "$golden/$target" "$golden/base-$target" fuzz/seeds/"$target"/*; do
        if [ -f "$seed" ]; then
            cp "$seed" "$corpus/seed-$(basename "$seed")"
        fi
    done
    echo "== $target, $seconds s"
    cargo $toolchain fuzz run "$target" "$corpus" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=128 -print_final_stats=0 -verbosity=0
done
echo "no findings"
