# SPDX-License-Identifier: Apache-2.0
"""An infinity in the input stays where it belongs, whichever way a layer is run."""

from __future__ import annotations

import numpy as np
import pytest

import tconv3d
from tconv3d import _core

pytestmark = pytest.mark.usefixtures("restored_engine")


@pytest.mark.parametrize("family", ["automatic", "spatial", "phased", "depthwise", "rows", "channels", "col2im"])
@pytest.mark.parametrize("case", range(12))
def test_an_infinite_sample_reaches_its_own_outputs_alone(family: str, case: int) -> None:
    rng = np.random.default_rng(case)
    in_channels, out_channels, kernel, stride = rng.integers(1, (40, 40, 5, 4))
    space = tuple(rng.integers(1, 7, 3))
    x = rng.standard_normal((2, in_channels, *space))
    weight = rng.standard_normal((in_channels, out_channels, kernel, kernel, kernel))
    at = tuple(rng.integers(0, x.shape))
    x[at] = np.inf
    marked = np.zeros_like(x)
    marked[at] = 1
    reached = tconv3d.conv_transpose3d(marked, np.ones_like(weight), stride=int(stride)) != 0

    if family == "col2im":
        _core.set_algorithm(family)
        family = "automatic"
    out = np.empty(reached.shape)
    strides = (int(stride),) * 3
    _core.forward(x, weight, None, out, strides, (1, 1, 1), (0, 0, 0), 1, 0, None, getattr(_core.Family, family))
    np.testing.assert_array_equal(np.isfinite(out), ~reached)
