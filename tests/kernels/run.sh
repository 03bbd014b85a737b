#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the engine's tests without Python and runs them, with a cross compiler under an emulator or under a sanitizer if asked:
#     tests/kernels/run.sh [COMPILER [EMULATOR]]        for example  tests/kernels/run.sh aarch64-linux-gnu-g++ qemu-aarch64-static
#     SANITIZE=thread tests/kernels/run.sh              the engine with calls from several threads, under ThreadSanitizer
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
compiler=${1:-${CXX:-c++}}
emulator=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

flags=(-std=c++17 -ffp-contract=fast -w -Ikernels -Ikernels/isa)
isas=(base)
tile_flags=(-O3)
link=(-static -lpthread -ldl)
if [[ ${SANITIZE:-} ]]; then
  # The baseline alone, hardly optimized: what is looked for does not depend on the instruction set, and checked tiles take minutes to compile.
  flags+=("-fsanitize=$SANITIZE" -g1 -fno-omit-frame-pointer)
  tile_flags=(-O1)
  link=("-fsanitize=$SANITIZE" -lpthread -ldl)
else
  case $("$compiler" -dumpmachine) in
    x86_64*)
      isas+=(avx2)
      if grep -qw avx512f /proc/cpuinfo; then isas+=(avx512); fi  # the wheel is built with it everywhere, here it would not run
      ;;
    aarch64*) isas+=(neon) ;;
  esac
fi
declare -A isa_flags=([base]="" [neon]="" [avx2]="-mavx2 -mfma -mf16c" [avx512]="-mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma -mf16c")
for isa in "${isas[@]}"; do
  # shellcheck disable=SC2086
  "$compiler" "${flags[@]}" "${tile_flags[@]}" ${isa_flags[$isa]} -c "kernels/isa/$isa.cc" -o "$work/isa_$isa.o"
  flags+=("-DTCONV3D_HAVE_${isa^^}")
done
for source in kernels/{engine,region,spatial,phased,depthwise,rows,channels,panels,two_tap,two_tap_panels,two_tap_samples,two_tap_weight_grad,position_weight_grad,col2im,weight_grad,memory,openmp,threads,isa/isa}.cc; do
  "$compiler" "${flags[@]}" -O1 -c "$source" -o "$work/$(basename "$source" .cc).o"
done

# run NAME [LINKER-FLAG...]: one test program, with CASES as its argument.
run() {
  "$compiler" "${flags[@]}" -O1 "tests/kernels/$1.cc" "$work"/*.o "${@:2}" "${link[@]}" -o "$work/$1"
  $emulator "$work/$1" ${CASES:+"$CASES"}
}
if [[ ${SANITIZE:-} == thread ]]; then
  run concurrent
  CASES=${CASES:-40} run selftest
  exit
fi
CASES=${CASES:-100} run selftest
if [[ ! $emulator ]]; then
  run concurrent
  run allocations -Wl,--wrap=posix_memalign,--wrap=free
fi
