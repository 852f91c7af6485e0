#!/usr/bin/env bash
# Fuzz every parser under ASan and UBSan, then keep in corpus/ what reached new code.
#   tests/fuzz/fuzz.sh SECONDS [TARGET ...]     run each target for SECONDS (default: all targets)
#   tests/fuzz/fuzz.sh coverage [TARGET ...]    line coverage of the parsers by the committed corpus
# Needs clang with libFuzzer (Debian: clang libclang-rt-14-dev llvm).  A crash leaves its input in the build folder and ends with status 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
what=${1:?usage: fuzz.sh SECONDS|coverage [TARGET ...]}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(json config safetensors tokenizer encode chat text)
build=${BUILD:-build-fuzz}

setup() { # FOLDER MESON-OPTION...
  [ -f "$1/build.ninja" ] || CC=clang meson setup "$1" -Dfuzzers=true -Dtests=true -Db_lundef=false --buildtype=debugoptimized "${@:2}" >/dev/null
  local programs=()
  for t in "${targets[@]}"; do programs+=("tests/fuzz/fuzz_$t"); done
  ninja -C "$1" "${programs[@]}" >/dev/null
}

if [ "$what" = coverage ]; then
  flags="-fprofile-instr-generate -fcoverage-mapping"
  setup "$build-coverage" -Dc_args="$flags -fsanitize=fuzzer-no-link" -Dc_link_args="$flags"
  tokenizer="tokenizer vocab added encode bpe pretokenizer regex class_pattern unicode"
  declare -A sources=([json]=json [config]=config [safetensors]=safetensors [tokenizer]=$tokenizer
    [encode]="encode bpe pretokenizer class_pattern unicode" [chat]=chat [text]=text)
  for t in "${targets[@]}"; do
    LLVM_PROFILE_FILE="$build-coverage/$t.raw" "$build-coverage/tests/fuzz/fuzz_$t" -runs=0 "tests/fuzz/corpus/$t" >/dev/null 2>&1
    llvm-profdata-14 merge -o "$build-coverage/$t.prof" "$build-coverage/$t.raw"
    llvm-cov-14 report "$build-coverage/tests/fuzz/fuzz_$t" -instr-profile="$build-coverage/$t.prof" |
      awk -v t="$t" -v names="${sources[$t]}" 'BEGIN {n = split(names, a); for (i = 1; i <= n; i++) want["lib/" a[i] ".c"]}
        $1 in want {print t, $1, "lines", $10}'
  done
  exit
fi

setup "$build" -Db_sanitize=address,undefined -Dc_args=-fsanitize=fuzzer-no-link
failed=0
for t in "${targets[@]}"; do
  new=$build/new-$t
  mkdir -p "$new" "tests/fuzz/corpus/$t"
  start=$(date +%s)
  if ! "$build/tests/fuzz/fuzz_$t" -max_total_time="$what" -timeout=20 -rss_limit_mb=4096 -max_len=65536 -artifact_prefix="$build/$t-" \
    -print_final_stats=1 "$new" "tests/fuzz/corpus/$t" >"$build/$t.log" 2>&1; then
    failed=1
    echo "fuzz $t: FAILED, see $build/$t.log"
    tail -20 "$build/$t.log"
    continue
  fi
  "$build/tests/fuzz/fuzz_$t" -merge=1 "tests/fuzz/corpus/$t" "$new" >/dev/null 2>&1
  rm -rf "$new"
  echo "fuzz $t: $(awk '/number_of_executed_units/{print $2}' "$build/$t.log") runs in $(($(date +%s) - start)) s, corpus of $(find "tests/fuzz/corpus/$t" -type f | wc -l)"
done
exit $failed
