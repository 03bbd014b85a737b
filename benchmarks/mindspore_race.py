#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Race the face for MindSpore against MindSpore's own layer: `python benchmarks/mindspore_race.py --help`.

Forward on the layers that MindSpore's operator takes, and the cost of a call on one element, in turn in one process.
The result of each layer is held against PyTorch's contract as the NumPy face computes it; the exit code is 1 if one is
off.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cells = dict[str, Callable[[], Any]]
TOLERANCE = 1e-4  # of the largest value
PAUSE = 0.01  # before each timed call, for the idle threads of the one before


def main() -> int:
    options = _parser().parse_args()
    for name in ("OMP_NUM_THREADS", "TCONV3D_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    import mindspore  # only now: libraries read these variables when they are loaded
    from workloads import load

    modes = {"PyNative": mindspore.PYNATIVE_MODE, "graph": mindspore.GRAPH_MODE}
    layers = load(options.workloads, options.only and options.only.split(","))
    wrong = 0
    for mode, context in modes.items():
        mindspore.set_context(mode=context)
        if not options.overhead:
            wrong += _race(mode, layers, options.rounds, options.budget)
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    _overhead(modes, options.calls)
    return int(wrong > 0)


def _race(mode: str, layers: list[Any], rounds: int, budget: float) -> int:
    print(f"\n{mode}: forward, milliseconds, median of at most {rounds} rounds")
    print(f"{'layer':44s} {'MindSpore':>10s} {'tconv3d':>10s} {'times':>7s}")
    ratios, wrong = [], 0
    for layer in layers:
        cells = _cells(layer)
        if cells is None:
            print(f"{layer.name:44s} MindSpore's operator refuses it")
            continue
        calls, error = cells
        seconds = _medians(calls, rounds, budget)
        ratios.append(seconds["MindSpore"] / seconds["tconv3d"])
        wrong += not error < TOLERANCE
        note = "" if error < TOLERANCE else f"  WRONG by {error:.1e}"
        times = " ".join(f"{seconds[name] * 1e3:10.2f}" for name in ("MindSpore", "tconv3d"))
        print(f"{layer.name:44s} {times} {ratios[-1]:7.2f}{note}", flush=True)
    if ratios:
        mean = statistics.geometric_mean(ratios)
        print(f"{len(ratios)} layers: geometric mean {mean:.2f} times faster, worst {min(ratios):.2f}")
    return wrong


def _cells(layer: Any) -> tuple[Cells, float] | None:
    """Both layers as calls, each run once, and the error of ours; None where MindSpore's refuses."""
    import mindspore
    import numpy as np

    import tconv3d
    import tconv3d.mindspore

    data = layer.operands()
    options = {
        "stride": tuple(layer.stride),
        "pad_mode": "pad",
        "padding": tuple(p for p in layer.padding for _ in ("front", "back")),
        "dilation": tuple(layer.dilation),
        "group": layer.groups,
        "output_padding": tuple(layer.output_padding),
        "has_bias": True,
        "weight_init": mindspore.Tensor(data.weight),
        "bias_init": mindspore.Tensor(data.bias),
    }
    arguments = layer.in_channels, layer.out_channels, tuple(layer.kernel)
    try:
        theirs = mindspore.nn.Conv3dTranspose(*arguments, **options)
    except ValueError:
        return None
    ours = tconv3d.mindspore.Conv3dTranspose(*arguments, **options)
    x = mindspore.Tensor(data.x)
    expected = tconv3d.conv_transpose3d(data.x, data.weight, data.bias, **layer.arguments)
    error = float(np.abs(ours(x).asnumpy() - expected).max() / np.abs(expected).max())
    error = max(error, float(np.abs(theirs(x).asnumpy() - expected).max() / np.abs(expected).max()))
    return {"MindSpore": lambda: theirs(x).asnumpy(), "tconv3d": lambda: ours(x).asnumpy()}, error


def _medians(calls: Cells, rounds: int, budget: float) -> dict[str, float]:
    """Each round calls both in turn; one round is enough where the budget, in seconds, is spent."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE)
            seconds[name].append(_seconds(call))
        if time.perf_counter() - start > budget:
            break
    return {name: statistics.median(values) for name, values in seconds.items()}


def _overhead(modes: dict[str, int], calls: int) -> None:
    """Microseconds of a call on one element, result in hand; 'queued' is the call alone, without waiting for it."""
    import mindspore
    from mindspore import nn

    import tconv3d.mindspore

    print(f"\ncalls on one element, microseconds, least (median) of {calls}")
    print(f"{'':26s} {'MindSpore':>22s} {'tconv3d':>22s}")
    x = mindspore.ops.ones((1, 1, 1, 1, 1))
    classes = {"MindSpore": nn.Conv3dTranspose, "tconv3d": tconv3d.mindspore.Conv3dTranspose}
    for mode, context in modes.items():
        mindspore.set_context(mode=context)
        both = {name: _small_calls(layer(1, 1, 1, has_bias=True), x, mode) for name, layer in classes.items()}
        for what in both["tconv3d"]:
            times = {name: _repeated(both[name][what], calls) for name in both}
            cells = " ".join(f"{min(t) * 1e6:10.1f} ({statistics.median(t) * 1e6:8.1f})" for t in times.values())
            print(f"{what:26s} {cells}")
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)


def _small_calls(cell: Any, x: Any, mode: str) -> Cells:
    import mindspore

    def forward(x):
        return cell(x)

    def total(x):
        return cell(x).sum()

    gradient = mindspore.value_and_grad(total, 0, cell.trainable_params())
    calls = {
        f"{mode}, forward": lambda: cell(x).asnumpy(),
        f"{mode}, gradient": lambda: gradient(x)[1][0].asnumpy(),
    }
    if mode == "PyNative":
        compiled, compiled_gradient = mindspore.jit(forward), mindspore.jit(gradient)
        calls["PyNative, queued"] = lambda: cell(x)
        calls["ms.jit, forward"] = lambda: compiled(x).asnumpy()
        calls["ms.jit, gradient"] = lambda: compiled_gradient(x)[1][0].asnumpy()
    return calls


def _repeated(call: Callable[[], Any], calls: int) -> list[float]:
    for _ in range(5):
        call()
    return [_seconds(call) for _ in range(calls)]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    del result  # after the clock: freeing the output is not part of the call
    return elapsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=Path, default=Path(__file__).with_name("workloads.json"), metavar="FILE")
    parser.add_argument("--only", metavar="NAME,..", help="layers whose names contain one of these words")
    parser.add_argument("--rounds", type=int, default=7, help="how often each runs a layer (default: 7)")
    parser.add_argument("--budget", type=float, default=6.0, help="seconds per layer (default: 6)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both (default: 2)")
    parser.add_argument("--calls", type=int, default=300, help="calls of each kind on one element (default: 300)")
    parser.add_argument("--overhead", action="store_true", help="the calls on one element alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
