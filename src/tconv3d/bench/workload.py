# SPDX-License-Identifier: Apache-2.0
"""A layer to time, its operands, and the least time that this machine could need for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..geometry import Geometry
from ..migrate.equal import to_functional

Array = NDArray[Any]

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
DTYPES = tuple(_ITEM_BYTES)


class Operands(NamedTuple):
    """Arrays of one layer; `grad` is a gradient of its output."""

    x: Array
    weight: Array
    bias: Array
    grad: Array


class Rates(NamedTuple):
    """What this run measured: floating-point operations a second of a large sgemm, bytes a second of a large copy."""

    sgemm: float
    copy: float


class Workload:
    """What follows from a layer's sizes. A subclass has these attributes; arrays are (N, C, D, H, W)."""

    name: str
    geometry: Geometry
    batch: int
    in_channels: int
    out_channels: int
    dtype: str = "float32"
    bias: bool = True

    @property
    def arguments(self) -> dict[str, Any]:
        """What to pass to `tconv3d.conv_transpose3d` behind the operands."""
        return to_functional(self.geometry)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(N, C_in, D, H, W)."""
        return (self.batch, self.in_channels, *self.geometry.input_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(C_in, C_out / groups, kD, kH, kW)."""
        return (self.in_channels, self.out_channels // self.geometry.groups, *self.geometry.kernel_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, C_out, D', H', W')."""
        return (self.batch, self.out_channels, *self.geometry.output_size)

    def flops(self, train: bool) -> int:
        """Two for each multiply-add that reaches the output; a training step has three such passes."""
        forward = 2 * self.geometry.multiply_adds(self.batch, self.in_channels, self.out_channels)
        return 3 * forward if train else forward

    def bytes(self, train: bool) -> int:
        """Input, weight and output once each; three times in a training step."""
        elements = sum(math.prod(shape) for shape in (self.input_shape, self.weight_shape, self.output_shape))
        return _ITEM_BYTES[self.dtype] * elements * (3 if train else 1)

    def roof(self, rates: Rates, train: bool) -> float:
        """Seconds that no direct method can beat: arithmetic at the sgemm rate or memory at the copy rate."""
        return max(self.flops(train) / rates.sgemm, self.bytes(train) / rates.copy)

    def operands(self) -> Operands:
        """Random data, the same in every run."""
        rng = np.random.default_rng(0)
        arrays = (
            rng.standard_normal(self.input_shape, np.float32),
            rng.standard_normal(self.weight_shape, np.float32) * np.float32(0.05),
            rng.standard_normal(self.out_channels, np.float32),
            rng.standard_normal(self.output_shape, np.float32),
        )
        return Operands(*(array.astype(_numpy_dtype(self.dtype), copy=False) for array in arrays))


@dataclass(frozen=True)
class GivenLayer(Workload):
    """A layer that a user asked for."""

    name: str
    geometry: Geometry
    batch: int
    in_channels: int
    out_channels: int
    bias: bool = True
    dtype: str = "float32"


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
