# SPDX-License-Identifier: Apache-2.0
"""The error stays within 4 eps sqrt(terms) of the largest sum, also on constant data, where errors do not cancel."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import tconv3d
from tconv3d import _core

TENTH = np.float32(0.1)


def promise(terms: int) -> float:
    return 4 * float(np.finfo(np.float32).eps) * terms**0.5


@pytest.mark.parametrize(("kernel", "channels"), [(4, 2048), (5, 32), (7, 32), (9, 32), (13, 8)])
def test_forward_and_input_gradient_of_a_constant(kernel: int, channels: int) -> None:
    weight = np.full((channels, 1, kernel, kernel, kernel), TENTH)
    terms = channels * kernel**3
    y = tconv3d.conv_transpose3d(np.ones((1, channels, kernel, kernel, kernel), np.float32), weight)
    np.testing.assert_allclose(y[0, 0, kernel - 1, kernel - 1, kernel - 1], float(TENTH) * terms, rtol=promise(terms))

    swapped = weight.transpose(1, 0, 2, 3, 4)
    grad_output = np.ones((1, channels, kernel, kernel, kernel), np.float32)
    gx = tconv3d.conv_transpose3d_input_grad(grad_output, swapped, (1, 1, 1, 1, 1))
    np.testing.assert_allclose(gx.ravel(), [float(TENTH) * terms], rtol=promise(terms))


@pytest.mark.parametrize(
    "shape", [(1, 1, 64, 64, 64), (1, 1, 1, 1, 300_000), (2, 16, 32, 64, 64), (1, 2, 1, 3, 70_001)]
)
@pytest.mark.parametrize("groups", ["one", "depthwise"])
def test_weight_gradient_of_a_constant(shape: tuple[int, ...], groups: str) -> None:
    channels = shape[1]
    count = channels if groups == "depthwise" else 1
    gw = tconv3d.conv_transpose3d_weight_grad(
        np.full(shape, TENTH), np.ones(shape, np.float32), (channels, channels // count, 1, 1, 1), groups=count
    )
    terms = shape[0] * int(np.prod(shape[2:]))
    np.testing.assert_allclose(gw, float(TENTH) * terms, rtol=promise(terms))


@pytest.mark.parametrize("stride", [1, 2])  # rows stored side by side and interleaved
@pytest.mark.parametrize("factor", [1, 1.0009766, 0.333, -3.7, 1e-4, 6e-8, 60000, 1e-38, 3e38])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", _core.instruction_sets())
def test_every_16_bit_value_is_rounded_once(name: str, dtype: type, factor: float, stride: int) -> None:
    before = _core.active_instruction_set()
    with np.errstate(all="ignore"):
        every = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(1, 1, 4, 128, 128)
        weight = np.array(factor, np.float32).astype(dtype).reshape(1, 1, 1, 1, 1)
        expected = (every.astype(np.float32) * weight.astype(np.float32)).astype(dtype)
        try:
            _core.set_instruction_set(name)
            y = tconv3d.conv_transpose3d(every, weight, stride=stride)
        finally:
            _core.set_instruction_set(before)
        np.testing.assert_array_equal(
            y[:, :, ::stride, ::stride, ::stride].astype(np.float32), expected.astype(np.float32)
        )
