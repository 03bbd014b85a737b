#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Half an hour of calls with flat memory: `python benchmarks/soak.py --help`.

Random layers, forward and both gradients, fresh weights and packed ones, from two threads at once; each result is held
against the first of its layer. Prints at intervals the memory of the process, as it is and once the engine and the
C library have given back what they keep for later calls. The exit code is 1 where the median of the latter grew from
the first half of the run to the second by more than 32 MiB, or where a result changed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import tconv3d
from tconv3d import _core

_ALLOWANCE = 32 << 20
_LAYERS = 40


def main() -> int:
    options = _parser().parse_args()
    layers = [_layer(seed) for seed in range(_LAYERS)]
    expected = [_step(*layer) for layer in layers]
    start, end = time.monotonic(), time.monotonic() + 60 * options.minutes
    calls, changed, sizes = 0, 0, []
    with ThreadPoolExecutor(2) as pool:
        while time.monotonic() < end:
            until = min(end, time.monotonic() + 60 * options.minutes / options.lines)
            while time.monotonic() < until:
                found = list(pool.map(lambda layer: _step(*layer), layers))
                calls += 4 * len(layers)
                changed += sum(a != b for a, b in zip(found, expected, strict=True))
            held = _resident()
            sizes.append(_resident_without_idle())
            minutes = (time.monotonic() - start) / 60
            memory = f"{held / 2**20:8.1f} MiB, {sizes[-1] / 2**20:8.1f} without idle memory"
            print(f"{minutes:6.1f} min  {calls:9d} calls  {memory}", flush=True)
    half = len(sizes) // 2
    growth = statistics.median(sizes[half:]) - statistics.median(sizes[:half] or sizes)
    print(f"{calls} calls, {changed} results changed, second half beside the first: {growth / 2**20:+.1f} MiB")
    return int(changed > 0 or growth > _ALLOWANCE)


def _layer(seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Input, weight and options of one layer; sizes from a few samples to some mebibytes of output."""
    rng = np.random.default_rng(seed)
    groups, stride, kernel = (int(rng.choice(sizes)) for sizes in ([1, 1, 2], [1, 2, 3], [1, 2, 3, 4]))
    inputs, columns, side = int(rng.choice([2, 8, 32])), int(rng.choice([1, 4, 16])), int(rng.choice([3, 8, 20]))
    dtype = [np.float32, np.float32, np.float16, np.float64, np.complex64][seed % 5]
    x = rng.standard_normal((1, inputs, side, side, side)).astype(dtype)
    weight = rng.standard_normal((inputs, columns, kernel, kernel, kernel)).astype(dtype)
    return x, weight, {"stride": stride, "groups": groups}


def _step(x: np.ndarray, weight: np.ndarray, options: dict[str, int]) -> tuple[int, ...]:
    """Hashes of what the four calls give."""
    y = tconv3d.conv_transpose3d(x, weight, **options)
    packed = tconv3d.conv_transpose3d(x, tconv3d.prepare(weight, **options), **options)
    grad_x = tconv3d.conv_transpose3d_input_grad(y, weight, x.shape, **options)
    grad_weight = tconv3d.conv_transpose3d_weight_grad(x, y, weight.shape, **options)
    return tuple(hash(array.tobytes()) for array in (y, packed, grad_x, grad_weight))


def _resident() -> int:
    if not sys.platform.startswith("linux"):
        sys.exit("soak.py reads /proc/self/statm, which only Linux has")
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _resident_without_idle() -> int:
    _core.release_idle_memory()
    ctypes.CDLL(None).malloc_trim(0)
    return _resident()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="how long (default: 30)")
    parser.add_argument("--lines", type=int, default=30, help="how often memory is printed (default: 30)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
