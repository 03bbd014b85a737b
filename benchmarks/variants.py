# SPDX-License-Identifier: Apache-2.0
"""The same layers in other dtypes, with channels last, and with other numbers of threads, beside plain float32."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from report import geometric_mean
from rich.console import Console
from rich.table import Table

import tconv3d
from tconv3d.bench.race import seconds_of
from tconv3d.bench.workload import Operands, Workload

_ROUNDS = 5
# A layer is bound by its arithmetic, and fit to show threads, from this many operations a byte on.
_COMPUTE_BOUND = 100


def print_table(console: Console, layers: Sequence[Workload], threads: int) -> None:
    """Times faster than float32, NCDHW, `threads` threads; below 1 is slower."""
    table = Table("layer", title=f"speed beside float32, channels first, {threads} threads")
    names = ["float64", "float16", "bfloat16", "channels_last", "1 thread", "8 threads"]
    for name in names:
        table.add_column(name, justify="right")
    ratios: dict[str, list[float]] = {name: [] for name in names}
    bound: list[float] = []
    for layer in layers:
        seconds = _median_seconds(layer, threads)
        row = [seconds["plain"] / seconds[name] for name in names]
        for name, ratio in zip(names, row, strict=True):
            ratios[name].append(ratio)
        if layer.flops(train=False) / layer.bytes(train=False) >= _COMPUTE_BOUND:
            bound.append(1 / row[names.index("1 thread")])
        table.add_row(layer.name, *(f"{ratio:.2f}" for ratio in row))
    for title, reduce in (("geometric mean", geometric_mean), ("worst", min)):
        table.add_row(title, *(f"{reduce(ratios[name]):.2f}" for name in names), style="bold")
    console.print(table)
    if bound:
        console.print(
            f"{threads} threads are {geometric_mean(bound):.2f} times one on the {len(bound)} layers of at least"
            f" {_COMPUTE_BOUND} operations a byte (worst {min(bound):.2f})"
        )


def _median_seconds(layer: Workload, threads: int) -> dict[str, float]:
    """Every variant once in each round, so that a machine that slows down slows all of them."""
    calls = {name: (count, call) for name, count, call in _variants(layer, threads)}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(_ROUNDS + 1):
        for name, (count, call) in calls.items():
            tconv3d.set_num_threads(count)
            seconds = seconds_of(call)
            if done:  # the first round warms up
                taken[name].append(seconds)
    tconv3d.set_num_threads(threads)
    return {name: statistics.median(values) for name, values in taken.items()}


def _variants(layer: Workload, threads: int) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    import ml_dtypes

    data = layer.operands()
    plain = _call(layer, data, np.dtype(np.float32))
    yield "plain", threads, plain
    yield "float64", threads, _call(layer, data, np.dtype(np.float64))
    yield "float16", threads, _call(layer, data, np.dtype(np.float16))
    yield "bfloat16", threads, _call(layer, data, np.dtype(ml_dtypes.bfloat16))
    yield "channels_last", threads, _call(layer, data, np.dtype(np.float32), channels_last=True)
    yield "1 thread", 1, plain
    yield "8 threads", 8, plain


def _call(layer: Workload, data: Operands, dtype: np.dtype[Any], channels_last: bool = False) -> Callable[[], Any]:
    options = layer.arguments
    x, weight, bias = (array.astype(dtype) for array in (data.x, data.weight, data.bias))
    prepared = tconv3d.prepare(weight, options["stride"], options["dilation"], options["groups"])
    if not channels_last:
        return lambda: tconv3d.conv_transpose3d(x, prepared, bias, **options)
    x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    n, c, *space = layer.output_shape
    out = np.moveaxis(np.empty((n, *space, c), dtype), -1, 1)
    return lambda: tconv3d.conv_transpose3d(x, prepared, bias, out=out, **options)
