# SPDX-License-Identifier: Apache-2.0
"""Layers to time, their operands, and the least time that this machine could need for them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tconv3d.geometry import Geometry

FILE = Path(__file__).with_name("workloads.json")
_FLOAT32 = 4


class Operands(NamedTuple):
    """float32 arrays of one layer; `grad` is a gradient of its output."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    grad: np.ndarray


class Rates(NamedTuple):
    """What this run measured: floating-point operations a second of a large sgemm, bytes a second of a large copy."""

    sgemm: float
    copy: float


@dataclass(frozen=True)
class Workload:
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
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.input_spatial)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.geometry.output_size)

    @property
    def geometry(self) -> Geometry:
        axes = zip(
            self.input_spatial, self.stride, self.padding, self.dilation, self.kernel, self.output_padding, strict=True
        )
        output = tuple((n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, s, p, d, k, extra in axes)
        per_axis = self.input_spatial, self.kernel, self.stride, self.dilation, self.padding, output
        return Geometry(*map(tuple, per_axis), self.groups)

    def flops(self, train: bool) -> int:
        """Two for each multiply-add that reaches the output; a training step has three such passes."""
        forward = 2 * self.geometry.multiply_adds(self.batch, self.in_channels, self.out_channels)
        return 3 * forward if train else forward

    def bytes(self, train: bool) -> int:
        """Input, weight and output once each, in float32; three times in a training step."""
        elements = sum(math.prod(shape) for shape in (self.input_shape, self.weight_shape, self.output_shape))
        return _FLOAT32 * elements * (3 if train else 1)

    def roof(self, rates: Rates, train: bool) -> float:
        """Seconds that no direct method can beat: arithmetic at the sgemm rate or memory at the copy rate."""
        return max(self.flops(train) / rates.sgemm, self.bytes(train) / rates.copy)

    def operands(self) -> Operands:
        """Random data, the same in every run."""
        rng = np.random.default_rng(0)
        return Operands(
            rng.standard_normal(self.input_shape, np.float32),
            rng.standard_normal(self.weight_shape, np.float32) * np.float32(0.05),
            rng.standard_normal(self.out_channels, np.float32),
            rng.standard_normal(self.output_shape, np.float32),
        )


def load(path: Path = FILE, only: list[str] | None = None) -> list[Workload]:
    """Read the layers of a file, or those whose names contain one of the words in `only`."""
    layers = [Workload(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    return [layer for layer in layers if only is None or any(word in layer.name for word in only)]
