# SPDX-License-Identifier: Apache-2.0
"""Weight gradients with the positions on the vector lanes: depthwise layers, few channels in or out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose

import tconv3d
from tconv3d import _core, _engine, reference
from tconv3d.geometry import Geometry, Triple

pytestmark = pytest.mark.usefixtures("restored_engine")


class Layer(NamedTuple):
    batch: int
    channels: tuple[int, int]
    size: Triple
    kernel: Triple
    stride: Triple
    crop: Triple
    output: Triple
    groups: int = 1
    dilation: Triple = (1, 1, 1)

    def geometry(self) -> Geometry:
        return Geometry(self.size, self.kernel, self.stride, self.dilation, self.crop, self.output, self.groups)

    def weight_shape(self) -> tuple[int, ...]:
        return (self.channels[0], self.channels[1] // self.groups, *self.kernel)


# All large enough for positions on the lanes, with each instruction set.
LAYERS = {
    "depthwise": Layer(2, (20, 20), (18, 20, 22), (3, 3, 3), (2, 2, 2), (1, 1, 1), (35, 39, 43), 20),
    "depthwise, several blocks": Layer(1, (3, 3), (20, 40, 41), (5, 5, 5), (2, 2, 2), (2, 2, 2), (39, 79, 81), 3),
    "depthwise, stride 3": Layer(3, (4, 4), (7, 17, 19), (4, 2, 5), (3, 3, 3), (0, 0, 1), (22, 50, 57), 4),
    "one out, rows in place": Layer(2, (7, 1), (6, 9, 70), (3, 3, 3), (2, 2, 2), (1, 1, 1), (12, 18, 140)),
    "strands of odd length": Layer(13, (3, 1), (1, 20, 40), (3, 5, 7), (2, 2, 2), (0, 0, 0), (3, 43, 85)),
    "one in": Layer(2, (1, 5), (6, 15, 17), (4, 4, 4), (2, 2, 2), (1, 1, 1), (12, 30, 34)),
    "groups of two and three": Layer(1, (6, 9), (6, 19, 21), (5, 4, 3), (1, 2, 3), (2, 1, 0), (6, 38, 63), 3),
    "dilated, taps far apart": Layer(
        1, (4, 2), (12, 11, 14), (3, 2, 2), (1, 2, 1), (2, 0, 3), (16, 45, 35), 1, (4, 24, 27)
    ),
    "a row of more than one chain": Layer(1, (1, 1), (2, 1, 20000), (3, 1, 3), (1, 1, 2), (1, 0, 1), (2, 1, 39999)),
    "cropped by more than its reach": Layer(1, (2, 2), (20, 20, 20), (2, 3, 3), (1, 1, 1), (4, 0, 9), (13, 22, 4)),
}
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": np.ascontiguousarray,
    "channels last": lambda a: np.ascontiguousarray(np.moveaxis(a, 1, -1)).transpose(0, 4, 1, 2, 3),
    "reversed": lambda a: np.ascontiguousarray(a[:, ::-1, ::-1, :, ::-1])[:, ::-1, ::-1, :, ::-1],
    "expanded": lambda a: np.broadcast_to(a[:, :, :1, :1, :1], a.shape),
    "every other": lambda a: np.repeat(a, 2, axis=4)[..., ::2],
}


def plan(layer: Layer, dtype: Any) -> str:
    shape = (layer.batch, layer.channels[0], *layer.size)
    return _engine.describe_weight_grad(shape, layer.weight_shape(), layer.geometry(), np.dtype(dtype).name)


def operands(layer: Layer, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((layer.batch, layer.channels[0], *layer.size)).astype(dtype)
    return x, rng.standard_normal((layer.batch, layer.channels[1], *layer.output)).astype(dtype)


def weight_grad(x: np.ndarray, gy: np.ndarray, layer: Layer) -> np.ndarray:
    assert "positions on the lanes" in plan(layer, x.dtype)
    return _engine.weight_grad(x, gy, layer.geometry())


def expected(x: np.ndarray, gy: np.ndarray, layer: Layer) -> np.ndarray:
    return reference.weight_grad(x.astype(np.float64), gy.astype(np.float64), layer.geometry())


@pytest.fixture(params=_core.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> str:
    _core.set_instruction_set(request.param)
    return request.param


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_against_the_reference(instruction_set: str, name: str, layout: str) -> None:
    layer = LAYERS[name]
    x, gy = operands(layer)
    tconv3d.set_num_threads(2)
    if layout == "expanded":  # a gradient as sum().backward() sends it
        gy[:] = gy[:, :, :1, :1, :1]
    gw = weight_grad(x if layout == "expanded" else LAYOUTS[layout](x), LAYOUTS[layout](gy), layer)
    want = expected(x, gy, layer)
    assert_allclose(gw, want, rtol=0, atol=3e-6 * np.sqrt(np.prod(layer.size) * layer.batch))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", ["depthwise", "one out, rows in place", "groups of two and three"])
def test_other_dtypes(instruction_set: str, name: str, dtype: Any) -> None:
    layer = LAYERS[name]
    x, gy = operands(layer, dtype)
    gw = weight_grad(x, gy, layer)
    want = expected(x, gy, layer)
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert_allclose(gw.astype(np.float64), want, rtol=eps, atol=1e-5 * np.sqrt(want.size) if eps > 1e-9 else 1e-11)


@pytest.mark.parametrize("name", ["depthwise", "one out, rows in place", "one in"])
def test_infinity_and_nan_stay_with_their_taps(instruction_set: str, name: str) -> None:
    """Zeros between packed rows meet every sample: a sum that is not finite must not owe that to them."""
    layer = LAYERS[name]
    x, gy = operands(layer)
    x[0, 0, 0, 0, 0] = np.inf  # whose first tap lies outside
    gy[0, -1, -1, -1, -1] = np.nan
    gw = weight_grad(x, gy, layer)
    want = expected(x, gy, layer)
    assert np.isfinite(want).any() and not np.isfinite(want).all()
    assert_allclose(gw, want, rtol=0, atol=1e-3, equal_nan=True)
