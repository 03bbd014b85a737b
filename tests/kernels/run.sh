#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the engine's self-test without Python and runs it, with a cross compiler under an emulator if asked:
#     tests/kernels/run.sh [COMPILER [EMULATOR]]        for example  tests/kernels/run.sh aarch64-linux-gnu-g++ qemu-aarch64-static
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
compiler=${1:-${CXX:-c++}}
emulator=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

flags=(-std=c++17 -ffp-contract=fast -w -Ikernels -Ikernels/isa)
isas=(base)
case $("$compiler" -dumpmachine) in
  x86_64*) isas+=(avx2 avx512) ;;
  aarch64*) isas+=(neon) ;;
esac
declare -A isa_flags=([base]="" [neon]="" [avx2]="-mavx2 -mfma" [avx512]="-mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma")
for isa in "${isas[@]}"; do
  # shellcheck disable=SC2086
  "$compiler" "${flags[@]}" -O3 ${isa_flags[$isa]} -c "kernels/isa/$isa.cc" -o "$work/isa_$isa.o"
  flags+=("-DTCONV3D_HAVE_${isa^^}")
done
for source in kernels/{engine,region,spatial,phased,channels,panels,two_tap,two_tap_panels,two_tap_region,weight_grad,memory,openmp,threads,isa/isa}.cc tests/kernels/selftest.cc; do
  "$compiler" "${flags[@]}" -O1 -c "$source" -o "$work/$(basename "$source" .cc).o"
done
"$compiler" -static "$work"/*.o -lpthread -ldl -o "$work/selftest"
$emulator "$work/selftest" "${CASES:-100}"
