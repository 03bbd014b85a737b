# SPDX-License-Identifier: Apache-2.0
"""The interpolating kernels of `tconv3d upsample` against PyTorch's interpolate, borders included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tconv3d
from tconv3d.volumes import kernels

SCALES = [(2, 2, 2), (3, 3, 3), (1, 2, 5), (4, 1, 3), (8, 7, 6)]


def upsampled(x: Any, name: str, scale: tuple[int, int, int]) -> Any:
    weights = kernels.kernel(name, scale)
    geometry, edge = kernels.geometry_of(weights, scale, x.shape)
    padded = np.pad(x, [(e, e) for e in edge], mode="edge")[None, None]
    crops = [crop for pair in zip(geometry.crop_front, geometry.crop_back, strict=True) for crop in pair]
    return tconv3d.conv_transpose3d(padded, weights[None, None], stride=scale, padding=crops)[0, 0]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(5, 6, 7), (1, 2, 3), (2, 1, 1)])
def test_linear_and_nearest_are_pytorchs(size: tuple[int, ...], scale: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(size)
    tensor = torch.from_numpy(x)[None, None]
    for name, mode, options in (("linear", "trilinear", {"align_corners": False}), ("nearest", "nearest-exact", {})):
        expected = functional.interpolate(tensor, scale_factor=scale, mode=mode, **options)[0, 0].numpy()
        np.testing.assert_allclose(upsampled(x, name, scale), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(5, 6, 7), (1, 2, 3), (2, 1, 1)])
def test_cubic_is_pytorchs_bicubic_on_the_last_two_axes_and_then_the_first(
    size: tuple[int, ...], scale: tuple[int, int, int]
) -> None:
    x = np.random.default_rng(0).standard_normal(size)
    options: dict[str, Any] = {"mode": "bicubic", "align_corners": False}
    planes = functional.interpolate(torch.from_numpy(x)[None], scale_factor=scale[1:], **options)[0]
    columns = functional.interpolate(planes.movedim(0, -1)[None], scale_factor=(1, scale[0]), **options)[0]
    np.testing.assert_allclose(
        upsampled(x, "cubic", scale), columns.movedim(-1, 0).numpy(), rtol=1e-11, atol=1e-11
    )  # fmt: skip
