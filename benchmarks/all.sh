#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that benchmarks/README.md speaks of, in one go: benchmarks/all.sh [FOLDER]. Let nothing else run meanwhile; about an hour on 2 cores.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
folder=${1:-results}
mkdir -p "$folder"
run() { python "$here/run.py" "$@"; }

run --json "$folder/forward.json" --plot "$folder/roofline.svg" | tee "$folder/forward.txt"
run --train --json "$folder/train.json" --plot "$folder/roofline-train.svg" | tee "$folder/train.txt"
run --shapes 200 --rounds 5 --budget 2 --json "$folder/shapes.json" | tee "$folder/shapes.txt"
run --variants | tee "$folder/variants.txt"
run --memory | tee "$folder/memory.txt"
python "$here/overhead.py" | tee "$folder/overhead.txt"
