#!/usr/bin/env bash
# Fuzz every parser under ASan and UBSan, then keep in corpus/ what reached new code.
#   tests/fuzz/fuzz.sh SECONDS [TARGET ...]     run each target for SECONDS (default: all targets)
#   tests/fuzz/fuzz.sh coverage [TARGET ...]    line coverage of the parsers by the committed corpus; status 1 when one is under 90%
# Needs clang with libFuzzer, and llvm-cov for the coverage (Debian: clang libclang-rt-14-dev llvm).  BUILD names the build folder
# (build-fuzz).  A crash leaves its input there and ends with status 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
what=${1:?usage: fuzz.sh SECONDS|coverage [TARGET ...]}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(json config safetensors tokenizer regex encode chat text save)
build=${BUILD:-build-fuzz}

setup() { # FOLDER MESON-OPTION...
  [ -f "$1/build.ninja" ] || CC=clang meson setup "$1" -Dfuzzers=true -Dtests=true -Db_lundef=false --buildtype=debugoptimized "${@:2}" >/dev/null
  ninja -C "$1" "${targets[@]/#/tests/fuzz/fuzz_}" >/dev/null
}

if [ "$what" = coverage ]; then
  flags="-fprofile-instr-generate -fcoverage-mapping"
  LLVM_PROFILE_FILE=/dev/null setup "$build-coverage" -Dc_args="$flags -fsanitize=fuzzer-no-link" -Dc_link_args="$flags"
  # What each target is there for.  The bundled tokenizer cannot reach all of encode.c: its added tokens have no options.
  declare -A sources=([json]=json [config]=config [safetensors]=safetensors
    [tokenizer]="tokenizer vocab added encode bpe pretokenizer unicode" [regex]="regex class_pattern" [encode]=bpe [chat]=chat [text]=text [save]=save)
  poor=0
  for t in "${targets[@]}"; do
    LLVM_PROFILE_FILE="$build-coverage/$t.raw" "$build-coverage/tests/fuzz/fuzz_$t" -runs=0 "tests/fuzz/corpus/$t" >"$build-coverage/$t.log" 2>&1
    llvm-profdata merge -o "$build-coverage/$t.prof" "$build-coverage/$t.raw"
    llvm-cov report "$build-coverage/tests/fuzz/fuzz_$t" -instr-profile="$build-coverage/$t.prof" |
      awk -v t="$t" -v names="${sources[$t]}" 'BEGIN {n = split(names, a); for (i = 1; i <= n; i++) want["lib/" a[i] ".c"]}
        $1 in want {found++; poor += $10 + 0 < 90; print $1 " by fuzz_" t ": " $10 " of its lines " ($10 + 0 < 90 ? "FAILED" : "ok")}
        END {exit poor || found != n}' || poor=1
  done
  exit $poor
fi

setup "$build" -Db_sanitize=address,undefined -Dc_args=-fsanitize=fuzzer-no-link
seconds_used() { # by processes that have ended
  times >"$build/times" # not in a pipe: there it would be those of another shell
  awk 'NR == 2 {split($1, user, /[ms]/); split($2, sys, /[ms]/); print int(60 * (user[1] + sys[1]) + user[2] + sys[2])}' "$build/times"
}
failed=0
for t in "${targets[@]}"; do
  new=$build/new-$t corpus=tests/fuzz/corpus/$t dict=tests/fuzz/dict/$t.dict
  mkdir -p "$new" "$corpus"
  seconds_used >"$build/before"
  if ! "$build/tests/fuzz/fuzz_$t" -max_total_time="$what" -timeout=20 -rss_limit_mb=4096 -max_len=8192 -artifact_prefix="$build/$t-" \
    $([ -f "$dict" ] && echo "-dict=$dict") -print_final_stats=1 "$new" "$corpus" >"$build/$t.log" 2>&1; then
    failed=1
    echo "fuzz $t: FAILED, see $build/$t.log"
    tail -20 "$build/$t.log"
    continue
  fi
  seconds_used >"$build/after"
  "$build/tests/fuzz/fuzz_$t" -merge=1 -use_counters=0 "$corpus" "$new" >/dev/null 2>&1
  rm -rf "$new"
  echo "fuzz $t: $(awk '/number_of_executed_units/{print $2}' "$build/$t.log") runs in $(($(<"$build/after") - $(<"$build/before"))) CPU seconds, corpus of $(find "$corpus" -type f | wc -l)"
done
exit $failed
