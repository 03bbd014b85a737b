# SPDX-License-Identifier: Apache-2.0
"""Time every engine on every layer, in turn, in one run on one machine, and check what they computed.

Each round times each engine once, so that a machine that slows down slows all of them; the figure is the median over
the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from engines import FORWARD, OURS, TRAIN, Call, Refused, Results
from workloads import Rates, Workload

TOLERANCE = 1e-4  # of the largest value of the judge's result
_MINIMUM_ROUNDS = 3
# Before each timed call: the idle threads of the engine before it spin for some milliseconds and would take its cores.
_PAUSE = 0.01


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

    @property
    def wrong(self) -> list[str]:
        """Engines whose result is off."""
        return [engine for engine, error in self.errors.items() if not error < TOLERANCE]

    @property
    def best_peer(self) -> float | None:
        """Seconds of the fastest engine that is not ours."""
        return min((s for engine, s in self.seconds.items() if engine not in OURS), default=None)

    def of_roof(self, engine: str) -> float:
        return self.roof / self.seconds[engine]


def measure_rates() -> Rates:
    """Best of seven: an sgemm of 2048^3 and a copy of 256 MB, both by PyTorch with its threads."""
    import torch

    a = torch.randn(2048, 2048)
    source = torch.randn(64_000_000)
    target = torch.empty_like(source)
    product = min(seconds_of(lambda: a @ a) for _ in range(7))
    copy = min(seconds_of(lambda: target.copy_(source)) for _ in range(7))
    return Rates(2 * 2048**3 / product, 2 * source.nbytes / copy)


def race(
    layers: Sequence[Workload],
    names: Sequence[str],
    rates: Rates,
    *,
    threads: int,
    rounds: int,
    budget: float,
    train: bool,
) -> Iterator[Row]:
    """Yield one row per layer. `budget` bounds the seconds of a layer's rounds, of which there are at least three."""
    for layer in layers:
        row = Row(
            layer.name, layer.roof(rates, train), layer.flops(train) / 1e9, layer.flops(train) / layer.bytes(train)
        )
        calls = _prepare(row, layer, names, threads, train)
        row.seconds = _median_seconds(calls, rounds, budget)
        yield row


def _prepare(row: Row, layer: Workload, names: Sequence[str], threads: int, train: bool) -> dict[str, Call]:
    """Build every engine's call and run it once, which warms it up; its result is held against the judge's."""
    data = layer.operands()
    engines = TRAIN if train else FORWARD
    judgement = engines["torch"](layer, data, threads)()
    calls = {}
    for name in names:
        try:
            calls[name] = engines[name](layer, data, threads)
            row.errors[name] = _error(calls[name](), judgement)
        except Refused as refusal:
            row.refusals[name] = str(refusal)
    return calls


def _error(results: Results, judgement: Results) -> float:
    """The largest difference, as a share of the judge's largest value, over output and gradients."""
    pairs = zip(results, judgement, strict=True)
    return max(float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in pairs)


def _median_seconds(calls: Mapping[str, Call], rounds: int, budget: float) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(1, rounds + 1):
        for name, call in calls.items():
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
