# SPDX-License-Identifier: Apache-2.0
"""Time every engine on every layer, in turn, in one run on one machine, and check what they computed.

Each round times each engine once, so that a machine that slows down slows all of them; the figure is the median over
the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import reference
from .engines import FORWARD, OURS, TRAIN, Call, Refused, Results
from .workload import Operands, Rates, Workload

Judge = Callable[[Results], float]

TOLERANCE = 1e-4  # of the largest value of the judge's result
_TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2, "float32": TOLERANCE, "float64": 1e-10}
_MINIMUM_ROUNDS = 3
# Before each timed call: the idle threads of the engine before it spin for some milliseconds and would take its cores.
_PAUSE = 0.01
# Multiply-adds of the definition in float64 that a check may cost: some seconds.
_MOST_CHECKED = 300_000_000


@dataclass
class Row:
    """What one layer showed; seconds and errors by engine."""

    name: str
    roof: float
    gflop: float
    intensity: float  # floating-point operations per byte
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    tolerance: float = TOLERANCE

    @property
    def wrong(self) -> list[str]:
        """Engines whose result is off."""
        return [engine for engine, error in self.errors.items() if not error < self.tolerance]

    @property
    def best_peer(self) -> float | None:
        """Seconds of the fastest engine that is not ours."""
        return min((s for engine, s in self.seconds.items() if engine not in OURS), default=None)

    def of_roof(self, engine: str) -> float:
        """The share of the roof that an engine reached."""
        return self.roof / self.seconds[engine]


def measure_rates() -> Rates:
    """Best of seven: an sgemm of 2048^3 and a copy of 256 MB, by PyTorch with its threads, or else by NumPy."""
    if find_spec("torch") is None:
        a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
        source, target = np.ones(64_000_000, np.float32), np.empty(64_000_000, np.float32)
        calls: tuple[Callable[[], object], ...] = (lambda: a @ a, lambda: np.copyto(target, source))
    else:
        torch = import_module("torch")
        matrix, origin = torch.randn(2048, 2048), torch.randn(64_000_000)
        place = torch.empty_like(origin)
        calls = (lambda: matrix @ matrix, lambda: place.copy_(origin))
    product, copy = (min(seconds_of(call) for _ in range(7)) for call in calls)
    return Rates(2 * 2048**3 / product, 2 * 256e6 / copy)


def race(
    layers: Sequence[Workload],
    names: Sequence[str],
    rates: Rates,
    *,
    threads: int,
    rounds: int,
    budget: float,
    train: bool,
    judge: Callable[[Workload, Operands, int, bool], Judge] | None = None,
    on_step: Callable[[str, str], None] = lambda layer, engine: None,
) -> Iterator[Row]:
    """Yield one row per layer. `budget` bounds the seconds of a layer's rounds, of which there are at least three.

    `judge` makes, of a layer, what measures the error of results; PyTorch unless named. `on_step` hears the layer and
    the engine before each of the `rounds` + 1 runs of an engine.
    """
    for layer in layers:
        row = Row(
            layer.name,
            layer.roof(rates, train),
            layer.flops(train) / 1e9,
            layer.flops(train) / layer.bytes(train),
            tolerance=_TOLERANCES[layer.dtype],
        )
        calls = _prepare(row, layer, names, threads, train, judge or by_torch, on_step)
        row.seconds = _median_seconds(calls, rounds, budget, partial(on_step, layer.name))
        yield row


def by_torch(layer: Workload, data: Operands, threads: int, train: bool) -> Judge:
    """Hold every result against PyTorch's: the largest difference, as a share of its largest value."""
    judgement = (TRAIN if train else FORWARD)["torch"](layer, data, threads)()
    return lambda results: max(_error(*pair) for pair in zip(results, judgement, strict=True))


def by_definition(layer: Workload, data: Operands, threads: int, train: bool) -> Judge:
    """Hold the output against the definition in float64: the first image, as many channels as take a few seconds."""
    g = layer.geometry
    columns = layer.out_channels // g.groups
    work = max(1, g.multiply_adds(1, layer.in_channels // g.groups, g.groups) // g.groups)  # of one output channel
    checked = min(columns, max(1, _MOST_CHECKED // work))
    rows = slice(0, layer.in_channels // g.groups)
    first_group = replace(g, groups=1)
    y = reference.forward(data.x[:1, rows], data.weight[rows, :checked], None, first_group)
    if layer.bias:
        y += data.bias[:checked].astype(np.float64).reshape(-1, 1, 1, 1)
    return lambda results: _error(results[0][:1, :checked], y)


def _prepare(
    row: Row,
    layer: Workload,
    names: Sequence[str],
    threads: int,
    train: bool,
    judge: Callable[[Workload, Operands, int, bool], Judge],
    on_step: Callable[[str, str], None],
) -> dict[str, Call]:
    """Build every engine's call and run it once, which warms it up and shows what it computes."""
    data = layer.operands()
    error_of = judge(layer, data, threads, train)
    calls = {}
    for name in names:
        on_step(layer.name, name)
        try:
            call = (TRAIN if train else FORWARD)[name](layer, data, threads)
            row.errors[name] = error_of(call())
            calls[name] = call
        except Refused as refusal:
            row.refusals[name] = str(refusal)
        except Exception as error:  # a peer of any version may fail in any way; ours may not
            if name in OURS:
                raise
            row.refusals[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return calls


def _error(found: NDArray[Any], right: NDArray[Any]) -> float:
    """The largest difference, as a share of the largest value; 0 where there is nothing to compare."""
    if found.shape != right.shape:
        return float("inf")
    scale = float(np.abs(right).max(initial=0)) or 1.0
    wide = found if found.dtype.itemsize > 2 else found.astype(np.float32)
    return float(np.abs(wide - right).max(initial=0)) / scale


def _median_seconds(
    calls: Mapping[str, Call], rounds: int, budget: float, on_step: Callable[[str], None]
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(1, rounds + 1):
        for name, call in calls.items():
            on_step(name)
            time.sleep(_PAUSE)
            seconds[name].append(seconds_of(call))
        if done >= _MINIMUM_ROUNDS and time.perf_counter() - start > budget:
            break
    return {name: statistics.median(values) for name, values in seconds.items()}


def seconds_of(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    del result  # after the clock: freeing the output is not part of the call
    return elapsed
