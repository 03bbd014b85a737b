# SPDX-License-Identifier: Apache-2.0
"""A run as a table, as JSON, and as the block of figures in README.md."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tconv3d.bench.engines import LABELS, OURS
from tconv3d.bench.race import Row
from tconv3d.bench.workload import Rates, Workload

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- speed:begin (written by benchmarks/run.py --readme) -->", "<!-- speed:end -->"
# Shown one by one in README: one layer for each kind of work.
_README_LAYERS = {
    "nnunet_64_32_64": "nnU-Net decoder, 64 → 32, k2 s2",
    "monai_unet_64_16": "MONAI U-Net, 64 → 16, k3 s2",
    "mednext_k5_dw64": "MedNeXt, depthwise 64, k5 s2",
    "gcnet_deconv5": "GC-Net, 32 → 1, k3 s2",
    "3dgan_l2": "3D-GAN, 512 → 256, k4 s2",
    "pix2vox_l1": "Pix2Vox, 2048 → 512, k4 s2",
    "kb_l2_78": "KernelBench, 32 → 64, k5 s2",
}


@dataclass(frozen=True)
class Run:
    """Everything that a report needs, as it is kept in JSON."""

    threads: int
    instruction_set: str
    train: bool
    rates: Rates
    rows: list[Row]
    versions: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Run:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["rates"] = Rates(**fields["rates"])
        fields["rows"] = [Row(**row) for row in fields["rows"]]
        return cls(**fields)

    def write(self, path: Path) -> None:
        fields = asdict(self) | {"rates": self.rates._asdict()}
        path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")

    @property
    def engines(self) -> list[str]:
        """Engines that ran at least one layer, in the order of the run."""
        return list(dict.fromkeys(engine for row in self.rows for engine in row.seconds))

    @property
    def machine(self) -> str:
        """The machine in words, without its name."""
        return (
            f"{self.threads} threads, {platform.machine()} with {self.instruction_set}: sgemm"
            f" {self.rates.sgemm / 1e9:.0f} GFLOP/s, copy {self.rates.copy / 1e9:.1f} GB/s"
        )


def versions(engines: Iterable[str]) -> dict[str, str]:
    """Versions of the packages behind the engines."""
    found = {}
    for package in dict.fromkeys(engine.removesuffix("_live").removesuffix("_cl") for engine in engines):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that was never installed
            found[package] = "uninstalled"
    return found


def geometric_mean(values: Sequence[float]) -> float:
    """
    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    return math.exp(sum(map(math.log, values)) / len(values))


def header(engines: Sequence[str]) -> Table:
    """The empty table that a terminal fills row by row."""
    table = Table(
        "layer", title="milliseconds and share of the roof; how many times faster than torch and than the best peer"
    )
    for name in ("roof", *engines, "torch", "best"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def add_row(table: Table, row: Row, engines: Sequence[str]) -> None:
    cells = [_cell(row, engine) for engine in engines]
    table.add_row(row.name, f"{row.roof * 1e3:.2f}", *cells, *_ratios(row))


def print_summary(console: Console, run: Run) -> None:
    """Geometric means over the layers that an engine ran, and everything that went wrong."""
    table = Table("engine", "layers", "of roof", "worst", "vs torch", "worst", title=run.machine)
    for engine in run.engines:
        table.add_row(engine, *_engine_figures(run, engine))
    console.print(table)
    for row in run.rows:
        for engine, reason in row.refusals.items():
            console.print(f"{engine} refuses {row.name}: {reason}", highlight=False)
        for engine in row.wrong:
            console.print(
                f"[red]WRONG[/red] {engine} on {row.name}: error {row.errors[engine]:.1e} of the largest value"
            )


def print_slower(console: Console, run: Run, layers: Sequence[Workload], allowance: float = 1.03) -> None:
    """Every layer on which an engine of ours took longer than the best peer, by more than `allowance`."""
    slower = 0
    for row, layer in zip(run.rows, layers, strict=True):
        if row.best_peer is None:
            continue
        for engine in OURS:
            times = row.seconds.get(engine, 0) / row.best_peer
            if times > allowance:
                slower += 1
                call = f"{layer.input_shape} x {layer.weight_shape}, {layer.arguments}"
                console.print(f"{engine} takes {times:.2f} of the best peer on {row.name}: {call}", highlight=False)
    console.print(f"{slower} of {len(run.rows)} layers slower than the best peer by more than {allowance - 1:.0%}")


def write_readme(run: Run, path: Path = README) -> None:
    """Put this run's figures between the two marks; the rest of the file stays as it is."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no block between '{BEGIN}' and '{END}'; put both marks back")
    path.write_text(f"{before}{BEGIN}\n{readme_block(run)}{END}{after}", encoding="utf-8")


def readme_block(run: Run) -> str:
    """Two Markdown tables: engines over all layers, and single layers in milliseconds."""
    what = "Forward and backward" if run.train else "Forward"
    used = ", ".join(f"{package} {number}" for package, number in run.versions.items())
    lines = [
        f"{what}, float32, {len(run.rows)} layers of real networks, {run.machine}; {used}.",
        "The roof is the time of the layer's arithmetic at the sgemm rate, or of its bytes at the copy rate.",
        "",
        "| engine | layers | share of the roof | worst | times faster than PyTorch | worst |",
        "|---|--:|--:|--:|--:|--:|",
        *(f"| {LABELS[engine]} | {' | '.join(_engine_figures(run, engine))} |" for engine in run.engines),
    ]
    shown = [row for row in run.rows if row.name in _README_LAYERS]
    if shown:
        lines += [
            "",
            f"| milliseconds | {' | '.join(LABELS[engine] for engine in run.engines)} |",
            f"|---|{'--:|' * len(run.engines)}",
            *(
                f"| {_README_LAYERS[row.name]} | {' | '.join(_milliseconds(row, engine) for engine in run.engines)} |"
                for row in shown
            ),
        ]
    return "\n".join(lines) + "\n"


def _engine_figures(run: Run, engine: str) -> list[str]:
    """Layers, share of the roof and speed against PyTorch: geometric mean and worst of each."""
    ran = [row for row in run.rows if engine in row.seconds]
    against = [row.seconds["torch"] / row.seconds[engine] for row in ran if "torch" in row.seconds]
    figures = [str(len(ran))]
    for values in ([row.of_roof(engine) for row in ran], against):
        figures += [f"{fold(values):.2f}" if values else "" for fold in _FOLDS]
    return figures


_FOLDS: tuple[Callable[[Sequence[float]], float], ...] = (geometric_mean, min)


def _cell(row: Row, engine: str) -> str:
    if engine not in row.seconds:
        return "refused"
    text = f"{row.seconds[engine] * 1e3:.2f} {row.of_roof(engine):.2f}"
    return f"[red]WRONG {text}[/red]" if engine in row.wrong else text


def _milliseconds(row: Row, engine: str) -> str:
    seconds = row.seconds.get(engine)
    return "refuses" if seconds is None else f"{seconds * 1e3:.1f}"


def _ratios(row: Row) -> list[str]:
    """How many times faster our best figure is than PyTorch's default and than the best peer."""
    ours = min((row.seconds[engine] for engine in OURS if engine in row.seconds), default=None)
    others = row.seconds.get("torch"), row.best_peer
    return ["" if ours is None or other is None else f"{other / ours:.2f}" for other in others]
