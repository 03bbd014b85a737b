# SPDX-License-Identifier: Apache-2.0
"""Layers of real networks, as `workloads.json` records them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tconv3d.bench import workload as bench
from tconv3d.geometry import Geometry

FILE = Path(__file__).with_name("workloads.json")


@dataclass(frozen=True)
class Workload(bench.Workload):
    """One layer of a real network, as `workloads.json` records it."""

    name: str
    in_channels: int
    out_channels: int
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    output_padding: list[int]
    dilation: list[int]
    groups: int
    input_spatial: list[int]
    batch: int
    source_repo: str
    source_file: str
    reduced_for_2_cores: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """The layer's options under the names that PyTorch and tconv3d share."""
        return {
            "stride": tuple(self.stride),
            "padding": tuple(self.padding),
            "output_padding": tuple(self.output_padding),
            "groups": self.groups,
            "dilation": tuple(self.dilation),
        }

    @property
    def geometry(self) -> Geometry:
        axes = zip(
            self.input_spatial, self.stride, self.padding, self.dilation, self.kernel, self.output_padding, strict=True
        )
        output = tuple((n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, s, p, d, k, extra in axes)
        per_axis = self.input_spatial, self.kernel, self.stride, self.dilation, self.padding, output
        return Geometry(*map(tuple, per_axis), self.groups)


def load(path: Path = FILE, only: list[str] | None = None) -> list[Workload]:
    """Read the layers of a file, or those whose names contain one of the words in `only`."""
    layers = [Workload(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    return [layer for layer in layers if only is None or any(word in layer.name for word in only)]
