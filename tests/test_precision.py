# SPDX-License-Identifier: Apache-2.0
"""The error stays within 4 eps sqrt(terms) of the largest sum, also on constant data, where errors do not cancel."""

from __future__ import annotations

import numpy as np
import pytest

import tconv3d

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
