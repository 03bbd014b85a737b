# SPDX-License-Identifier: Apache-2.0
"""The roofline picture: every layer a point, every engine a color."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .race import Row
from .workload import Rates


def roofline(rows: Sequence[Row], rates: Rates, title: str, path: Path) -> None:
    """Draw the rate of each layer over its operations per byte, under the roof of this run's sgemm and copy rates."""
    figure: Any = import_module("matplotlib.figure").Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    reach = [row.intensity for row in rows]
    intensity = np.geomspace(min(reach) / 1.5, max(reach) * 1.5, 200)
    roof = np.minimum(rates.sgemm, intensity * rates.copy) / 1e9
    axes.plot(intensity, roof, color="black", label="roof: sgemm and copy rates")
    for number, engine in enumerate(dict.fromkeys(engine for row in rows for engine in row.seconds)):
        points = [(row.intensity, row.gflop / row.seconds[engine]) for row in rows if engine in row.seconds]
        axes.scatter(*zip(*points, strict=True), s=22, alpha=0.8, color=f"C{number}", label=engine)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="floating-point operations per byte of input, weight and output",
        ylabel="GFLOP/s",
        title=title,
    )
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
