# SPDX-License-Identifier: Apache-2.0
"""The face for MindSpore: both layers as cells, on this library's engine.

    import tconv3d.mindspore as nn        # instead of: import mindspore.nn as nn
    up = nn.Conv3dTranspose(64, 32, 4, stride=2, pad_mode="same")

The cells run in PyNative mode, under ms.jit and in GRAPH_MODE, forward and backward, on CPUs. On Ascend and GPU, and
for shapes that are not known when a graph is compiled, they hand the call to MindSpore's own operator, with its limits.

vmap, second derivatives, amp and MINDIR files work. Two things to know: amp's level O1 leaves these cells in float32
(O2, O3, auto and ``to_float`` do not), and a MINDIR file names this library's extension by its path, so `restore` a
network whose file is to run elsewhere. MindSpore 2.10 needs NumPy below 2.
"""

from __future__ import annotations

from .accelerate import Report, accelerate, restore
from .layers import Conv3dTranspose, ConvTranspose3d

__all__ = ["Conv3dTranspose", "ConvTranspose3d", "Report", "accelerate", "restore"]
