#!/usr/bin/env bash
# Fuzzes what reads bytes from outside: fuzz/run.sh SECONDS [TARGET...]
#
# SECONDS are shared out among the targets, most of them to `kafka`, which is every handler of the Kafka front end. What
# is found lies in fuzz/found, and is played again by: fuzz/target/…/release/TARGET FILE
#
# libFuzzer on stable Rust: without a sanitizer, for it is panics, overflows, hangs and memory that safe code can fail by.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET...]}
shift
targets=("${@:-all}")
[ "${targets[0]}" != all ] || targets=(copy_rows record_batch pgoutput kafka)

triple=$(rustc -vV | sed -n 's/^host: //p')
# With a target named, build scripts and macros are not instrumented.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module \
  -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
  ${CARGO:-cargo} build --release --locked --target "$triple"

mkdir -p found
for target in "${targets[@]}"; do
  share=$((seconds / 10))
  [ "$target" != kafka ] || share=$((seconds - seconds / 10 * (${#targets[@]} - 1)))
  mkdir -p "corpus/$target"
  echo "fuzzing $target for $share s"
  # The clock of a parked request is tokio's: an input that takes a minute of ours hangs.
  "target/$triple/release/$target" "corpus/$target" -artifact_prefix=found/ -max_total_time="$share" \
    -timeout=60 -rss_limit_mb=2048 -max_len=2048 -print_final_stats=1 2>&1 | tail -n 25
done
