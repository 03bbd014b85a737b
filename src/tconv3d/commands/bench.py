# SPDX-License-Identifier: Apache-2.0
"""`tconv3d bench`: this engine against whatever else computes a transposed convolution on this machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from .. import _engine
from ..bench import race
from ..bench.engines import FORWARD, LABELS, OURS, missing_packages
from ..bench.roofline import roofline
from ..bench.workload import DTYPES, GivenLayer, Rates
from ..migrate.layer import resolve
from ..migrate.signature import parse_layer, parse_shape
from . import CommandError
from ._model_layers import layers_of

__all__ = ["DTYPES", "run"]

_BUDGET = 20.0  # seconds of a layer's rounds, after three of them


def run(
    calls: Sequence[str], model: str | None, shape: str, dtype: str | None, threads: int | None, rounds: int,
    engines: str | None, json_file: Path | None, plot: Path | None,
) -> int:  # fmt: skip
    """Race and print. Returns 1 where an engine computed something else than the definition, else 0."""
    if bool(calls) == (model is not None):
        raise CommandError("name either layers, with --layer, or a model, with --model")
    if rounds < 1:
        raise CommandError(f"--rounds is {rounds}, but there must be one at least")
    needs = (("rich", True), ("matplotlib", plot is not None), ("ml_dtypes", dtype == "bfloat16"))
    for package, needed in needs:
        if needed and missing_packages(package):
            raise CommandError(f"bench needs {package}: pip install 'tconv3d[bench]'")
    names, absent = _installed(engines)
    count = _set_threads(threads)
    input_shape = parse_shape(shape)
    layers = layers_of(model, input_shape) if model is not None else [_layer(call, input_shape) for call in calls]
    if dtype is not None:
        layers = [replace(layer, dtype=dtype) for layer in layers]
    rows, rates = _race(layers, names, count, rounds)
    _print(layers, rows, rates, names, absent, count)
    if plot is not None:
        title = f"forward; {count} threads with {_engine.active_instruction_set()}"
        _write(plot, lambda: roofline(rows, rates, title, plot))
    if json_file is not None:
        _write(json_file, lambda: json_file.write_text(_as_json(layers, rows, rates, count, absent), encoding="utf-8"))
    return int(any(row.wrong for row in rows))


def _layer(call: str, input_shape: tuple[int, ...]) -> GivenLayer:
    """What a layer call does on this input; RequestError from its contract."""
    layer = resolve(parse_layer(call), input_shape)
    if layer.call.dtype not in DTYPES:
        raise CommandError(f"{layer.call.dtype} is not raced: choose one of {', '.join(DTYPES)} with --dtype")
    arguments = layer.arguments
    sizes = layer.geometry, layer.batch, arguments.in_channels, arguments.out_channels
    return GivenLayer(call, *sizes, layer.bias, layer.call.dtype)


def _installed(wanted: str | None) -> tuple[list[str], dict[str, list[str]]]:
    """The engines to race, and of the others what they lack."""
    names = wanted.split(",") if wanted else list(FORWARD)
    for name in names:
        if name not in FORWARD:
            raise CommandError(f"{name!r} is no engine known here: choose from {', '.join(FORWARD)}")
    absent = {name: missing for name in names if (missing := missing_packages(name))}
    return [name for name in names if name not in absent], absent


def _set_threads(threads: int | None) -> int:
    """Give every engine the same count: by variables for libraries still to be loaded, by functions for the rest."""
    if threads is not None:
        try:
            _engine.set_num_threads(threads)
        except ValueError as error:
            raise CommandError(str(error)) from None
    count = _engine.get_num_threads()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(count)
    if not missing_packages("torch"):
        import_module("torch").set_num_threads(count)
    return count


def _race(layers: list[GivenLayer], names: list[str], threads: int, rounds: int) -> tuple[list[race.Row], Rates]:
    progress = import_module("rich.progress")
    console = import_module("rich.console").Console(stderr=True)
    with progress.Progress(console=console, transient=True) as bar:
        task = bar.add_task("rates of this machine", total=len(layers) * len(names) * (rounds + 1))
        rates = race.measure_rates()

        def step(layer: str, engine: str) -> None:
            bar.update(task, advance=1, description=f"{LABELS[engine]} on {layer[:40]}")

        found = race.race(
            layers, names, rates, threads=threads, rounds=rounds, budget=_BUDGET, train=False,
            judge=race.by_definition, on_step=step,
        )  # fmt: skip
        return list(found), rates


def _print(
    layers: list[GivenLayer], rows: list[race.Row], rates: Rates, names: list[str], absent: dict[str, list[str]],
    threads: int,
) -> None:  # fmt: skip
    console = import_module("rich.console").Console(width=None if sys.stdout.isatty() else 110)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    by = "NumPy" if missing_packages("torch") else "PyTorch"
    say(f"{threads} threads, {_engine.active_instruction_set()}; sgemm {rates.sgemm / 1e9:.0f} GFLOP/s and copy")
    say(f"{rates.copy / 1e9:.1f} GB/s, both by {by}, are the roof. Medians; errors against the definition in float64.")
    for layer, row in zip(layers, rows, strict=True):
        say(f"\n{layer.name}")
        say(f"{layer.input_shape} -> {layer.output_shape}, {layer.dtype}, {row.gflop:.3g} GFLOP")
        console.print(_table(row, names))
        for engine, reason in row.refusals.items():
            say(f"{LABELS[engine]} refuses it: {reason}")
    if len(rows) > 1:
        console.print(_totals(rows, names))
    for name, packages in absent.items():
        say(f"{LABELS[name]} is not raced: {' and '.join(packages)} is not installed")


def _table(row: race.Row, names: list[str]) -> Any:
    table = import_module("rich.table").Table()
    for title in ("engine", "version"):
        table.add_column(title, no_wrap=True)
    for title in ("ms", "GFLOP/s", "of the roof", "times ours", "max error"):
        table.add_column(title, justify="right")
    ours = min(row.seconds[name] for name in OURS if name in row.seconds) if set(OURS) & set(row.seconds) else None
    for name in (name for name in names if name in row.seconds):
        seconds = row.seconds[name]
        times = "" if ours is None else f"{seconds / ours:.2f}"
        error = f"{row.errors[name]:.1e}" + (" WRONG" if name in row.wrong else "")
        figures = f"{seconds * 1e3:.3f}", f"{row.gflop / seconds:.1f}", f"{row.of_roof(name):.2f}", times, error
        table.add_row(LABELS[name], _version(name), *figures, style="red" if name in row.wrong else None)
    return table


def _totals(rows: list[race.Row], names: list[str]) -> Any:
    """Each engine over the layers that it took."""
    table = import_module("rich.table").Table("engine", "layers", "ms in all", title="all layers")
    for name in names:
        taken = [row.seconds[name] for row in rows if name in row.seconds]
        table.add_row(LABELS[name], str(len(taken)), f"{sum(taken) * 1e3:.3f}")
    return table


def _as_json(
    layers: list[GivenLayer], rows: list[race.Row], rates: Rates, threads: int, absent: dict[str, list[str]]
) -> str:
    names = dict.fromkeys(engine for row in rows for engine in (*row.seconds, *row.refusals))
    content = {
        "threads": threads,
        "instruction_set": _engine.active_instruction_set(),
        "rates": rates._asdict(),
        "versions": {name: _version(name) for name in names},
        "not_installed": absent,
        "layers": [
            {"input": layer.input_shape, "output": layer.output_shape, "dtype": layer.dtype, **asdict(row)}
            for layer, row in zip(layers, rows, strict=True)
        ],
    }
    return json.dumps(content, indent=1) + "\n"


def _version(engine: str) -> str:
    try:
        return metadata.version(engine.removesuffix("_live").removesuffix("_cl"))
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return ""


def _write(path: Path, write: Any) -> None:
    try:
        write()
    except (OSError, ValueError) as error:  # matplotlib: a suffix that it does not draw
        raise CommandError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    print(f"wrote {path}")
