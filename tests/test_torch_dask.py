# SPDX-License-Identifier: Apache-2.0
"""Blocks of dask against PyTorch's own operator: integers have no rounding to hide behind."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch

import tconv3d.dask


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.int64])
@pytest.mark.parametrize("seed", range(15))
def test_integers_equal_those_of_pytorch(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 4))
    rows, columns = map(int, rng.integers(1, 5, 2))

    def triple(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(n) for n in rng.integers(low, high + 1, 3))

    def integers(*shape: int) -> np.ndarray:
        values = rng.integers(-9, 10, shape)
        return (values + 1j * rng.integers(-9, 10, shape) if dtype is np.complex64 else values).astype(dtype)

    kernel, stride = triple(1, 5), triple(1, 4)
    x = integers(2, groups * rows, *triple(3, 7))
    weight, bias = integers(groups * rows, columns, *kernel), integers(groups * columns)
    arguments: dict[str, Any] = {
        "stride": stride,
        "padding": tuple(int(rng.integers(0, (k + 1) // 2)) for k in kernel),
        "output_padding": tuple(int(rng.integers(0, s)) for s in stride),
        "groups": groups,
        "dilation": triple(1, 3),
    }
    theirs = torch.nn.functional.conv_transpose3d(*map(torch.from_numpy, (x, weight, bias)), **arguments).numpy()
    lazy = tconv3d.dask.conv_transpose3d(
        da.from_array(x, chunks=(1, 2, *triple(1, 5))), weight, bias, **arguments, chunks=triple(4, 12)
    )
    np.testing.assert_array_equal(lazy.compute(), theirs, strict=True)
