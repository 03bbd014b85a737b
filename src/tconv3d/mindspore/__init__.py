# SPDX-License-Identifier: Apache-2.0
"""The face for MindSpore: both layers as cells, on this library's engine.

    import tconv3d.mindspore as nn        # instead of: import mindspore.nn as nn
    up = nn.Conv3dTranspose(64, 32, 4, stride=2, pad_mode="same")

The cells run in PyNative mode, under ms.jit and in GRAPH_MODE, forward and backward, on CPUs. On Ascend and GPU, and
for shapes that are not known when a graph is compiled, they hand the call to MindSpore's own operator, with its limits.

MindSpore 2.10 needs NumPy below 2.
"""

from __future__ import annotations

from .accelerate import Report, accelerate, restore
from .layers import Conv3dTranspose, ConvTranspose3d

__all__ = ["Conv3dTranspose", "ConvTranspose3d", "Report", "accelerate", "restore"]
