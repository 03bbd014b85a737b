# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a forward call, beyond its output and its packed weights; a process for each measurement."""

from __future__ import annotations

import dataclasses
import math
import resource
import subprocess
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from workloads import Workload, load

from tconv3d.bench.engines import FORWARD

MEBIBYTE = 2**20


def print_table(console: Console, layers: Iterable[Workload], engines: Sequence[str], threads: int) -> None:
    """Measure every layer with every engine and print MiB of working memory."""
    table = Table("layer", "output", "weights", *engines, title="MiB beyond output and packed weights")
    for layer in layers:
        extra = [_in_a_process(layer.name, engine, threads) for engine in engines]
        known = [4 * size for size in _sizes(layer)]
        table.add_row(layer.name, *(f"{size / MEBIBYTE:.1f}" for size in (*known, *extra)))
    console.print(table)


def _in_a_process(name: str, engine: str, threads: int) -> int:
    command = [sys.executable, __file__, name, engine, str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _sizes(layer: Workload) -> tuple[int, int]:
    """Elements of output and weight."""
    return math.prod(layer.output_shape), math.prod(layer.weight_shape)


def _working_memory(layer: Workload, engine: str, threads: int) -> int:
    """Growth of this process's peak over one call, less output and packed weights. A tiny call loads the libraries."""
    tiny = dataclasses.replace(
        layer, input_spatial=[2, 2, 2], in_channels=layer.groups, out_channels=layer.groups, batch=1
    )
    FORWARD[engine](tiny, tiny.operands(), threads)()
    call = FORWARD[engine](layer, layer.operands(), threads)
    before = _peak()
    results = call()
    grown = _peak() - before
    del results
    return max(0, grown - 4 * sum(_sizes(layer)))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    (chosen,) = (layer for layer in load() if layer.name == sys.argv[1])
    print(_working_memory(chosen, sys.argv[2], int(sys.argv[3])))
