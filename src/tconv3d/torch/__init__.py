# SPDX-License-Identifier: Apache-2.0
"""The face for PyTorch: its layer and its function, on this library's engine.

    import tconv3d.torch as nn            # instead of: import torch.nn as nn
    up = nn.ConvTranspose3d(64, 32, 4, stride=2, padding=1)

Eager calls on plain CPU tensors of float16, bfloat16, float32 and float64 run in the engine at once. What wants to see
an operator (torch.compile, torch.export, torch.func, forward-mode derivatives, fake tensors, modes) sees one of this
library, which ends in the engine too; torch.jit, other devices and other dtypes get PyTorch's own, with the same
meaning. `accelerate` exchanges the layers of a finished model, `freeze` keeps packed weights; `tconv3d.torch.sharded`
spreads one volume over several processes.
"""

from __future__ import annotations

from . import functional
from .accelerate import accelerate, restore
from .frozen import freeze, thaw
from .layers import Conv3dTranspose, ConvTranspose3d, LazyConvTranspose3d

__all__ = [
    "Conv3dTranspose",
    "ConvTranspose3d",
    "LazyConvTranspose3d",
    "accelerate",
    "freeze",
    "functional",
    "restore",
    "thaw",
]
