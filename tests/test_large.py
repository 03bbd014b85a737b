# SPDX-License-Identifier: Apache-2.0
"""Arrays of more than 2^31 elements: every index has 64 bits."""

from __future__ import annotations

import numpy as np
import pytest

import tconv3d

BEYOND = 2**31


def test_an_output_of_more_than_2_31_elements() -> None:
    """Thin: 2^27 + 1 samples spread by kernel = stride = 16 over one axis, 4.3 GB of float16."""
    samples = BEYOND // 16 + 1
    x = np.zeros((1, 1, 1, 1, samples), np.float16)
    marked = [0, 1, 12345, samples // 2, samples - 3, samples - 2, samples - 1]
    x[..., marked] = values = np.arange(1, len(marked) + 1)
    weight = np.arange(1, 17, dtype=np.float16).reshape(1, 1, 1, 1, 16)
    y = tconv3d.conv_transpose3d(x, weight, stride=(1, 1, 16))
    assert y.shape == (1, 1, 1, 1, BEYOND + 16)
    for sample, value in zip(marked, values, strict=True):
        assert np.array_equal(y[0, 0, 0, 0, 16 * sample : 16 * (sample + 1)], value * weight.ravel())


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_gradients_of_an_output_of_more_than_2_31_elements(axis: int) -> None:
    """Nine samples, 2^28 apart; between them lies memory that nobody touches."""
    shape, stride, places = [1] * 5, [1, 1, 1], np.arange(9) * 2**28
    shape[axis], stride[axis - 2] = BEYOND + 1, 2**28
    grad = np.zeros(shape, np.float32)
    grad[(0, 0, *(places if a == axis else 0 for a in (2, 3, 4)))] = np.arange(1, 10)
    shape[axis] = 9
    x, weight = np.arange(9, 0, -1, dtype=np.float32).reshape(shape), np.full((1, 1, 1, 1, 1), 2, np.float32)
    grad_x = tconv3d.conv_transpose3d_input_grad(grad, weight, x.shape, stride=stride)
    assert grad_x.ravel().tolist() == [2 * n for n in range(1, 10)]
    grad_weight = tconv3d.conv_transpose3d_weight_grad(x, grad, weight.shape, stride=stride)
    assert grad_weight.item() == sum(n * (10 - n) for n in range(1, 10))


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_an_input_of_more_than_2_31_elements(axis: int) -> None:
    """Only its last samples reach the output; the rest is memory that nobody touches."""
    shape = [1, 1, 1, 1, 1]
    shape[axis] = BEYOND + 5
    x = np.zeros(shape, np.float32)
    tail = x[(0, 0, *(slice(-6, None) if a == axis else 0 for a in (2, 3, 4)))]
    tail[:] = [1, 2, 3, 4, 5, 6]
    kernel = [1, 1, 1, 1, 1]
    kernel[axis] = 3
    padding = [0] * 6
    padding[2 * (axis - 2)] = BEYOND  # in front
    y = tconv3d.conv_transpose3d(x, np.full(kernel, 1, np.float32), padding=tuple(padding))
    assert y.ravel().tolist() == list(np.convolve([0, *tail], [1, 1, 1]))[-7:]
